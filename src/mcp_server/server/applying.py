"""Puts a new configuration in force, completely or not at all."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from mcp_server.errors import NetworkToolsError
from mcp_server.netguard.choice import GuardChoice, require
from mcp_server.sandbox.allowed_checksums import forget_first_seen
from mcp_server.sandbox.binaries import invalidate_command_cache
from mcp_server.server.building import make_snapshot

if TYPE_CHECKING:
    from mcp_server.config import Config
    from mcp_server.pipeline.current import Snapshot
    from mcp_server.pipeline.pipeline import Pipeline


async def apply(pipeline: Pipeline, config: Config, *, accept_programs: bool = True) -> None:
    """Use ``config`` for all later calls. Running calls keep the settings that they started with.

    With ``accept_programs``, programs are searched and pinned again. Tools that an operator disabled stay disabled.
    Raises NetworkToolsError, and keeps the old configuration, if a file cannot be used, enforcement would be too weak,
    or the guard does not accept the policy.
    """
    require(config, GuardChoice(pipeline.guard.enforcement))
    snapshot = await asyncio.to_thread(make_snapshot, config, pipeline.guard)
    await _take_over(pipeline, snapshot)
    if accept_programs:
        invalidate_command_cache()
        forget_first_seen()
    disabled = pipeline.current.value.registry.disabled
    pipeline.current.swap(replace(snapshot, registry=snapshot.registry.with_disabled(disabled)))


async def log_policy(pipeline: Pipeline, snapshot: Snapshot) -> None:
    """Write to the audit log which policy and actors are in force from now on, and how the policy is enforced."""
    actors = {} if snapshot.actors is None else {"actors_hash": snapshot.actors.hash}
    await pipeline.audit.append("policy", **pipeline.terms() | {"scope_hash": snapshot.policy.hash}, **actors)


async def _take_over(pipeline: Pipeline, snapshot: Snapshot) -> None:
    """Write the policy to the audit log, then pass it to the guard. A failure of the guard is logged too."""
    before = pipeline.current.value
    is_new = _hashes(snapshot) != _hashes(before)
    if is_new:
        await log_policy(pipeline, snapshot)
    try:
        await pipeline.guard.reload(snapshot.policy.hash)
    except NetworkToolsError:
        if is_new:
            await log_policy(pipeline, before)
        raise


def _hashes(snapshot: Snapshot) -> tuple[str, str | None]:
    return snapshot.policy.hash, None if snapshot.actors is None else snapshot.actors.hash
