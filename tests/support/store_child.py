"""A process that uses a store, for tests that start and kill processes, or give them a full disk.

Run it with ``python -m tests.support.store_child MODE STATE_DIR URL …``. The URL ``-`` is SQLite in the state folder.
It prints what happened as JSON, one object per line.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from mcp_server.errors import NetworkToolsError
from mcp_server.store import open_store
from mcp_server.store.blobs import RawSpool
from mcp_server.store.sql import SqlStore
from tests.support.store_facts import ended, make_host, make_run

HOLD_SECONDS = 60


def report(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)  # noqa: T201 - the parent reads it


async def refusal(call: Any) -> str | None:
    """Return the code of the error that a call raised, or None."""
    try:
        await call
    except NetworkToolsError as error:
        report(message=error.message)
        return error.code
    return None


async def hold(store: SqlStore, state: Path, run_id: str, hosts: str) -> None:
    """Stay in the middle of a run until killed."""
    await store.open()
    run = make_run(run_id)
    await store.begin(run)
    RawSpool(state, run_id, 1 << 30).write(b"<host/>" * 100)
    await store.add_hosts(run, [make_host(f"10.0.0.{n}") for n in range(int(hosts))])
    report(ready=True)
    await asyncio.sleep(HOLD_SECONDS)


async def once(store: SqlStore, _state: Path) -> None:
    """Open and close."""
    interrupted = len(await store.open())
    await store.close()
    report(interrupted=interrupted, alembic="alembic" in sys.modules)


async def forget(store: SqlStore, _state: Path) -> None:
    """End without closing the store."""
    await store.open()
    await store.begin(make_run("forgotten"))
    report(ready=True)


async def work(store: SqlStore, _state: Path, prefix: str, count: str) -> None:
    """Begin and finish runs."""
    await store.open()
    for number in range(int(count)):
        run = make_run(f"{prefix}{number}")
        await store.begin(run)
        for part in range(4):
            await store.add_hosts(run, [make_host(f"10.0.{part}.{n}") for n in range(25)])
        await store.finish(ended(run))
    await store.close()
    report(done=True)


async def starve(store: SqlStore, state: Path) -> None:
    """Fill the disk in the middle of a run, then free it again and finish the run."""
    await store.open()
    run = make_run("r1")
    await store.begin(run)
    spool = RawSpool(state, "r1", 1 << 30)
    spool.write(b"before")
    await store.add_hosts(run, [make_host("10.0.0.1")])
    filler = state / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"\xff" * 4096):
                pass
        except OSError:
            pass
    many = [make_host(f"10.1.{n // 250}.{n % 250}") for n in range(5000)]
    report(add=await refusal(store.add_hosts(run, many)), other=await refusal(store.begin(make_run("r2"))))
    report(kept=(await store.hosts("r1")).total)
    try:
        spool.write(os.urandom(1 << 16))  # does not compress into the last free bytes
    except NetworkToolsError as error:
        report(spool=error.code)
    filler.unlink()
    raw = spool.finish()
    await store.add_hosts(run, many)
    await store.finish(ended(run, raw=raw))
    found = await store.get_run("r1")
    report(hosts=(await store.hosts("r1")).total, outcome=found.outcome, truncated=raw.truncated)
    report(raw=(await store.read_raw(raw, 0, 6)).decode())
    await store.close()


async def refuse(store: SqlStore, state: Path) -> None:
    """Try to open a store on a disk that is full or read-only."""
    report(code=await refusal(store.open()))
    try:
        RawSpool(state, "r1", 10)
    except NetworkToolsError as error:
        report(spool=error.code)


def main() -> None:
    mode, state, url, *rest = sys.argv[1:]
    store = open_store(None if url == "-" else url, Path(state))
    if not isinstance(store, SqlStore):
        raise TypeError(type(store))
    modes: dict[str, Any] = {f.__name__: f for f in (hold, once, forget, work, starve, refuse)}
    asyncio.run(modes[mode](store, Path(state), *rest))


if __name__ == "__main__":
    main()
