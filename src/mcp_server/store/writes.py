"""The writes a run needs, each inside the caller's transaction and each harmless when repeated."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select

from mcp_server.errors import ArgumentError
from mcp_server.model.run import Coverage, PortsTested, Raw, Run
from mcp_server.store.owners import Owner
from mcp_server.store.queries import unknown_run
from mcp_server.store.rows import coverage_port_rows, coverage_row, run_row
from mcp_server.store.schema import coverage_ports, networks, runs
from mcp_server.store.statements import Statements, insert_for


def write_network(connection: Connection, name: str) -> int:
    """The id of a network, made on first use. A vantage is the network it sees: 10.0.0.1 there is its own."""
    query = select(networks.c.id).where(networks.c.name == name)
    found: int | None = connection.scalar(query)
    if found is None:
        connection.execute(insert_for(connection.dialect, networks).values(name=name).on_conflict_do_nothing())
        found = connection.execute(query).scalar_one()
    return found


def write_begin(connection: Connection, statements: Statements, run: Run, network: int, owner: Owner) -> int:
    """Insert a run and return its number; raise ArgumentError where another process already has that id."""
    row = run_row(run) | {"network": network, "owner": owner.id, "owner_folder": owner.folder, "folded": 0}
    seq: int | None = statements.begin_run.one(connection, row)
    if seq is None:
        found = connection.execute(select(runs.c.seq, runs.c.owner).where(runs.c.id == run.id)).one()
        if found.owner != owner.id:
            raise ArgumentError(f"there is already a run {run.id[:100]!r}", hint="Give every run an id of its own.")
        seq = int(found.seq)
    _write_coverage(connection, statements, seq, run.coverage, before=())
    return seq


def write_finish(
    connection: Connection, statements: Statements, run: Run, begun_with: tuple[PortsTested, ...] | None
) -> int:
    """Write how a run ended and return its number; raise NotFoundError for an unknown id.

    ``begun_with`` are the tested ports that already stand there, or None where that is not known.
    """
    if run.raw is not None:
        write_raw(connection, statements, run.raw)
    seq: int | None = statements.finish_run.one(connection, run_row(run) | {"run_id": run.id})
    if seq is None:
        raise unknown_run(run.id)
    _write_coverage(connection, statements, seq, run.coverage, before=begun_with)
    return seq


def _write_coverage(
    connection: Connection,
    statements: Statements,
    seq: int,
    value: Coverage | None,
    *,
    before: tuple[PortsTested, ...] | None,
) -> None:
    if value is None:
        return
    statements.coverage.one(connection, coverage_row(seq, value))
    if value.ports != before:
        if before != ():
            connection.execute(delete(coverage_ports).where(coverage_ports.c.run == seq))
        statements.coverage_ports.many(connection, coverage_port_rows(seq, value))


def write_raw(connection: Connection, statements: Statements, raw: Raw) -> None:
    """Name the content of a run's raw output; the same content is one row."""
    statements.blobs.one(connection, {"sha256": raw.sha256, "size": raw.size, "stored": raw.stored})
