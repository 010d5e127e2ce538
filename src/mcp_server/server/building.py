"""Builds the values that a server derives from its configuration, at the start and at each reload."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from mcp_server.limits.admission import Caps
from mcp_server.logger import get_logger
from mcp_server.netguard import Enforcement
from mcp_server.pipeline.current import Current, Snapshot
from mcp_server.sandbox.sandbox import can_open_raw_sockets
from mcp_server.scope.resolver import SystemResolver
from mcp_server.tools.base import MCPBaseTool, ToolPolicy
from mcp_server.tools.registry import ToolRegistry, discover

if TYPE_CHECKING:
    from mcp_server.config import Config
    from mcp_server.identity.actors import Actors
    from mcp_server.netguard import Guard
    from mcp_server.scope.policy import ScopePolicy

logger = get_logger(__name__)

WARNINGS: Final = 20
"""Maximum number of networks outside the policy that warnings name. Further networks are only counted."""


def make_snapshot(config: Config, guard: Guard) -> Snapshot:
    """Read every file that ``config`` names. Blocks: a policy may have 100,000 entries.

    Raises ConfigError for a file that cannot be used.
    """
    policy = config.scope_policy()
    return Snapshot(
        config=config,
        policy=policy,
        registry=build_registry(config, guard),
        resolver=_make_resolver(policy, guard),
        allowed_checksums=_read_allowed_checksums(config),
        actors=_read_actors(config, policy),
    )


def build_registry(config: Config, guard: Guard | None = None) -> ToolRegistry:
    """Discover the tools of a configuration. Without a guard, raw sockets are off."""
    policy = ToolPolicy(
        allow_intrusive=config.security.allow_intrusive,
        raw_sockets=guard is not None and guard.raw_sockets and can_open_raw_sockets(),
    )
    return discover(
        policy,
        packages=config.tool.packages,
        include=config.tool.include_patterns,
        exclude=config.tool.exclude_patterns,
    )


def caps(current: Current) -> Caps:
    """Return how many calls may run at once, from the configuration and the tools in force."""

    def per_tool(name: str) -> int:
        # A reload may have removed the tool of a call that still waits.
        tool = current.value.registry.offered.get(name)
        return current.value.config.effective.concurrency_for(
            tool.concurrency if isinstance(tool, MCPBaseTool) else None
        )

    return Caps(
        total=lambda: current.value.config.admission.max_running,
        per_tool=per_tool,
        per_actor=lambda: current.value.config.admission.per_actor,
        per_host=lambda: current.value.config.admission.per_host,
        max_waiting=lambda: current.value.config.admission.max_waiting,
    )


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Turn garbage collection off for the imports in the block, and exclude their objects from later collections.

    Modules and models live as long as the process. Collecting while they are made takes an eighth of a cold start
    (docs/performance.md), and a full collection of them would add 40 ms to some later call.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _make_resolver(policy: ScopePolicy, guard: Guard) -> SystemResolver:
    """Return the resolver that the policy names, else the resolver of this host (unreachable from inside a guard)."""
    if guard.enforcement is not Enforcement.ARGUMENT and not policy.resolvers:
        return SystemResolver([])
    return SystemResolver.of(policy)


def _read_allowed_checksums(config: Config) -> Mapping[str, frozenset[str]]:
    """Return the hashes of scripts that the operator accepts in addition to the reviewed scripts."""
    path = config.security.allowed_checksums
    if path is None:
        return {}
    from mcp_server.sandbox.allowed_checksums import read_allowed_checksums

    return read_allowed_checksums(path)


def _read_actors(config: Config, policy: ScopePolicy) -> Actors | None:
    """Return the limits of single actors, or None if the configuration names no actors file.

    Logs a warning for each network of an actor that is not inside ``policy``.
    """
    path = config.auth.actors_file
    if path is None:
        return None
    from mcp_server.identity.actors_file import read_actors_file

    actors = read_actors_file(path)
    outside = list(actors.outside(policy))
    for name, entry in outside[:WARNINGS]:
        logger.warning("actors.outside_policy", actor=name, entry=entry, message="It does not widen the policy.")
    if len(outside) > WARNINGS:
        logger.warning("actors.outside_policy", more=len(outside) - WARNINGS)
    return actors
