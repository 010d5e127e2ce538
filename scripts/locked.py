"""Read the packages of a lock file: names, versions and hashes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.markers import Marker
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).resolve().parent.parent
RUN_LOCK: Final = ROOT / "requirements/run.lock"
_PIN: Final = re.compile(
    r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)\s*(?:;\s*([^\\\n]+?))?\s*(\\\n(?:.*\\\n)*.*)?$", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class LockedPackage:
    """One package of a lock file; ``here`` is False if its marker names another platform or Python."""

    name: str
    version: str
    hashes: tuple[str, ...]
    here: bool


def locked_packages(lock: Path = RUN_LOCK) -> list[LockedPackage]:
    """Return every package of a lock file, in its order; a name may occur twice, for different Python versions."""
    return [
        LockedPackage(
            canonicalize_name(name),
            version,
            tuple(re.findall(r"--hash=(sha256:[0-9a-f]{64})", hashes or "")),
            not marker or Marker(marker).evaluate(),
        )
        for name, version, marker, hashes in _PIN.findall(lock.read_text())
    ]
