"""The version of a tool's program. Each program file is asked once."""

from __future__ import annotations

import os
import subprocess
from typing import Final

from mcp_server.errors import PlatformError
from mcp_server.model.untrusted import sanitize

_TIMEOUT_SEC: Final = 5.0
_MAX_CHARS: Final = 120
_KNOWN: dict[tuple[str, tuple[str, ...]], tuple[tuple[int, ...], str]] = {}


def version_of(path: str, arguments: tuple[str, ...]) -> str:
    """The first line that a program writes when it is run with ``arguments`` (for example ``--version``).

    Without arguments it is empty. The program is run again only if its file has changed. Raises PlatformError if the
    program fails or cannot be run, for example because a library is missing.
    """
    if not arguments:
        return ""
    found = os.stat(path)  # noqa: PTH116 - paths are text here, as in sandbox/binaries
    identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    known = _KNOWN.get((path, arguments))
    if known is not None and known[0] == identity:
        return known[1]
    version = _ask(path, arguments)
    _KNOWN[path, arguments] = (identity, version)
    return version


def _ask(path: str, arguments: tuple[str, ...]) -> str:
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
        message = f"{shown} ended with {done.returncode}: {first}."
        raise PlatformError(message, hint="Run it by hand to see why. Then install the program again.")
    return first
