"""Find and run the programs of the lab."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[3]
"""The checkout. Helper processes import this package from here, whatever their working directory is."""

INSTALL: Final = "scripts/system-packages.sh test"

_FOLDERS: Final = (
    *os.environ.get("PATH", os.defpath).split(os.pathsep),
    "/usr/local/sbin",
    "/usr/sbin",
    "/sbin",
    str(ROOT / ".cache/programs/usr/sbin"),  # system-packages.sh unpacks here what must not be installed
)


class LabError(RuntimeError):
    """The lab cannot be built or does not have what was requested; the message names it."""


def uncovered() -> dict[str, str]:
    """Return the environment without the variables for coverage, because not every process may write its file."""
    return {key: value for key, value in os.environ.items() if not key.startswith("COV")}


def find(program: str) -> str:
    """Return the absolute path of a program; the LabError for a missing one names the command that installs it."""
    path = shutil.which(program, path=os.pathsep.join(_FOLDERS))
    if path is None:
        raise LabError(f"the lab needs the program {program}, which is not installed: run {INSTALL}")
    return path


def find_postgres(program: str) -> str:
    """Return the absolute path of a PostgreSQL program, of the newest installed major version."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    if not folders:
        raise LabError(f"the lab needs PostgreSQL's {program}, which is not installed: run {INSTALL}")
    return str(folders[-1] / program)


def run(argv: Sequence[str], *, text_in: str = "", timeout: float = 60.0) -> str:
    """Run a helper program and return its output; LabError has its error output."""
    done = subprocess.run(argv, input=text_in, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(argv)} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout
