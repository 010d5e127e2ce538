"""What an actor may do: the permissions it holds, and the bounds that the owner drew around it alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Permission(StrEnum):
    """What a caller may be allowed; over HTTP these are the OAuth scopes of the same spelling.

    The three above ``tools:read`` follow the risk of a call: ``tools:read`` covers what is passive.
    """

    TOOLS_READ = "tools:read"
    TOOLS_PROBE = "tools:probe"
    TOOLS_SCAN = "tools:scan"
    TOOLS_INTRUSIVE = "tools:intrusive"
    RUNS_READ = "runs:read"
    ADMIN = "admin"


class Role(StrEnum):
    """A set of permissions with a name; a token can hold fewer than its actor's role, never more."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    @property
    def permissions(self) -> frozenset[Permission]:
        """What the role may do."""
        return _PERMISSIONS[self]


_VIEWER: Final = frozenset({Permission.TOOLS_READ, Permission.RUNS_READ})
_PERMISSIONS: Final = {
    Role.VIEWER: _VIEWER,
    Role.OPERATOR: _VIEWER | {Permission.TOOLS_PROBE, Permission.TOOLS_SCAN},
    Role.ADMIN: frozenset(Permission),
}


@dataclass(frozen=True, slots=True)
class Access:
    """The permissions of an actor, and the bounds that hold for it besides those that hold for everybody.

    ``networks`` are entries as in ``security.allowed_targets``, of which only what the policy allows as well counts;
    None: all of the policy. ``tools`` are shell patterns of names. ``calls_per_minute`` (of one tool) and
    ``packets_per_hour`` None: the server's own. ``origin`` is the hash of the file that drew these bounds, or empty.
    """

    permissions: frozenset[Permission] = frozenset()
    networks: tuple[str, ...] | None = None
    tools: tuple[str, ...] = ("*",)
    calls_per_minute: int | None = None
    packets_per_hour: int | None = None
    origin: str = ""

    @property
    def sees_all_runs(self) -> bool:
        """Whether the runs of others may be read; everybody else reads only what it started itself."""
        return Permission.ADMIN in self.permissions


FULL_ACCESS: Final = Access(frozenset(Permission))
"""Whoever started the process, and whoever holds the token of its state folder."""
NOBODY: Final = Access()
"""No permission at all."""
