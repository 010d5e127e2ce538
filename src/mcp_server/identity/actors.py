"""The bounds that an owner drew around single actors, as they hold: a `Directory` made from the actors file."""

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
    """One actor of the file. ``role`` None leaves it the role of its credential; the rest is that of `Access`."""

    name: str
    role: Role | None = None
    networks: tuple[str, ...] | None = None
    tools: tuple[str, ...] = ("*",)
    calls_per_minute: int | None = None
    packets_per_hour: int | None = None

    def access(self, role: Role, origin: str) -> Access:
        """What it may do, where its credential gives it ``role``."""
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
    """The actors of a file, by the names that credentials give them (``key:NAME``, ``sub:SUBJECT``).

    ``others`` holds for everybody whom no entry names; None: they may do nothing. Whoever holds the token of the state
    folder is the owner, and in no file.
    """

    known: Mapping[str, Bounds]
    others: Bounds | None = None

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of what the file means: the order of its actors does not matter."""
        rows = {name: _canonical(bounds) for name, bounds in self.known.items()}
        text = json.dumps([rows, self.others and _canonical(self.others)], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def find(self, name: str, role: Role) -> Access:
        """What the actor ``name`` may do at most, whom its credential gives ``role``."""
        if name == TOKEN_NAME:
            return Access(role.permissions)
        bounds = self.known.get(name, self.others)
        return replace(NOBODY, origin=self.hash) if bounds is None else bounds.access(role, self.hash)

    def again(self, name: str, access: Access) -> Access:
        """``access`` as this file bounds it now, where an earlier one had: no permission that it did not have."""
        if access.origin == self.hash:
            return access
        bounds = self.known.get(name, self.others)
        if bounds is None:
            return replace(NOBODY, origin=self.hash)
        held = access.permissions & bounds.role.permissions if bounds.role else access.permissions
        return replace(bounds.access(Role.VIEWER, self.hash), permissions=held)

    def outside(self, policy: ScopePolicy) -> Iterator[tuple[str, str]]:
        """The actors' networks that are not wholly inside the policy, each with its actor: they allow nothing more."""
        bounds = {id(each): each for each in (*self.known.values(), *([self.others] if self.others else []))}
        for each in bounds.values():
            for entry in each.networks or ():
                if not _inside(entry, policy):
                    yield each.name, entry


class InForce:
    """The directory of a server: its actors file as the last reload left it, or without one the roles alone."""

    def __init__(self, actors: Callable[[], Actors | None]) -> None:
        self._actors = actors
        self._roles = RoleDirectory()

    def find(self, name: str, role: Role) -> Access:
        """What the actor ``name`` may do at most, whom its credential gives ``role``."""
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
