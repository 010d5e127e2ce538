"""The version of a tool's program, read once for each file."""

from __future__ import annotations

import os
import subprocess
from typing import Final

from mcp_server.errors import PlatformError
from mcp_server.model.untrusted import sanitize

_TIMEOUT_SEC: Final = 5.0
_MAX_CHARS: Final = 120
_VERSIONS: dict[tuple[str, tuple[str, ...]], tuple[tuple[int, ...], str]] = {}


def version_of(path: str, arguments: tuple[str, ...]) -> str:
    """Return the first line that a program writes when it runs with ``arguments``, or "" if there are no arguments.

    The program is run again only if its file has changed. Raises PlatformError if it cannot be run or fails, for
    example because a library is missing.
    """
    if not arguments:
        return ""
    found = os.stat(path)  # noqa: PTH116 - the path is a str
    identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    known = _VERSIONS.get((path, arguments))
    if known is not None and known[0] == identity:
        return known[1]
    version = _run(path, arguments)
    _VERSIONS[path, arguments] = (identity, version)
    return version


def _run(path: str, arguments: tuple[str, ...]) -> str:
    shown = " ".join((path, *arguments))
    try:
        done = subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": os.defpath, "LC_ALL": "C"},
            cwd="/",
            timeout=_TIMEOUT_SEC,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it did not end within {_TIMEOUT_SEC:.0f} s"
        raise PlatformError(f"{shown} cannot be run: {reason}.", hint="Install the program again.") from error
    first = sanitize(done.stdout.decode(errors="replace").strip().partition("\n")[0], _MAX_CHARS)
    if done.returncode:
        hint = "Run it by hand to find out why, then install the program again."
        raise PlatformError(f"{shown} ended with {done.returncode}: {first}", hint=hint)
    return first
