"""The schema revision that this version knows, and a check of a SQLite file that imports no database library."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mcp_server.errors import PlatformError

REVISION: Final = "0001"
"""The newest revision in `migrations/`."""


class SchemaError(PlatformError):
    """A later version wrote the database. Waiting does not help."""

    default_code = "store_unavailable"


def newer(location: str, revision: str) -> SchemaError:
    """Return the error for a database at a revision that this version does not know."""
    return SchemaError(
        f"{location} has schema revision {revision!r}, which is newer than this version knows ({REVISION!r}).",
        hint="Run the version of mcp-network-tools that wrote it, or a later one.",
    )


def sqlite_file(url: str | None, state_dir: Path) -> Path | None:
    """Return the file of the store that ``url`` (``database.url``) names, or None if it is not a SQLite file."""
    if not url:
        return state_dir / "store.db"
    scheme, _, rest = url.partition(":///")
    path = rest.partition("?")[0]
    return state_dir / path if scheme.partition("+")[0] == "sqlite" and path else None


def check_sqlite(path: Path) -> None:
    """Raise SchemaError if a later version wrote the file. Other defects are found when the store is opened."""
    if not path.exists():
        return
    import sqlite3
    from contextlib import closing

    # Without a log beside the file, nobody has it open. Reading it as immutable then leaves no log behind.
    mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=0.2)) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        return
    # Revisions are numbers of four digits, so text order is their order.
    if row is not None and str(row[0]) > REVISION:
        raise newer(str(path), str(row[0]))
