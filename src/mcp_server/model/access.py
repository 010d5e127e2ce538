"""The access of an actor: its permissions, and the limits that the operator set for this actor only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Permission(StrEnum):
    """One kind of action that an actor may do. Over HTTP, each permission is the OAuth scope of the same spelling.

    The tool permissions follow the risk of a call: ``tools:read`` allows passive calls, ``tools:probe``, ``tools:scan``
    and ``tools:intrusive`` the risks of the same names.
    """

    TOOLS_READ = "tools:read"
    TOOLS_PROBE = "tools:probe"
    TOOLS_SCAN = "tools:scan"
    TOOLS_INTRUSIVE = "tools:intrusive"
    RUNS_READ = "runs:read"
    ADMIN = "admin"


class Role(StrEnum):
    """A named set of permissions. A token may hold fewer permissions than its actor's role, never more."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    @property
    def permissions(self) -> frozenset[Permission]:
        """The permissions of the role."""
        return _PERMISSIONS[self]


_VIEWER: Final = frozenset({Permission.TOOLS_READ, Permission.RUNS_READ})
_PERMISSIONS: Final = {
    Role.VIEWER: _VIEWER,
    Role.OPERATOR: _VIEWER | {Permission.TOOLS_PROBE, Permission.TOOLS_SCAN},
    Role.ADMIN: frozenset(Permission),
}


@dataclass(frozen=True, slots=True)
class Access:
    """The permissions of an actor, and the limits that apply to it in addition to those that apply to everybody.

    ``networks`` are entries as in ``security.allowed_targets``. The actor may touch only addresses that both these
    entries and the policy allow; None means all of the policy. ``tools`` are shell patterns of tool names.
    ``calls_per_minute`` applies to each tool. If ``calls_per_minute`` or ``packets_per_hour`` is None, the server's
    limit applies. ``origin`` is the hash of the file that defines these limits, or an empty string.
    """

    permissions: frozenset[Permission] = frozenset()
    networks: tuple[str, ...] | None = None
    tools: tuple[str, ...] = ("*",)
    calls_per_minute: int | None = None
    packets_per_hour: int | None = None
    origin: str = ""

    @property
    def sees_all_runs(self) -> bool:
        """Whether the actor may read all runs. Other actors read only the runs that they started."""
        return Permission.ADMIN in self.permissions


FULL_ACCESS: Final = Access(frozenset(Permission))
"""The access of the user who started the process, and of a caller with the token of its state folder."""
NOBODY: Final = Access()
"""No permission at all."""
