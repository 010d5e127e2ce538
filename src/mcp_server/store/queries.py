"""The questions a store answers: one run, a page of runs, a page of what a run observed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, bindparam, func, select, tuple_

from mcp_server.errors import NotFoundError
from mcp_server.model.host import Host
from mcp_server.model.run import HTTP_INTERFACES, Outcome, Run
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
_SEQ_BY_ID = select(runs.c.seq).where(runs.c.id == bindparam("run_id"))
# The interface as well: a user of this machine may have any name.
_HIS: ColumnElement[bool] = (runs.c.actor_name == bindparam("caller")) & runs.c.interface.in_(sorted(HTTP_INTERFACES))
_OWN_RUN_BY_ID = _RUN_BY_ID.where(_HIS)
_OWN_SEQ_BY_ID = _SEQ_BY_ID.where(_HIS)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which runs: of this tool, that ended so, and that this actor had made over HTTP; None: whichever."""

    tool: str | None = None
    outcome: Outcome | None = None
    caller: str | None = None

    def of(self, query: Select[Any]) -> Select[Any]:
        """The query, of these runs alone."""
        if self.tool is not None:
            query = query.where(runs.c.tool == self.tool)
        if self.outcome is not None:
            query = query.where(runs.c.outcome == self.outcome.value)
        return query if self.caller is None else query.where(_HIS).params(caller=self.caller)


def unknown_run(run_id: str) -> NotFoundError:
    """The error for an id that is not there, or not there for the caller."""
    return NotFoundError(f"there is no run {run_id[:100]!r}", code="unknown_run")


def run_seq(connection: Connection, run_id: str, caller: str | None = None) -> int:
    """The number of a run; raise NotFoundError for an unknown id."""
    query = _SEQ_BY_ID if caller is None else _OWN_SEQ_BY_ID
    seq: int | None = connection.scalar(query, _named(run_id, caller))
    if seq is None:
        raise unknown_run(run_id)
    return seq


def get_run(connection: Connection, run_id: str, caller: str | None = None) -> Run:
    """One run; raise NotFoundError for an unknown id."""
    query = _RUN_BY_ID if caller is None else _OWN_RUN_BY_ID
    found = connection.execute(query, _named(run_id, caller)).all()
    if not found:
        raise unknown_run(run_id)
    return _with_ports(connection, found)[0]


def _named(run_id: str, caller: str | None) -> dict[str, str]:
    return {"run_id": run_id} if caller is None else {"run_id": run_id, "caller": caller}


def list_runs(connection: Connection, limit: int, cursor: str | None, chosen: Chosen) -> Page[Run]:
    """A page of runs, the newest first."""
    query = chosen.of(_RUN).order_by(runs.c.seq.desc()).limit(limit + 1)
    if cursor is not None:
        query = query.where(runs.c.seq < _position(connection, cursor, chosen.caller))
    found = connection.execute(query).all()
    total = connection.scalar(chosen.of(select(func.count()).select_from(runs)))
    shown = found[:limit]
    # By its id and not its number, which would tell how many runs others have made in between.
    following = encode_cursor("runs", shown[-1].id) if len(found) > limit else None
    return Page(tuple(_with_ports(connection, shown)), total or 0, following)


def _position(connection: Connection, cursor: str, caller: str | None) -> int:
    """The number of the run that a cursor names; one that is not the caller's is as wrong as one made up."""
    (run_id,) = decode_cursor("runs", cursor, str)
    try:
        if not (run_id.isascii() and run_id.isprintable()):  # some of what is neither no database takes as text
            raise bad_cursor(cursor)
        return run_seq(connection, run_id, caller)
    except NotFoundError:
        raise bad_cursor(cursor) from None


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


def list_hosts(
    connection: Connection, run_id: str, limit: int, cursor: str | None, caller: str | None = None
) -> Page[Host]:
    """A page of what a run observed, in the order of address."""
    seq = run_seq(connection, run_id, caller)
    columns = observations.c
    query = (
        select(columns.address, columns.digest, columns.payload)
        .where(columns.run == seq)
        .order_by(columns.address, columns.digest)
        .limit(limit + 1)
    )
    if cursor is not None:
        after = decode_cursor("hosts", cursor, str, str, str)
        query = query.where(tuple_(columns.address, columns.digest) > tuple_(*_key(run_id, cursor, after)))
    found = connection.execute(query).all()
    total = connection.scalar(select(func.count()).select_from(observations).where(columns.run == seq))
    shown = found[:limit]
    following = None
    if len(found) > limit:
        following = encode_cursor("hosts", run_id, shown[-1].address.hex(), shown[-1].digest.hex())
    return Page(tuple(host_from_payload(row.payload) for row in shown), total or 0, following)


def _key(run_id: str, cursor: str, parts: tuple[Any, ...]) -> tuple[bytes, bytes]:
    """The key in a cursor; one of another run is as wrong as one that was made up."""
    whose, address, digest = parts
    try:
        if whose == run_id:
            return bytes.fromhex(address), bytes.fromhex(digest)
    except ValueError:
        pass
    raise bad_cursor(cursor)
