"""The version of a tool's program, asked once for each file."""

from __future__ import annotations

import os
import subprocess
from typing import Final

from mcp_server.errors import PlatformError
from mcp_server.model.untrusted import sanitize

_ANSWER_SEC: Final = 5.0
_LONGEST: Final = 120
_SAID: dict[tuple[str, tuple[str, ...]], tuple[tuple[int, ...], str]] = {}


def version_of(path: str, arguments: tuple[str, ...]) -> str:
    """The first line a program writes when it is run with ``arguments`` (``--version``, say); empty without any.

    It is run again only when the file has changed. PlatformError where it cannot be run or fails: a program whose
    libraries are missing is there and yet of no use.
    """
    if not arguments:
        return ""
    found = os.stat(path)  # noqa: PTH116 - a path is text here, as in execution/commands
    identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    known = _SAID.get((path, arguments))
    if known is not None and known[0] == identity:
        return known[1]
    said = _ask(path, arguments)
    _SAID[path, arguments] = (identity, said)
    return said


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
            timeout=_ANSWER_SEC,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it does not end within {_ANSWER_SEC:.0f} s"
        raise PlatformError(f"{shown} cannot be run: {reason}", hint="Install the program again.") from error
    first = sanitize(done.stdout.decode(errors="replace").strip().partition("\n")[0], _LONGEST)
    if done.returncode:
        reason = f"{shown} ended with {done.returncode}: {first}"
        raise PlatformError(reason, hint="Run it by hand to see why; then install the program again.")
    return first
