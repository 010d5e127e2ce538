"""The tables, as statements see them. The migrations make them; a test compares the two on both databases.

Keys are natural (network, address bytes, transport, port), so a bulk insert never has to read an id back.
Times are microseconds since 1970 in UTC: they sort, and both databases keep them exactly. Addresses are keyed
by `mcp_server.store.rows.address_key`, which sorts IPv4 before IPv6 and each numerically.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only where the key is spelled INTEGER.
_Id = BigInteger().with_variant(Integer(), "sqlite")


def _text(name: str) -> Column[Any]:
    return Column(name, Text, nullable=False)


def _number(name: str) -> Column[Any]:
    return Column(name, BigInteger, nullable=False)


networks = Table(
    "networks", metadata, Column("id", _Id, primary_key=True), Column("name", Text, nullable=False, unique=True)
)

blobs = Table("blobs", metadata, Column("sha256", Text, primary_key=True), _number("size"), _number("stored"))

runs = Table(
    "runs",
    metadata,
    # The order in which runs began; it never goes back as a clock may, and it is what pages are cut by.
    Column("seq", _Id, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    _text("tool"),
    _text("tool_version"),
    _text("outcome"),
    _number("started"),
    Column("ended", BigInteger),
    _text("actor_name"),
    _text("interface"),
    _text("actor_client"),
    _text("correlation_id"),
    _text("scope_hash"),
    Column("risk", Integer, nullable=False),
    _text("vantage"),
    Column("network", BigInteger, ForeignKey(networks.c.id), nullable=False),
    _text("enforcement"),
    _text("parameters"),
    _text("argv"),
    _text("metadata"),
    Column("returncode", Integer),
    Column("error_code", Text),
    Column("error_message", Text),
    _text("stderr"),
    _text("counts"),
    Column("raw_sha256", Text, ForeignKey(blobs.c.sha256)),
    Column("raw_truncated", Boolean, nullable=False),
    # Who carries the run, and then its fold: set from begin until both are done. See owners.py.
    Column("owner", Text),
    Column("owner_folder", Text),
    # The last observation of this run that the fold has taken in.
    _number("folded"),
    Index(None, "tool", "seq"),
    Index(None, "actor_name", "seq"),
    Index(None, "outcome", "seq"),
    Index(None, "owner"),
    sqlite_autoincrement=True,
)

coverage = Table(
    "coverage",
    metadata,
    Column("run", _Id, ForeignKey(runs.c.seq, ondelete="CASCADE"), primary_key=True, autoincrement=False),
    _text("addresses"),
    _number("planned"),
    _number("looked_at"),
    _number("up"),
    _number("down"),
    _text("not_looked_at"),
    _number("not_looked_at_count"),
    Column("complete", Boolean, nullable=False),
)

coverage_ports = Table(
    "coverage_ports",
    metadata,
    Column("run", BigInteger, ForeignKey(runs.c.seq, ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),
    _text("transport"),
    _text("spec"),
    _number("count"),
    _text("method"),
    PrimaryKeyConstraint("run", "position"),
)

observations = Table(
    "observations",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("run", BigInteger, ForeignKey(runs.c.seq, ondelete="CASCADE"), nullable=False),
    Column("address", LargeBinary, nullable=False),
    # Of the payload: the same fact of the same run is kept once, so a write may safely be tried again.
    Column("digest", LargeBinary, nullable=False),
    _number("observed_at"),
    _text("state"),
    Column("open_ports", Integer, nullable=False),
    _text("payload"),
    UniqueConstraint("run", "address", "digest"),
    Index(None, "run", "id"),
)

addresses = Table(
    "addresses",
    metadata,
    Column("network", BigInteger, ForeignKey(networks.c.id), nullable=False),
    Column("address", LargeBinary, nullable=False),
    _text("ip"),
    _text("state"),
    _text("mac"),
    _text("vendor"),
    _text("names"),
    _number("first_seen"),
    _number("last_seen"),
    _number("changed_at"),
    PrimaryKeyConstraint("network", "address"),
    sqlite_with_rowid=False,
)

endpoints = Table(
    "endpoints",
    metadata,
    Column("network", BigInteger, nullable=False),
    Column("address", LargeBinary, nullable=False),
    _text("transport"),
    Column("port", Integer, nullable=False),
    _text("state"),
    _text("reason"),
    _number("first_seen"),
    _number("last_seen"),
    _number("changed_at"),
    PrimaryKeyConstraint("network", "address", "transport", "port"),
    ForeignKeyConstraint(["network", "address"], [addresses.c.network, addresses.c.address], ondelete="CASCADE"),
    sqlite_with_rowid=False,
)

services = Table(
    "services",
    metadata,
    Column("network", BigInteger, nullable=False),
    Column("address", LargeBinary, nullable=False),
    _text("transport"),
    Column("port", Integer, nullable=False),
    # Of name, product, version, extra_info, tunnel and cpe: another of these is another service.
    Column("identity", LargeBinary, nullable=False),
    _text("name"),
    _text("product"),
    _text("version"),
    _text("extra_info"),
    _text("tunnel"),
    _text("hostname"),
    _text("os_type"),
    _text("method"),
    Column("conf", Integer, nullable=False),
    _text("cpe"),
    _number("first_seen"),
    _number("last_seen"),
    PrimaryKeyConstraint("network", "address", "transport", "port", "identity"),
    ForeignKeyConstraint(
        ["network", "address", "transport", "port"],
        [endpoints.c.network, endpoints.c.address, endpoints.c.transport, endpoints.c.port],
        ondelete="CASCADE",
    ),
    sqlite_with_rowid=False,
)
