"""Finding and running the programs that the lab is made of."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[3]
"""The checkout. Helper processes import this package from here, whatever directory they are started in."""

INSTALL: Final = "scripts/system-packages.sh test"

_FOLDERS: Final = (
    *os.environ.get("PATH", os.defpath).split(os.pathsep),
    "/usr/local/sbin",
    "/usr/sbin",
    "/sbin",
    str(ROOT / ".cache/programs/usr/sbin"),  # where system-packages.sh unpacks what must not be installed
)


class LabError(RuntimeError):
    """The lab cannot be built, or was asked for something it does not have; the message says what is missing."""


def uncovered() -> dict[str, str]:
    """The environment without what makes a Python process measure its coverage: not every one may write its file."""
    return {key: value for key, value in os.environ.items() if not key.startswith("COV")}


def find(program: str) -> str:
    """The absolute path of a program; LabError names the command that installs it."""
    path = shutil.which(program, path=os.pathsep.join(_FOLDERS))
    if path is None:
        raise LabError(f"the lab needs the program {program}, which is not installed: run {INSTALL}")
    return path


def find_postgres(program: str) -> str:
    """The absolute path of one of PostgreSQL's programs, of the newest major version that is installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    if not folders:
        raise LabError(f"the lab needs PostgreSQL's {program}, which is not installed: run {INSTALL}")
    return str(folders[-1] / program)


def run(argv: Sequence[str], *, text_in: str = "", timeout: float = 60.0) -> str:
    """Run a helper program to its end and return what it printed; LabError holds its complaint."""
    done = subprocess.run(argv, input=text_in, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(argv)} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout
