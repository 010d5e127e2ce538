"""The limits of single actors: a `Directory` made from the actors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from mcp_server.identity.base import TOKEN_NAME, RoleDirectory
from mcp_server.model.access import NOBODY, Access, Role
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.reading import read_target


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of one actor. ``role`` None means the role of the credential; the other fields are as in `Access`."""

    name: str
    role: Role | None = None
    networks: tuple[str, ...] | None = None
    tools: tuple[str, ...] = ("*",)
    calls_per_minute: int | None = None
    packets_per_hour: int | None = None

    def access(self, role: Role, origin: str) -> Access:
        """Return the access of the actor if its credential has ``role``."""
        return Access(
            (self.role or role).permissions,
            self.networks,
            self.tools,
            self.calls_per_minute,
            self.packets_per_hour,
            origin,
        )


@dataclass(frozen=True)
class Actors:
    """The actors of a file, by the names of their credentials (``key:NAME``, ``sub:SUBJECT``).

    ``others`` applies to every actor without an entry; None means that they may do nothing. The actor with the local
    token is not in the file and has no limits.
    """

    known: Mapping[str, Bounds]
    others: Bounds | None = None

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the limits; the order of the actors does not change it."""
        rows = {name: _canonical(bounds) for name, bounds in self.known.items()}
        text = json.dumps([rows, self.others and _canonical(self.others)], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def find(self, name: str, role: Role) -> Access:
        """Return the access of the actor ``name`` if its credential has ``role``."""
        if name == TOKEN_NAME:
            return Access(role.permissions)
        bounds = self.known.get(name, self.others)
        return replace(NOBODY, origin=self.hash) if bounds is None else bounds.access(role, self.hash)

    def update(self, name: str, access: Access) -> Access:
        """``access``, which came from an earlier file, with the limits of this file and without new permissions."""
        if access.origin == self.hash:
            return access
        bounds = self.known.get(name, self.others)
        if bounds is None:
            return replace(NOBODY, origin=self.hash)
        held = access.permissions & bounds.role.permissions if bounds.role else access.permissions
        return replace(bounds.access(Role.VIEWER, self.hash), permissions=held)

    def outside(self, policy: ScopePolicy) -> Iterator[tuple[str, str]]:
        """Yield each actor with each entry of its networks that is not completely in scope."""
        bounds = {id(each): each for each in (*self.known.values(), *([self.others] if self.others else []))}
        for each in bounds.values():
            for entry in each.networks or ():
                if not _inside(entry, policy):
                    yield each.name, entry


class CurrentDirectory:
    """The directory of a server: the actors file of the last reload, or the roles alone if there is no file."""

    def __init__(self, actors: Callable[[], Actors | None]) -> None:
        self._actors = actors
        self._roles = RoleDirectory()

    def find(self, name: str, role: Role) -> Access:
        """Return the access of the actor ``name`` if its credential has ``role``."""
        return (self._actors() or self._roles).find(name, role)


def _inside(entry: str, policy: ScopePolicy) -> bool:
    own = ScopePolicy.from_entries([entry])
    if entry.startswith("."):
        return policy.check_name(read_target(f"any{entry}").canonical).allowed
    return all(policy.check_network(network).allowed for network in own.allowed_networks())


def _canonical(bounds: Bounds) -> list[object]:
    return [
        bounds.role,
        None if bounds.networks is None else sorted(set(bounds.networks)),
        sorted(set(bounds.tools)),
        bounds.calls_per_minute,
        bounds.packets_per_hour,
    ]
