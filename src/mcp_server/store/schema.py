"""The tables, as queries see them. The first migration creates the same tables; a test compares the two.

A run and an observation are JSON text in the form of `mcp_server.model.encoding`. The other columns are keys, and what
queries filter by.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _text(name: str) -> Column[Any]:
    return Column(name, Text, nullable=False)


runs = Table(
    "runs",
    metadata,
    # Runs are numbered in the order in which they began. Pages are cut by this number, because clocks can go back.
    # SQLite numbers rows itself only if the type is INTEGER.
    Column("seq", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    _text("tool"),
    _text("outcome"),
    _text("actor_name"),
    _text("interface"),
    # The process that carries the run out, until the run ends; see owners.py.
    Column("owner", Text),
    Column("owner_folder", Text),
    _text("record"),
    Index(None, "tool", "seq"),
    Index(None, "actor_name", "seq"),
    Index(None, "outcome", "seq"),
    Index(None, "owner"),
    sqlite_autoincrement=True,
)

observations = Table(
    "observations",
    metadata,
    Column("run", BigInteger, ForeignKey(runs.c.seq, ondelete="CASCADE"), nullable=False),
    Column("address", LargeBinary, nullable=False),
    # A hash of the record. It keeps the same fact of the same run once, so that a failed write can be repeated.
    Column("digest", LargeBinary, nullable=False),
    # Microseconds since 1970, UTC.
    Column("observed_at", BigInteger, nullable=False),
    _text("record"),
    PrimaryKeyConstraint("run", "address", "digest"),
)
