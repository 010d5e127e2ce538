"""The guard: what holds packets inside the scope, as the rest of the server sees it.

A guard is chosen once, when the server starts. In the kernel and rootless tiers the whole server runs in a network
namespace whose every frame passes the ruleset made from the policy; a privileged guard helper process outside of the
server set that up and answers questions about it over a socket. In the argument tier there is none: addresses are
checked before a spawn, and raw sockets are off.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mcp_server.model.target import Targets
    from mcp_server.sandbox.executor import Executor


class Enforcement(StrEnum):
    """How the scope is enforced, strongest first."""

    KERNEL = "kernel"
    ROOTLESS = "rootless"
    ARGUMENT = "argument"

    def at_least(self, other: Enforcement) -> bool:
        """Whether this is as strong as ``other`` or stronger."""
        order = list(Enforcement)
        return order.index(self) <= order.index(other)


@dataclass(frozen=True, slots=True)
class GuardReading:
    """The state of the guard at one moment: the ruleset's SHA-256 (hex), packets let through and packets dropped.

    ``drops`` counts by rule, only what a tool must have tried to send; ``generation`` is the kernel's number of the
    ruleset's last change.
    """

    ruleset: str
    generation: int
    passed: int
    drops: dict[str, int]

    @property
    def dropped(self) -> int:
        """Packets dropped, over all rules."""
        return sum(self.drops.values())


class Guard(Protocol):
    """The guard in force."""

    @property
    def enforcement(self) -> Enforcement:
        """The tier in force; stands on every run and audit record."""
        ...

    @property
    def raw_sockets(self) -> bool:
        """Whether tools may open raw sockets under this guard."""
        ...

    async def read(self) -> GuardReading | None:
        """The guard's state, or None in the argument tier.

        Raises PlatformError ``guard_unavailable`` where the guard is gone or is not the one that was set up.
        """
        ...

    async def reload(self, policy_hash: str) -> None:
        """Have the guard helper read the owner's policy again and swap the ruleset's sets in one transaction.

        Raises PlatformError ``guard_unavailable`` where the guard helper read another policy than ``policy_hash``.
        """
        ...

    def executor_for(self, targets: Targets) -> Executor:
        """Where a run on these targets is started.

        Raises TargetError ``invalid_target`` for loopback targets mixed with others, PlatformError
        ``guard_unavailable`` where loopback cannot be reached under this guard.
        """
        ...

    def executors(self) -> tuple[Executor, ...]:
        """Every place where a run may be started under this guard."""
        ...

    def close(self) -> None:
        """Let go of the guard and end the runners; safe to call twice."""
        ...
