"""The statements of the hot path, compiled once for a dialect and then run with tuples.

Building a statement and its parameters through SQLAlchemy costs more than the databases take to carry it out,
so the text is made here from the tables and handed to the driver as it is (`exec_driver_sql`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Dialect, Table, bindparam, case, literal_column, update
from sqlalchemy.dialects import postgresql, sqlite

from mcp_server.store import schema

_EMPTY: ColumnElement[str] = literal_column("''")


def insert_for(dialect: Dialect, table: Table) -> Any:
    """An INSERT of that dialect, which knows ON CONFLICT."""
    return (postgresql.insert if dialect.name == "postgresql" else sqlite.insert)(table)


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of the driver: its text and the names of its parameters, in order."""

    sql: str
    parameters: tuple[str, ...]

    def one(self, connection: Connection, row: Mapping[str, Any]) -> Any:
        """Run it with one row given by name; return the first value it returns, or None."""
        result = connection.exec_driver_sql(self.sql, tuple(row[name] for name in self.parameters))
        return result.scalar() if result.returns_rows else None

    def many(self, connection: Connection, rows: list[tuple[Any, ...]]) -> None:
        """Run it with rows given as tuples in the order of ``parameters``."""
        if rows:
            connection.exec_driver_sql(self.sql, rows)


class Statements:
    """The hot statements of one dialect. Parameters are named and ordered as the columns they fill."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self.begin_run = self._compile(
            self._insert(schema.runs).on_conflict_do_nothing(index_elements=["id"]).returning(schema.runs.c.seq),
            _names(schema.runs, "seq"),
        )
        ends = _names(schema.runs, "seq", "id", "network", "owner", "owner_folder", "folded")
        self.finish_run = self._compile(
            update(schema.runs)
            .where(schema.runs.c.id == bindparam("run_id"))
            .values({name: bindparam(name) for name in ends})
            .returning(schema.runs.c.seq),
            [*ends, "run_id"],
        )
        self.coverage = self._replace(schema.coverage)
        self.coverage_ports = self._replace(schema.coverage_ports)
        self.blobs = self._replace(schema.blobs)
        self.observations = self._compile(
            self._insert(schema.observations)
            .on_conflict_do_nothing(index_elements=["run", "address", "digest"])
            .inline(),  # the keys that were made are not asked for
            _names(schema.observations, "id"),
        )
        self.addresses = self._project(schema.addresses, keep_if_empty=("mac", "vendor", "names"))
        self.endpoints = self._project(schema.endpoints)
        self.services = self._project(schema.services)

    def _insert(self, table: Table) -> Any:
        return insert_for(self._dialect, table)

    def _replace(self, table: Table) -> Statement:
        """Insert a row, or give the one with its key the new values."""
        statement = self._insert(table)
        keys = [column.name for column in table.primary_key]
        statement = statement.on_conflict_do_update(
            index_elements=keys, set_={name: statement.excluded[name] for name in _names(table, *keys)}
        )
        return self._compile(statement.inline(), _names(table))

    def _project(self, table: Table, keep_if_empty: tuple[str, ...] = ()) -> Statement:
        """An observation widens the interval of its row and, where it is the newest, gives the row its values.

        An empty value in a column of ``keep_if_empty`` says "not seen this time" and leaves the known one.
        """
        statement = self._insert(table)
        new = statement.excluded
        newest: ColumnElement[bool] = new.last_seen >= table.c.last_seen
        values: dict[str, Any] = {}
        for column in table.columns:
            name = column.name
            if column.primary_key:
                continue
            taken = newest
            if name == "first_seen":
                taken = new.first_seen < column
            elif name == "changed_at":
                taken = newest & (new.state != table.c.state)
            elif name in keep_if_empty:
                taken = newest & (new[name] != _EMPTY)
            values[name] = case((taken, new[name]), else_=column)
        statement = statement.on_conflict_do_update(
            index_elements=[column.name for column in table.primary_key], set_=values
        )
        return self._compile(statement.inline(), _names(table))

    def _compile(self, statement: Any, parameters: list[str]) -> Statement:
        """The driver's text, whose parameters are ``parameters`` and nothing else."""
        compiled = statement.compile(dialect=self._dialect, column_keys=parameters)
        order = tuple(compiled.positiontup)
        if sorted(order) != sorted(parameters):
            raise AssertionError(f"parameters {order} are not {parameters}")
        return Statement(str(compiled), order)


def _names(table: Table, *without: str) -> list[str]:
    return [column.name for column in table.columns if column.name not in without]
