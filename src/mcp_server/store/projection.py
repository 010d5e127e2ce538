"""The fold: observations become the present state of addresses, endpoints and services.

It runs behind the calls, in small pieces between their writes, because an answer must not wait for it: what an
answer needs is the observation, and that is already written. How far a run is folded is written with each
piece, and every piece may be repeated, so a fold that was cut off goes on where it stood at the next start.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select, update

from mcp_server.errors import NetworkToolsError
from mcp_server.model.run import Outcome
from mcp_server.store.database import Database
from mcp_server.store.rows import digest
from mcp_server.store.schema import observations, runs
from mcp_server.store.statements import Statements

logger = logging.getLogger(__name__)

_PIECE_HOSTS = 200
_PIECE_ROWS = 1000
_DELAY_SECONDS = 0.25
_RETRY_SECONDS = 1.0
_LOOKED_AT = frozenset({"up", "down"})


@dataclass(slots=True)
class Piece:
    """Rows of one piece, sorted by key: two processes then never wait for each other in a circle."""

    last_id: int = 0
    addresses: list[tuple[Any, ...]] = field(default_factory=list)
    endpoints: list[tuple[Any, ...]] = field(default_factory=list)
    services: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """How many rows the piece writes."""
        return len(self.addresses) + len(self.endpoints) + len(self.services)


def project(network: int, observed: Iterable[tuple[int, bytes, int, str]]) -> Piece:
    """Turn (id, address, observed_at, payload) into rows, up to about a thousand of them.

    A host that was not looked at says nothing about the present. A service name that only repeats the port
    table (``method`` table) is no observation of a service.
    """
    piece = Piece()
    for observation_id, address, at, payload in observed:
        piece.last_id = observation_id
        host = json.loads(payload)
        if host["state"] in _LOOKED_AT:
            _project_host(piece, network, address, at, host)
        if piece.rows >= _PIECE_ROWS:
            break
    for rows in (piece.addresses, piece.endpoints, piece.services):
        rows.sort()
    return piece


def _project_host(piece: Piece, network: int, address: bytes, at: int, host: dict[str, Any]) -> None:
    names = json.dumps(host["names"]) if host.get("names") else ""
    mac, vendor = host.get("mac", ""), host.get("vendor", "")
    piece.addresses.append((network, address, host["address"], host["state"], mac, vendor, names, at, at, at))
    for port in host.get("ports", ()):
        key = (network, address, port["transport"], port["number"])
        piece.endpoints.append((*key, port["state"], port.get("reason", ""), at, at, at))
        service = port.get("service")
        if service is not None and service.get("method") != "table":
            piece.services.append((*key, *_service(service), at, at))


def _service(service: dict[str, Any]) -> tuple[Any, ...]:
    get = service.get
    name, product, version = service["name"], get("product", ""), get("version", "")
    extra_info, tunnel = get("extra_info", ""), get("tunnel", "")
    cpe = json.dumps(get("cpe", []))
    identity = digest(json.dumps((name, product, version, extra_info, tunnel, cpe)).encode())
    return (
        identity,
        name,
        product,
        version,
        extra_info,
        tunnel,
        get("hostname", ""),
        get("os_type", ""),
        get("method", ""),
        get("conf", 0),
        cpe,
    )


class ProjectionWorker:
    """Folds the runs it was given, one piece at a time, and lets go of a run that has ended and is folded."""

    def __init__(self, database: Database, statements: Statements) -> None:
        self._database = database
        self._statements = statements
        self._runs: dict[int, None] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work in the background."""
        self._task = asyncio.create_task(self._work(), name="store-fold")

    def add(self, *seqs: int) -> None:
        """Say that there is something new in these runs."""
        if seqs:
            self._runs.update(dict.fromkeys(seqs))
            self._idle.clear()
            self._wake.set()

    async def settle(self) -> None:
        """Wait until everything that was written before this call is folded; raises what ended the worker, if so."""
        if self._task is not None:
            await self._wait(self._task, None)
            if self._task is not None and self._task.done():
                self._task.result()

    async def stop(self, grace: float) -> None:
        """Fold for at most ``grace`` seconds more, then stop; what is left is folded at the next start."""
        task, self._task = self._task, None
        if task is None:
            return
        await self._wait(task, grace)
        task.cancel()
        (end,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(end, Exception):
            logger.error("store.fold_broke", exc_info=end)

    async def _wait(self, task: asyncio.Task[None], seconds: float | None) -> None:
        self._hurry.set()
        idle = asyncio.ensure_future(self._idle.wait())
        try:
            await asyncio.wait({idle, task}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            idle.cancel()
            self._hurry.clear()

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            # Calls that are over in a moment end before the fold begins to write.
            await self._pause(_DELAY_SECONDS)
            self._wake.clear()
            try:
                # First, because the next write after it is a slow one, and so is made here and not by a call.
                await self._database.maintain()
                await self._drain()
            except NetworkToolsError as error:
                logger.warning("store.fold_postponed: %s", error)
                self._wake.set()
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if not self._wake.is_set():
                self._idle.set()

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), seconds)

    async def _drain(self) -> None:
        while self._runs:
            seq = next(iter(self._runs))
            del self._runs[seq]
            try:
                while await self._piece(seq):
                    pass
            except BaseException:
                self._runs[seq] = None
                raise

    async def _piece(self, seq: int) -> bool:
        """Fold one piece of a run; False when there is no more of it now."""

        def look(connection: Connection) -> tuple[Any, list[tuple[int, bytes, int, str]]]:
            query = select(runs.c.network, runs.c.projected, runs.c.outcome).where(runs.c.seq == seq)
            run = connection.execute(query).one_or_none()
            if run is None:
                return None, []
            columns = observations.c
            observed = connection.execute(
                select(columns.id, columns.address, columns.observed_at, columns.payload)
                .where(columns.run == seq, columns.id > run.projected)
                .order_by(columns.id)
                .limit(_PIECE_HOSTS)
            )
            return run, [tuple(row) for row in observed]

        run, observed = await self._database.read(look)
        if run is None:
            return False
        piece = project(run.network, observed)
        over = len(observed) == 0 and run.outcome != Outcome.RUNNING
        if observed or over:
            await self._database.write(lambda connection: self._save(connection, seq, piece, over=over))
        return bool(observed)

    def _save(self, connection: Connection, seq: int, piece: Piece, *, over: bool) -> None:
        self._statements.addresses.many(connection, piece.addresses)
        self._statements.endpoints.many(connection, piece.endpoints)
        self._statements.services.many(connection, piece.services)
        values = {"owner": None, "owner_folder": None} if over else {"folded": piece.last_id}
        connection.execute(update(runs).where(runs.c.seq == seq).values(values))
