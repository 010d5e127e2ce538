"""The locked Python packages as files in a folder, so that installations in tests need no index.

pip reads the pages of sixty projects to find what a lock file names, which takes longer than installing it.
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
    """The folder with everything that the lock files name; fetched once for each content of theirs.

    It fits the minor version of Python that runs the tests.
    """
    texts = [(_ROOT / "requirements" / name).read_text() for name in _LOCKS]
    key = hashlib.sha256("".join([sys.version, *texts]).encode()).hexdigest()[:16]
    made = _CACHE / key
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Several workers may want it.
        if not made.exists():
            draft = _CACHE / f"{key}.draft"
            draft.mkdir(exist_ok=True)
            _fetch(texts, draft)
            draft.rename(made)
    return made


def offline_pip(folder: Path | str) -> dict[str, str]:
    """The environment in which pip takes packages from a folder and from nowhere else."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def _fetch(locks: list[str], folder: Path) -> None:
    locked = {pin for text in locks for pin in re.findall(r"^[a-z0-9].*(?:\n    --hash.*)+", text, re.MULTILINE)}
    needed = sorted(pin for pin in locked if _fits(pin))
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
    # Two versions of one package do not go into one call.
    while needed:
        chosen = {Requirement(pin.partition("\\")[0]).name: pin for pin in needed}
        needed = [pin for pin in needed if pin not in chosen.values()]
        # The marker goes, because this may be a patch release that does not need the package.
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
