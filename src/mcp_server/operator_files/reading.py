"""Read a file of the operator: a regular file of bounded size that no other user could have changed."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mcp_server.errors import ConfigError

OTHERS_WRITE: Final = 0o022
"""Mode bits that let the group or everybody write."""
OTHERS_ACCESS: Final = 0o077
"""Mode bits that let the group or everybody read, write or execute."""


@dataclass(frozen=True, slots=True)
class FileRules:
    """The conditions that a file must meet before it is read.

    ``name`` is what messages call the file. ``setting`` is the key or variable that names it, if there is one.
    ``forbidden_mode`` holds the mode bits that must not be set. If ``own_only`` is set, the file must belong to the
    user of this process and must not be a symbolic link. If ``check_folders`` is set, other users must not be able to
    replace the file in its folder. ``hint`` is used for an error without a more specific hint.
    """

    name: str
    max_bytes: int
    setting: str = ""
    forbidden_mode: int = 0
    own_only: bool = False
    check_folders: bool = False
    hint: str | None = None
    too_large_hint: str | None = None

    def error(self, path: Path, problem: str, hint: str | None = None) -> ConfigError:
        """Return the error for ``path``; ``problem`` is the predicate of a sentence, without its full stop."""
        return ConfigError(f"The {self.name} {path} {problem}.", hint=hint or self.hint)


def read_checked(path: Path, rules: FileRules) -> bytes:
    """Return the content of ``path``.

    Raises ConfigError if the file breaks one of ``rules``, and OSError if it cannot be opened or read.
    """
    # O_NONBLOCK: opening a named pipe must not wait for a writer.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_NOFOLLOW if rules.own_only else 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if rules.own_only and error.errno == errno.ELOOP:
            raise rules.error(path, "is a symbolic link") from error
        raise
    try:
        # Check the open file, not the path: the path could name another file a moment later.
        _check(path, rules, descriptor)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(rules.max_bytes + 1)
    finally:
        os.close(descriptor)
    if len(content) > rules.max_bytes:
        raise rules.error(path, f"is larger than {rules.max_bytes} bytes", rules.too_large_hint)
    return content


def read_file(path: Path, rules: FileRules) -> bytes:
    """Return the content of ``path``; raises ConfigError if it breaks one of ``rules`` or cannot be read."""
    try:
        return read_checked(path, rules)
    except OSError as error:
        hint = f"Name a file in {rules.setting} that the user of the server can read." if rules.setting else None
        raise rules.error(path, f"cannot be read: {error.strerror}", hint) from None


def read_text_file(path: Path, rules: FileRules) -> str:
    """Return the text of ``path``, which is UTF-8 with or without a byte order mark; raises ConfigError."""
    try:
        return read_file(path, rules).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise rules.error(path, "is not UTF-8 text", "Save the file as UTF-8.") from None


def _check(path: Path, rules: FileRules, descriptor: int) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        hint = f"Name a regular file in {rules.setting}." if rules.setting else None
        raise rules.error(path, "is not a regular file", hint)
    if rules.own_only and status.st_uid != os.geteuid():
        raise rules.error(path, f"belongs to user id {status.st_uid}, and this process runs as {os.geteuid()}")
    # On a read-only file system nobody can write, even if the mode allows it.
    read_only = bool(os.fstatvfs(descriptor).f_flag & os.ST_RDONLY)
    mode = stat.S_IMODE(status.st_mode)
    wrong = mode & rules.forbidden_mode & (~0o222 if read_only else ~0)
    if wrong and rules.forbidden_mode == OTHERS_ACCESS:
        raise rules.error(path, f"is open to other users (mode {mode:04o})", rules.hint or f"Run 'chmod 600 {path}'.")
    if wrong:
        problem = f"can be written by users other than its owner (mode {mode:04o})"
        raise rules.error(path, problem, f"Run 'chmod go-w {path}'.")
    if rules.check_folders and not read_only:
        _check_folders(path, rules)


def _check_folders(path: Path, rules: FileRules) -> None:
    # If the path is a symbolic link, a user who can write in the folder of the link can choose the file.
    for folder in dict.fromkeys((path.absolute().parent, path.resolve().parent)):
        mode = folder.stat().st_mode
        if mode & OTHERS_WRITE and not mode & stat.S_ISVTX:
            raise rules.error(
                path,
                f"can be replaced by other users: its folder {folder} has mode {stat.S_IMODE(mode):04o}",
                f"Run 'chmod go-w {folder}'.",
            )
