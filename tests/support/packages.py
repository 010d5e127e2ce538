"""The locked Python packages as files in a folder, so that installations in tests need no index.

With an index, pip reads the pages of sixty projects, which takes longer than the installation.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

_ROOT: Final = Path(__file__).resolve().parents[2]
_CACHE: Final = _ROOT / ".cache" / "packages"
_LOCKS: Final = ("run.lock", "deploy.lock", "build.lock")


def packages() -> Path:
    """Return a folder with every package of the lock files. It is downloaded again when a lock file changes.

    The packages are those for the minor version of Python that runs the tests.
    """
    texts = [(_ROOT / "requirements" / name).read_text() for name in _LOCKS]
    key = hashlib.sha256("".join([sys.version, *texts]).encode()).hexdigest()[:16]
    made = _CACHE / key
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers may need the folder at the same time
        if not made.exists():
            draft = _CACHE / f"{key}.draft"
            draft.mkdir(exist_ok=True)
            _fetch(texts, draft)
            draft.rename(made)
    return made


def offline_pip(folder: Path | str) -> dict[str, str]:
    """Return the environment in which pip takes packages only from a folder."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def _fetch(locks: list[str], folder: Path) -> None:
    locked = {entry for text in locks for entry in re.findall(r"^[a-z0-9].*(?:\n    --hash.*)+", text, re.MULTILINE)}
    needed = sorted(entry for entry in locked if _fits(entry))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "--only-binary",
        ":all:",
    ]
    # One call of pip cannot download two versions of a package.
    while needed:
        chosen = {Requirement(pin.partition("\\")[0]).name: pin for pin in needed}
        needed = [pin for pin in needed if pin not in chosen.values()]
        # The marker is removed, because pip would skip a package that only other patch releases need.
        lines = [re.sub(r" ;[^\\]*", " ", pin, count=1) for pin in chosen.values()]
        wanted = folder / "wanted.txt"
        wanted.write_text("\n".join(lines))
        subprocess.run([*pip, "--dest", str(folder), "--requirement", str(wanted)], check=True)
        wanted.unlink()


def _fits(pin: str) -> bool:
    """Whether some patch release of this minor version of Python needs the package of a pin."""
    marker = Requirement(pin.partition("\\")[0]).marker
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    return marker is None or any(marker.evaluate({"python_full_version": f"{minor}.{patch}"}) for patch in (0, 99))
