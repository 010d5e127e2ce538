"""The packet guard keeps packets inside the scope. This module is its interface to the rest of the server.

The tier is chosen once, when the server starts. In the kernel and rootless tiers, the server runs in a network
namespace, and a ruleset made from the policy filters every frame that leaves it. The guard helper, a privileged process
outside the server, sets this up and answers the server's requests over a socket. The argument tier has no packet guard:
addresses are only checked before a program is started, and raw sockets are disabled.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from mcp_server.model.target import Targets
    from mcp_server.sandbox.executor import Executor


DEFAULT_USER: Final = "mcp-network-tools"
"""The user that the server becomes in the kernel tier if ``guard.user`` is not set."""


class Enforcement(StrEnum):
    """The tiers of enforcing the scope, strongest first."""

    KERNEL = "kernel"
    ROOTLESS = "rootless"
    ARGUMENT = "argument"

    def at_least(self, other: Enforcement) -> bool:
        """Return whether this tier is as strong as ``other`` or stronger."""
        order = list(Enforcement)
        return order.index(self) <= order.index(other)


@dataclass(frozen=True, slots=True)
class GuardReading:
    """The state of the guard at one moment.

    ``ruleset`` is the SHA-256 of the ruleset in hex. ``generation`` is the kernel's number of the last change to it.
    ``passed`` counts packets. ``drops`` counts dropped packets by rule, but not packets that a kernel sends by itself.
    """

    ruleset: str
    generation: int
    passed: int
    drops: dict[str, int]

    @property
    def dropped(self) -> int:
        """The number of dropped packets, over all rules."""
        return sum(self.drops.values())


class Guard(Protocol):
    """The guard in force."""

    @property
    def enforcement(self) -> Enforcement:
        """The tier in force. It is part of every run and audit record."""
        ...

    @property
    def raw_sockets(self) -> bool:
        """Whether tools may open raw sockets under this guard."""
        ...

    async def read(self) -> GuardReading | None:
        """Return the state of the guard, or None in the argument tier.

        Raises PlatformError ``guard_unavailable`` if the guard is gone or was changed.
        """
        ...

    async def reload(self, policy_hash: str) -> None:
        """Make the guard helper read the operator's policy again and apply it in one transaction.

        Raises PlatformError ``guard_unavailable`` if the guard helper read a policy with a different hash.
        """
        ...

    def executor_for(self, targets: Targets) -> Executor:
        """Return the executor for a run on these targets.

        Raises TargetError ``invalid_target`` if loopback targets are mixed with others, and PlatformError
        ``guard_unavailable`` if loopback cannot be reached under this guard.
        """
        ...

    def executors(self) -> tuple[Executor, ...]:
        """Return every executor of this guard."""
        ...

    def close(self) -> None:
        """Disconnect from the guard helper and end the runners. It is safe to call this twice."""
        ...
