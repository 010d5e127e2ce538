"""Files that a killed process left behind and no run names: they are removed when a store is opened.

Only what nobody holds is touched: lock files and spools are locked by their process (flock(2)), and a file younger than
`SETTLED_SEC` may be one that is being made.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, select

from mcp_server.store.blobs import SPOOL
from mcp_server.store.database import Database
from mcp_server.store.owners import Owner
from mcp_server.store.schema import runs

logger = logging.getLogger(__name__)

SETTLED_SEC: Final = 60.0


async def remove_leftovers(database: Database, owner: Owner, state_dir: Path) -> None:
    """Remove locks of dead owners, what a claim of one left half-made, and spools that belong to no run."""
    await asyncio.to_thread(owner.sweep, SETTLED_SEC)
    left = await asyncio.to_thread(lambda: dict(_spools(state_dir)))
    if not left:
        return

    def look(connection: Connection) -> set[str]:
        return set(connection.scalars(select(runs.c.id).where(runs.c.id.in_(left))))

    for run_id in left.keys() - await database.read(look):
        left[run_id].unlink(missing_ok=True)
        logger.info("store.spool_removed run=%s", run_id)


def _spools(state_dir: Path) -> Iterator[tuple[str, Path]]:
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
        except OSError:  # whoever writes it is alive
            continue
        finally:
            os.close(descriptor)
