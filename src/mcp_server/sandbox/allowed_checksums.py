"""The files of a program's data folder that a run makes it execute: each must be the one that was reviewed.

An entry names a file by its path in the folder and the SHA-256 it may have. An entry without hashes, which may be a
pattern, stands for the program's own code: what it was when this process first saw it is what it must stay, as the
program itself, and `forget` (a reload) accepts what is there now. The owner can add hashes in a file of the format
that sha256sum(1) writes.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from mcp_server.errors import ConfigError, PlatformError
from mcp_server.operator_files.reading import FileRules, read_text_file

Files = Iterable[tuple[str, frozenset[str]]]
"""Entries as `mcp_server.tools.base.Command.files` holds them."""

_LINE: Final = re.compile(r"([0-9a-f]{64}) [ *](?:\./)?([A-Za-z0-9][A-Za-z0-9._/+-]{0,199})")
_RULES: Final = FileRules("file of allowed checksums", 1024 * 1024, setting="security.allowed_checksums")
_UPGRADED: Final = "If this was an upgrade, reload or restart the server to accept it; else find out who did it."
_REVIEW: Final = (
    "Only reviewed versions of it run. To accept this one, read it and add its line of 'sha256sum' to the file that "
    "security.allowed_checksums names."
)

_hashes: dict[str, tuple[tuple[int, ...], str]] = {}
_first_seen: dict[tuple[str, str], dict[str, str]] = {}
_lock = threading.Lock()


def check_files(folder: Path, files: Files, owner: Mapping[str, frozenset[str]] | None = None) -> None:
    """Check every entry of ``files`` below ``folder``; ``owner`` holds further hashes that the owner accepts, by path.

    Reads files only where they have changed since they were read last; it blocks, for a tenth of a second the first
    time, so call it in a thread. Raises PlatformError ``binary_changed`` naming the file that is another one, and
    ``binary_not_found`` where one with hashes is missing.
    """
    with _lock:
        for path, allowed in files:
            if allowed:
                _check_reviewed(folder, path, allowed | (owner or {}).get(path, frozenset()))
            else:
                _check_unchanged(folder, path)


def forget() -> None:
    """Take what is there at the next check as what was first seen; called after a reload."""
    with _lock:
        _first_seen.clear()


def read_allowed_checksums(path: Path) -> dict[str, frozenset[str]]:
    """Read hashes the owner accepts, one ``SHA256  PATH`` a line, PATH in the data folder; ``#`` begins a comment.

    Raises ConfigError for a file that cannot be read, or a line that is not of that form.
    """
    lines = read_text_file(path, _RULES).splitlines()
    allowed_checksums: dict[str, frozenset[str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.rstrip())
        if match is None or ".." in match[2].split("/"):
            raise ConfigError(
                f"{path}, line {number}: the line is not 'SHA256  PATH'.",
                hint="Make the line in the program's data folder, for example with 'sha256sum scripts/ssl-cert.nse'.",
            )
        allowed_checksums[match[2]] = allowed_checksums.get(match[2], frozenset()) | {match[1]}
    return allowed_checksums


def _check_reviewed(folder: Path, path: str, allowed: frozenset[str]) -> None:
    found = _sha256(str(folder / path))
    if found is None:
        raise PlatformError(
            f"{folder / path} is missing, and this call runs it",
            code="binary_not_found",
            hint="Install the program whole, from the distribution's package.",
        )
    if found not in allowed:
        raise PlatformError(
            f"{folder / path} is not the file that was reviewed (SHA-256 {found[:16]}…)",
            code="binary_changed",
            hint=_REVIEW,
            file=path,
            sha256=found,
        )


def _check_unchanged(folder: Path, pattern: str) -> None:
    now = {path: sha256 for path in _matching(folder, pattern) if (sha256 := _sha256(path)) is not None}
    first = _first_seen.setdefault((str(folder), pattern), now)
    if now == first:
        return
    changed = sorted(path for path in now.keys() | first.keys() if now.get(path) != first.get(path))
    raise PlatformError(
        f"{changed[0]} has changed since the server first used it"
        + (f", and {len(changed) - 1} files more" if len(changed) > 1 else ""),
        code="binary_changed",
        hint=_UPGRADED,
        file=str(Path(changed[0]).relative_to(folder)),
    )


def _matching(folder: Path, pattern: str) -> list[str]:
    """The files that ``FOLDER/*.END`` stands for, or the one that is named."""
    parent, _, name = pattern.rpartition("/")
    if not name.startswith("*"):
        return [str(folder / pattern)]
    try:
        with os.scandir(folder / parent) as entries:
            return [entry.path for entry in entries if entry.name.endswith(name[1:])]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(error.filename, error) from error


def _sha256(path: str) -> str | None:
    """The hexadecimal SHA-256 of a regular file, or None where there is none; read again only when it has changed."""
    try:
        seen = os.stat(path)  # noqa: PTH116 - hundreds of files on the way of a run, kept as text
        if not stat.S_ISREG(seen.st_mode):
            return None
        identity = (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
        known = _hashes.get(path)
        if known is None or known[0] != identity:
            with Path(path).open("rb") as file:
                known = _hashes[path] = (identity, hashlib.file_digest(file, "sha256").hexdigest())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error
    return known[1]


def _unreadable(path: str, error: OSError) -> PlatformError:
    return PlatformError(f"{path} cannot be read: {error.strerror}", hint="Make the program's data folder readable.")
