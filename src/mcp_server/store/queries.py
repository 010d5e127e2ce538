"""The questions a store answers: one run, a page of runs, a page of what a run observed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, select, tuple_

from mcp_server.errors import NotFoundError
from mcp_server.model.asset import Host
from mcp_server.model.run import Outcome, Run
from mcp_server.store.base import Page
from mcp_server.store.paging import bad_cursor, decode_cursor, encode_cursor
from mcp_server.store.rows import host_from_payload, run_from_row
from mcp_server.store.schema import blobs, coverage, coverage_ports, observations, runs

_RUN = (
    select(
        *runs.c,
        *(column.label(f"coverage_{column.name}") for column in coverage.c),
        blobs.c.size.label("raw_size"),
        blobs.c.stored.label("raw_stored"),
    )
    .select_from(runs)
    .outerjoin(coverage, coverage.c.run == runs.c.seq)
    .outerjoin(blobs, blobs.c.sha256 == runs.c.raw_sha256)
)

# Kept, because SQLAlchemy remembers the compiled form of a statement best by the very object.
_RUN_BY_ID = _RUN.where(runs.c.id == bindparam("run_id"))


def unknown_run(run_id: str) -> NotFoundError:
    """The error for an id that is not there."""
    return NotFoundError(f"there is no run {run_id[:100]!r}", code="unknown_run")


def run_seq(connection: Connection, run_id: str) -> int:
    """The number of a run; raise NotFoundError for an unknown id."""
    seq: int | None = connection.scalar(select(runs.c.seq).where(runs.c.id == run_id))
    if seq is None:
        raise unknown_run(run_id)
    return seq


def get_run(connection: Connection, run_id: str) -> Run:
    """One run; raise NotFoundError for an unknown id."""
    found = connection.execute(_RUN_BY_ID, {"run_id": run_id}).all()
    if not found:
        raise unknown_run(run_id)
    return _with_ports(connection, found)[0]


def list_runs(
    connection: Connection, limit: int, cursor: str | None, tool: str | None, outcome: Outcome | None
) -> Page[Run]:
    """A page of runs, the newest first."""

    def chosen(query: Select[Any]) -> Select[Any]:
        if tool is not None:
            query = query.where(runs.c.tool == tool)
        if outcome is not None:
            query = query.where(runs.c.outcome == outcome.value)
        return query

    query = chosen(_RUN).order_by(runs.c.seq.desc()).limit(limit + 1)
    if cursor is not None:
        (before,) = decode_cursor("runs", cursor, int)
        query = query.where(runs.c.seq < before)
    found = connection.execute(query).all()
    total = connection.scalar(chosen(select(func.count()).select_from(runs)))
    shown = found[:limit]
    following = encode_cursor("runs", shown[-1].seq) if len(found) > limit else None
    return Page(tuple(_with_ports(connection, shown)), total or 0, following)


def _with_ports(connection: Connection, found: Iterable[Any]) -> list[Run]:
    rows = [row._mapping for row in found]  # noqa: SLF001 - public in spite of its name (SQLAlchemy 2 manual, Row)
    ports: dict[int, list[Any]] = {row["seq"]: [] for row in rows}
    tested = connection.execute(
        select(coverage_ports)
        .where(coverage_ports.c.run.in_(list(ports)))
        .order_by(coverage_ports.c.run, coverage_ports.c.position)
    )
    for row in tested.mappings():
        ports[row["run"]].append(row)
    return [run_from_row(row, ports[row["seq"]]) for row in rows]


def list_hosts(connection: Connection, run_id: str, limit: int, cursor: str | None) -> Page[Host]:
    """A page of what a run observed, in the order of address."""
    seq = run_seq(connection, run_id)
    columns = observations.c
    query = (
        select(columns.address, columns.digest, columns.payload)
        .where(columns.run == seq)
        .order_by(columns.address, columns.digest)
        .limit(limit + 1)
    )
    if cursor is not None:
        after = decode_cursor("hosts", cursor, int, str, str)
        query = query.where(tuple_(columns.address, columns.digest) > tuple_(*_key(seq, cursor, after)))
    found = connection.execute(query).all()
    total = connection.scalar(select(func.count()).select_from(observations).where(columns.run == seq))
    shown = found[:limit]
    following = None
    if len(found) > limit:
        following = encode_cursor("hosts", seq, shown[-1].address.hex(), shown[-1].digest.hex())
    return Page(tuple(host_from_payload(row.payload) for row in shown), total or 0, following)


def _key(seq: int, cursor: str, parts: tuple[Any, ...]) -> tuple[bytes, bytes]:
    """The key in a cursor; one of another run is as wrong as one that was made up."""
    number, address, digest = parts
    try:
        if number == seq:
            return bytes.fromhex(address), bytes.fromhex(digest)
    except ValueError:
        pass
    raise bad_cursor(cursor)
