"""Runs that lost their process: found when a store is opened, marked `interrupted`, kept with what they had."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, distinct, func, select, update

from mcp_server.errors import NetworkToolsError
from mcp_server.model.run import Outcome, Raw
from mcp_server.store.blobs import adopt_spool
from mcp_server.store.database import Database
from mcp_server.store.owners import Owner
from mcp_server.store.schema import coverage, observations, runs
from mcp_server.store.statements import Statements
from mcp_server.store.writes import write_raw

logger = logging.getLogger(__name__)

_MESSAGE = "The process that carried this run ended before it did; what was found until then is kept."


async def recover(
    database: Database, statements: Statements, owner: Owner, state_dir: Path
) -> tuple[tuple[str, ...], list[int]]:
    """Take over the runs of dead owners of our folder: the ids of those cut off, and all that still need folding."""

    def look(connection: Connection) -> list[Any]:
        query = select(runs.c.seq, runs.c.id, runs.c.owner).where(
            runs.c.owner.is_not(None), runs.c.owner != owner.id, runs.c.owner_folder == owner.folder
        )
        return list(connection.execute(query).all())

    interrupted: list[str] = []
    taken: list[int] = []
    alive: dict[str, bool] = {}
    for row in await database.read(look):
        if row.owner not in alive:
            alive[row.owner] = owner.is_alive(row.owner)
        if alive[row.owner]:
            continue
        outcome = await _take_over(database, owner, row.seq, row.owner)
        if outcome is None:  # another process was faster
            continue
        taken.append(row.seq)
        if outcome == Outcome.RUNNING:
            await _interrupt(database, statements, row.seq, await _adopt(state_dir, row.id))
            interrupted.append(row.id)
    return tuple(interrupted), taken


async def _take_over(database: Database, owner: Owner, seq: int, dead: str) -> str | None:
    def take(connection: Connection) -> str | None:
        statement = update(runs).where(runs.c.seq == seq, runs.c.owner == dead).values(owner=owner.id)
        outcome: str | None = connection.scalar(statement.returning(runs.c.outcome))
        return outcome

    return await database.write(take)


async def _adopt(state_dir: Path, run_id: str) -> Raw | None:
    try:
        return await asyncio.to_thread(adopt_spool, state_dir, run_id)
    except NetworkToolsError as error:
        logger.warning("store.raw_not_adopted: run %s: %s", run_id, error)
        return None


async def _interrupt(database: Database, statements: Statements, seq: int, raw: Raw | None) -> None:
    """Close the run with what was counted from its observations. When it ended is not known, and stays empty."""
    columns = observations.c

    def mark(connection: Connection) -> None:
        if raw is not None:
            write_raw(connection, statements, raw)
        counted = select(func.count(distinct(columns.address))).where(columns.run == seq)
        up = connection.scalar(counted.where(columns.state == "up")) or 0
        down = connection.scalar(counted.where(columns.state == "down")) or 0
        ports = connection.scalar(select(func.sum(columns.open_ports)).where(columns.run == seq)) or 0
        values: dict[str, Any] = {
            "outcome": Outcome.INTERRUPTED.value,
            "error_message": _MESSAGE,
            "counts": json.dumps({"hosts_up": up, "open_ports": int(ports)}),
        }
        if raw is not None:
            values |= {"raw_sha256": raw.sha256, "raw_truncated": True}
        connection.execute(update(runs).where(runs.c.seq == seq).values(values))
        planned = connection.scalar(select(coverage.c.planned).where(coverage.c.run == seq)) or 0
        connection.execute(
            update(coverage)
            .where(coverage.c.run == seq)
            .values(
                up=up,
                down=down,
                looked_at=up + down,
                not_looked_at_count=max(planned - up - down, 0),
                complete=False,
            )
        )

    await database.write(mark)
