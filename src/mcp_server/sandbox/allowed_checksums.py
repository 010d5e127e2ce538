"""Checks the files that a program executes from its data folder, such as nmap's scripts.

An entry names a file by its path in the data folder and by the SHA-256 checksums that are allowed for it. The operator
can allow more checksums in a file of the format that sha256sum(1) writes.

An entry without checksums stands for the program's own code. It may be a pattern. These files must stay as they were
when this process first used them. `forget_first_seen` accepts their present content, and a reload calls it.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from mcp_server.errors import ConfigError, PlatformError
from mcp_server.operator_files.reading import FileRules, read_text_file
from mcp_server.sandbox.file_hash import hash_file

Files = Iterable[tuple[str, frozenset[str]]]
"""Entries in the form of `mcp_server.tools.base.Command.files`."""

_LINE: Final = re.compile(r"([0-9a-f]{64}) [ *](?:\./)?([A-Za-z0-9][A-Za-z0-9._/+-]{0,199})")
_RULES: Final = FileRules("file of allowed checksums", 1024 * 1024, setting="security.allowed_checksums")
_UPGRADED: Final = "If you upgraded the program, reload or restart the server. If not, find out who changed the file."
_REVIEW: Final = (
    "Only reviewed versions of this file are run. To allow this version, review it and add its 'sha256sum' line to the "
    "file that security.allowed_checksums names."
)

_first_seen: dict[tuple[str, str], dict[str, str]] = {}
_lock = threading.Lock()


def check_files(folder: Path, files: Files, extra: Mapping[str, frozenset[str]] | None = None) -> None:
    """Check every entry of ``files`` below ``folder``; ``extra`` holds the operator's allowed checksums by path.

    A file is read again only if it has changed. The first call can block for 100 ms, so call this in a thread. Raises
    PlatformError ``binary_changed`` if a file differs, and ``binary_not_found`` if a file with checksums is missing.
    """
    with _lock:
        for path, allowed in files:
            if allowed:
                _check_reviewed(folder, path, allowed | (extra or {}).get(path, frozenset()))
            else:
                _check_unchanged(folder, path)


def forget_first_seen() -> None:
    """Accept the present content of the programs' own code at the next check. A reload calls this."""
    with _lock:
        _first_seen.clear()


def read_allowed_checksums(path: Path) -> dict[str, frozenset[str]]:
    """Read the operator's file: one ``SHA256  PATH`` per line, with PATH relative to the data folder.

    Lines that start with ``#`` are comments. Raises ConfigError if the file cannot be read or a line is malformed.
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
            f"{folder / path} is missing, and this call executes it.",
            code="binary_not_found",
            hint="Install the complete program from the distribution's package.",
        )
    if found not in allowed:
        raise PlatformError(
            f"{folder / path} is not a reviewed version. Its SHA-256 is {found[:16]}….",
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
    more = f", and so have {len(changed) - 1} other files" if len(changed) > 1 else ""
    raise PlatformError(
        f"{changed[0]} has changed since the server first used it{more}.",
        code="binary_changed",
        hint=_UPGRADED,
        file=str(Path(changed[0]).relative_to(folder)),
    )


def _matching(folder: Path, pattern: str) -> list[str]:
    """Return the files that match ``FOLDER/*SUFFIX``, or the one file that is named."""
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
    """Return the hexadecimal SHA-256 of a regular file, or None if there is none."""
    try:
        return hash_file(path).sha256
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> PlatformError:
    return PlatformError(
        f"{path} cannot be read: {error.strerror}.", hint="Make the program's data folder readable for the server."
    )
