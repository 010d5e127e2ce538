"""Recovery after a killed process: its runs are marked ``interrupted``, and files that no run names are removed.

Both happen when a store is opened. Lock files and spools are locked by their process (flock(2)), so files in use are
never touched, nor files younger than `SETTLED_SEC`, which may not be complete yet.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, select, update

from mcp_server.errors import NetworkToolsError
from mcp_server.logger import get_logger
from mcp_server.model.digest import HostDigest
from mcp_server.model.encoding import decode
from mcp_server.model.host import Host
from mcp_server.model.run import Outcome, Raw
from mcp_server.store.blobs import SPOOL, adopt_spool
from mcp_server.store.database import Database
from mcp_server.store.owners import Owner
from mcp_server.store.queries import get_run
from mcp_server.store.schema import observations, runs
from mcp_server.store.writes import write_end

logger = get_logger(__name__)

SETTLED_SEC: Final = 60.0
_MESSAGE = "The process that carried out this run ended before the run did. What was found until then is kept."


async def recover(database: Database, owner: Owner, state_dir: Path) -> tuple[str, ...]:
    """Mark the runs of processes that ended as ``interrupted`` and return their ids."""

    def owned_by_others(connection: Connection) -> list[Any]:
        query = select(runs.c.id, runs.c.owner).where(
            runs.c.owner.is_not(None), runs.c.owner != owner.id, runs.c.owner_folder == owner.folder
        )
        return list(connection.execute(query).all())

    interrupted: list[str] = []
    alive: dict[str, bool] = {}
    for row in await database.read(owned_by_others):
        if row.owner not in alive:
            alive[row.owner] = owner.is_alive(row.owner)
        # If another process takes the run over first, that process recovers it.
        if alive[row.owner] or not await _take_over(database, row.id, row.owner, owner):
            continue
        raw = await _adopt(state_dir, row.id)
        await database.write(partial(_interrupt, run_id=row.id, raw=raw))
        interrupted.append(row.id)
    return tuple(interrupted)


async def _take_over(database: Database, run_id: str, previous: str, owner: Owner) -> bool:
    def take(connection: Connection) -> bool:
        statement = update(runs).where(runs.c.id == run_id, runs.c.owner == previous).values(owner=owner.id)
        return connection.execute(statement).rowcount == 1

    return await database.write(take)


async def _adopt(state_dir: Path, run_id: str) -> Raw | None:
    try:
        return await asyncio.to_thread(adopt_spool, state_dir, run_id)
    except NetworkToolsError as error:
        logger.warning("store.raw_not_adopted", run_id=run_id, message=str(error))
        return None


def _interrupt(connection: Connection, run_id: str, raw: Raw | None) -> None:
    """End a run with the coverage that its observations show. The time of its end is unknown, so ``ended`` is empty."""
    run = get_run(connection, run_id)
    digest, down = HostDigest(), 0
    for host in _observed(connection, run_id):
        digest.add(host)
        down += host.state == "down"
    coverage = run.coverage
    if coverage is not None:
        looked_at = digest.up + down
        coverage = replace(
            coverage,
            looked_at=looked_at,
            up=digest.up,
            down=down,
            not_looked_at_count=max(coverage.planned - looked_at, 0),
            complete=False,
        )
    write_end(
        connection,
        replace(
            run,
            outcome=Outcome.INTERRUPTED,
            error_message=_MESSAGE,
            counts=digest.counts,
            coverage=coverage,
            raw=raw or run.raw,
        ),
    )


def _observed(connection: Connection, run_id: str) -> Iterator[Host]:
    """Yield the last observation of each address of a run."""
    columns = observations.c
    query = (
        select(columns.address, columns.record)
        .join(runs, runs.c.seq == columns.run)
        .where(runs.c.id == run_id)
        .order_by(columns.address, columns.observed_at.desc())
        .execution_options(yield_per=1000)
    )
    previous = None
    for row in connection.execute(query):
        if row.address != previous:
            previous = row.address
            yield decode(Host, row.record)


async def remove_leftovers(database: Database, owner: Owner, state_dir: Path) -> None:
    """Remove lock files of processes that ended, and spools that belong to no run."""
    await asyncio.to_thread(owner.sweep, SETTLED_SEC)
    left = await asyncio.to_thread(lambda: dict(_spools(state_dir)))
    if not left:
        return

    def known(connection: Connection) -> set[str]:
        return set(connection.scalars(select(runs.c.id).where(runs.c.id.in_(left))))

    for run_id in left.keys() - await database.read(known):
        left[run_id].unlink(missing_ok=True)
        logger.info("store.spool_removed", run_id=run_id)


def _spools(state_dir: Path) -> Iterator[tuple[str, Path]]:
    """Yield the run and the path of each spool that no process has open."""
    folder = state_dir / SPOOL
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(descriptor).st_mtime > SETTLED_SEC:
                yield path.stem, path
        except OSError:  # the process that writes it is alive
            continue
        finally:
            os.close(descriptor)
