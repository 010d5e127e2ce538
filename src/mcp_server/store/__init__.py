"""The store: runs, their observations, and raw output by hash."""

from __future__ import annotations

from pathlib import Path

from mcp_server.errors import ConfigError
from mcp_server.store.base import Store

_URL_HINT = "Leave database.url empty, or write sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME."


def open_store(
    url: str | None,
    state_dir: Path,
    *,
    pool_size: int = 10,
    max_overflow: int = 20,
    pool_timeout: float = 30,
    pool_recycle: int = 3600,
) -> Store:
    """Return the store that ``url`` (``database.url``) names. Call its `open` method before any other.

    If ``url`` is None, the store is the SQLite file ``store.db`` in ``state_dir``. ``sqlite:///PATH`` names another
    file, relative to ``state_dir``, and ``postgresql://…`` a PostgreSQL database. The pool's times are in seconds.
    Raises ConfigError for any other url. The first call imports SQLAlchemy, which takes about 0.25 s, so call it in a
    thread if that would delay something.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError as BadUrl

    from mcp_server.store.database import Database
    from mcp_server.store.sql import SqlStore

    try:
        parsed = make_url(url or "sqlite:///store.db")
    except (BadUrl, ValueError) as error:
        raise ConfigError("The value of database.url is not a URL.", hint=_URL_HINT) from error
    backend = parsed.drivername.partition("+")[0]
    database: Database
    if backend == "sqlite" and parsed.database and parsed.database != ":memory:":
        from mcp_server.store.sqlite import SqliteDatabase

        database = SqliteDatabase(state_dir / parsed.database, readers=pool_size)
    elif backend in {"postgresql", "postgres"}:
        from mcp_server.store.postgres import PostgresDatabase

        database = PostgresDatabase(
            parsed,
            pool_size=pool_size,
            max_overflow=max_overflow,
            pool_timeout=pool_timeout,
            pool_recycle=pool_recycle,
        )
    else:
        shown = parsed.render_as_string(hide_password=True)
        raise ConfigError(f"The database.url {shown!r} names neither a SQLite file nor PostgreSQL.", hint=_URL_HINT)
    return SqlStore(database, state_dir)
