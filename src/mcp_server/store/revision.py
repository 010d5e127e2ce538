"""Which revision of the schema this version knows, and a look at a database's that imports no database library."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mcp_server.errors import PlatformError

REVISION: Final = "0002"
"""The newest revision of `migrations/`."""


class SchemaError(PlatformError):
    """The database was written by a later version: waiting does not mend that."""

    default_code = "store_unavailable"


def newer(location: str, revision: str) -> SchemaError:
    """The error for a database at a revision that this version does not know."""
    return SchemaError(
        f"{location} has schema revision {revision!r}, which is newer than this version knows ({REVISION!r})",
        hint="Run the version of mcp-network-tools that wrote it, or a later one.",
    )


def sqlite_file(url: str | None, state_dir: Path) -> Path | None:
    """The file of the store that ``database.url`` names, or None where that is no SQLite file."""
    if not url:
        return state_dir / "store.db"
    scheme, _, rest = url.partition(":///")
    path = rest.partition("?")[0]
    return state_dir / path if scheme.partition("+")[0] == "sqlite" and path else None


def check_sqlite(path: Path) -> None:
    """Raise SchemaError for a file of a later version; what else is wrong with it, opening the store will say."""
    if not path.exists():
        return
    import sqlite3
    from contextlib import closing

    # Without a log beside it nobody has it open, and to read it as a file that does not change leaves none there.
    how = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, timeout=0.2)) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        return
    # Revisions are numbers of four digits, counted up.
    if row is not None and str(row[0]) > REVISION:
        raise newer(str(path), str(row[0]))
