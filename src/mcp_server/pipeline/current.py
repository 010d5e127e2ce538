"""The snapshot of the configuration in force, which a reload replaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mcp_server.config import Config
    from mcp_server.identity.actors import Actors
    from mcp_server.scope.policy import ScopePolicy
    from mcp_server.scope.resolver import Resolver
    from mcp_server.tools.registry import ToolRegistry


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The configuration, and all values that are built from the operator's files.

    A call reads one snapshot and uses it for all of its steps, so that a reload cannot mix old and new settings.
    """

    config: Config
    policy: ScopePolicy
    registry: ToolRegistry
    resolver: Resolver
    allowed_checksums: Mapping[str, frozenset[str]]
    """Hashes of scripts that the operator accepts in addition to the reviewed ones, by path in a tool's data folder."""
    actors: Actors | None = None
    """The limits of single actors. None if the configuration names no actors file."""


class Current:
    """Holds the snapshot in force. For one event loop."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._value = snapshot
        self._observers: list[Callable[[], None]] = []

    @property
    def value(self) -> Snapshot:
        """The snapshot in force now."""
        return self._value

    def swap(self, snapshot: Snapshot) -> None:
        """Put ``snapshot`` in force for all later calls, then call every observer."""
        self._value = snapshot
        for observer in self._observers:
            observer()

    def observe(self, observer: Callable[[], None]) -> None:
        """Call ``observer`` after each swap. It must not block and must not raise."""
        self._observers.append(observer)
