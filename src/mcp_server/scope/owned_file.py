"""Files by which an owner says what is allowed: read whole, where nobody else could have changed them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from mcp_server.errors import ConfigError


@dataclass(frozen=True, slots=True)
class OwnedFile:
    """A kind of such a file: what messages call it, the setting that names it, and how large it may be.

    ``smaller`` is the hint for one that is larger than ``max_bytes``.
    """

    noun: str
    setting: str
    max_bytes: int
    smaller: str


def read_owned(path: Path, kind: OwnedFile) -> str:
    """The text of a file; raises ConfigError where it cannot be read, is no UTF-8, or could be changed by others."""
    try:
        # Without O_NONBLOCK a pipe in its place would hold up the start for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError(f"the {kind.noun} {path} is not a file", hint=f"Give a file in {kind.setting}.")
            _check_writers(path, kind, descriptor, found)
            data = file.read(kind.max_bytes + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read the {kind.noun} {path}: {error.strerror}",
            hint=f"Give a file that this user can read in {kind.setting}.",
        ) from None
    if len(data) > kind.max_bytes:
        raise ConfigError(f"the {kind.noun} {path} is larger than {kind.max_bytes} bytes", hint=kind.smaller)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"the {kind.noun} {path} is not UTF-8 text", hint="Save it as UTF-8.") from None


def _check_writers(path: Path, kind: OwnedFile, descriptor: int, found: os.stat_result) -> None:
    """Refuse a file that somebody else than its owner could change, or put another one in the place of."""
    if os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
        return
    if found.st_mode & 0o022:
        raise ConfigError(
            f"the {kind.noun} {path} can be written by others than its owner (mode {found.st_mode & 0o777:o})",
            hint=f"chmod go-w {path}",
        )
    # Where it is reached by a link, who can change the link's folder can choose the file.
    for folder in dict.fromkeys((path.absolute().parent, path.resolve().parent)):
        mode = folder.stat().st_mode
        if mode & 0o022 and not mode & stat.S_ISVTX:
            raise ConfigError(
                f"the {kind.noun} {path} can be replaced by others: its folder {folder} has mode {mode & 0o777:o}",
                hint=f"chmod go-w {folder}",
            )
