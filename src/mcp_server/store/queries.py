"""Reads from the database: one run, a page of runs, and a page of the observations of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, bindparam, func, select, tuple_

from mcp_server.errors import NotFoundError
from mcp_server.model.encoding import decode
from mcp_server.model.host import Host
from mcp_server.model.run import HTTP_INTERFACES, Outcome, Run
from mcp_server.store.base import Page
from mcp_server.store.paging import bad_cursor, decode_cursor, encode_cursor
from mcp_server.store.schema import observations, runs

# The interface is compared too, because a local user may have the name of an actor over HTTP.
_OF_CALLER: ColumnElement[bool] = (runs.c.actor_name == bindparam("caller")) & runs.c.interface.in_(
    sorted(HTTP_INTERFACES)
)


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Selects runs of a tool, with an outcome, and of a caller over HTTP. None means no filter."""

    tool: str | None = None
    outcome: Outcome | None = None
    caller: str | None = None

    def apply(self, query: Select[Any]) -> Select[Any]:
        """Return the query restricted to the selected runs."""
        if self.tool is not None:
            query = query.where(runs.c.tool == self.tool)
        if self.outcome is not None:
            query = query.where(runs.c.outcome == self.outcome.value)
        return query if self.caller is None else query.where(_OF_CALLER).params(caller=self.caller)


def unknown_run(run_id: str) -> NotFoundError:
    """Return the error for an id that does not exist, or not for the caller."""
    return NotFoundError(f"There is no run {run_id[:100]!r}.", code="unknown_run")


def _find(connection: Connection, column: ColumnElement[Any], run_id: str, caller: str | None) -> Any:
    query = RunFilter(caller=caller).apply(select(column).where(runs.c.id == run_id))
    found = connection.scalar(query)
    if found is None:
        raise unknown_run(run_id)
    return found


def run_seq(connection: Connection, run_id: str, caller: str | None = None) -> int:
    """Return the number of a run; raise NotFoundError for an unknown id."""
    return int(_find(connection, runs.c.seq, run_id, caller))


def get_run(connection: Connection, run_id: str, caller: str | None = None) -> Run:
    """Return one run; raise NotFoundError for an unknown id."""
    return decode(Run, _find(connection, runs.c.record, run_id, caller))


def list_runs(connection: Connection, limit: int, cursor: str | None, selected: RunFilter) -> Page[Run]:
    """Return a page of runs, newest first."""
    query = selected.apply(select(runs.c.id, runs.c.record)).order_by(runs.c.seq.desc()).limit(limit + 1)
    if cursor is not None:
        query = query.where(runs.c.seq < _seq_of_cursor(connection, cursor, selected.caller))
    found = connection.execute(query).all()
    total = connection.scalar(selected.apply(select(func.count()).select_from(runs)))
    shown = found[:limit]
    # The cursor holds the id. The number would reveal how many runs other actors have started.
    following = encode_cursor("runs", shown[-1].id) if len(found) > limit else None
    return Page(tuple(decode(Run, row.record) for row in shown), total or 0, following)


def _seq_of_cursor(connection: Connection, cursor: str, caller: str | None) -> int:
    """Return the number of the run in a cursor; the run of another caller makes the cursor invalid."""
    (run_id,) = decode_cursor("runs", cursor, 1)
    try:
        if not (run_id.isascii() and run_id.isprintable()):  # a database may refuse other text
            raise bad_cursor(cursor)
        return run_seq(connection, run_id, caller)
    except NotFoundError:
        raise bad_cursor(cursor) from None


def list_hosts(
    connection: Connection, run_id: str, limit: int, cursor: str | None, caller: str | None = None
) -> Page[Host]:
    """Return a page of the observations of a run, ordered by address."""
    seq = run_seq(connection, run_id, caller)
    columns = observations.c
    query = (
        select(columns.address, columns.digest, columns.record)
        .where(columns.run == seq)
        .order_by(columns.address, columns.digest)
        .limit(limit + 1)
    )
    if cursor is not None:
        query = query.where(tuple_(columns.address, columns.digest) > tuple_(*_key_in_cursor(run_id, cursor)))
    found = connection.execute(query).all()
    total = connection.scalar(select(func.count()).select_from(observations).where(columns.run == seq))
    shown = found[:limit]
    following = None
    if len(found) > limit:
        following = encode_cursor("hosts", run_id, shown[-1].address.hex(), shown[-1].digest.hex())
    return Page(tuple(decode(Host, row.record) for row in shown), total or 0, following)


def _key_in_cursor(run_id: str, cursor: str) -> tuple[bytes, bytes]:
    """Return the address and digest in a cursor; raise ArgumentError if it belongs to another run."""
    found, address, digest = decode_cursor("hosts", cursor, 3)
    try:
        key = bytes.fromhex(address), bytes.fromhex(digest)
    except ValueError:
        raise bad_cursor(cursor) from None
    if found != run_id:
        raise bad_cursor(cursor)
    return key
