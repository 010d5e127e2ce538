"""Whose run is it: every store that is open holds a lock file, and a run names the lock of its owner.

The kernel drops an flock when its process ends, however it ends, so a run whose owner's lock can be taken has
lost its process. Lock files lie in the state folder and that folder has an id of its own: only runs begun
under the same folder are judged, because the locks of another folder (or another machine) cannot be seen.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

from mcp_server.store.folders import make_private


class Owner:
    """This process's claim: ``id`` names its lock, ``folder`` the state folder it lies in. Made by `claim`."""

    def __init__(self, directory: Path, folder: str, owner_id: str, fd: int) -> None:
        self.id = owner_id
        self.folder = folder
        self._directory = directory
        self._fd: int | None = fd

    @classmethod
    def claim(cls, state_dir: Path) -> Owner:
        """Take a lock of our own under ``state_dir``/owners; raise OSError where that cannot be written."""
        directory = make_private(state_dir / "owners")
        folder = _folder_id(directory)
        owner_id = uuid.uuid4().hex
        # Locked under another name first: a lock file must never be visible unlocked, or it would look dead.
        hidden = directory / f".{owner_id}"
        fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(fd, f"{os.getpid()}\n".encode())
            hidden.rename(_lock(directory, owner_id))
        except OSError:
            os.close(fd)
            hidden.unlink(missing_ok=True)
            raise
        return cls(directory, folder, owner_id, fd)

    def is_alive(self, owner_id: str) -> bool:
        """Whether the owner of that id still runs; its lock file is removed where it does not."""
        if owner_id == self.id:
            return self._fd is not None
        path = _lock(self._directory, owner_id)
        try:
            fd = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def sweep(self, settled_sec: float) -> None:
        """Remove the locks of dead owners, and what was left half-made more than ``settled_sec`` seconds ago.

        A dead owner whose runs had all ended is named by none of them, so nobody else would ask for its lock.
        """
        for path in self._directory.glob("*.lock"):
            self.is_alive(path.stem)
        for path in self._directory.glob(".*"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > settled_sec:
                    path.unlink()

    def release(self) -> None:
        """Give the lock up; safe to call twice."""
        if self._fd is not None:
            with suppress(OSError):
                _lock(self._directory, self.id).unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = None


def _lock(directory: Path, owner_id: str) -> Path:
    return directory / f"{owner_id}.lock"


def _folder_id(directory: Path) -> str:
    """The state folder's own id, written once by whoever comes first."""
    path = directory / "folder"
    if not path.exists():
        mine = directory / f".folder-{uuid.uuid4().hex}"
        fd = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(fd, uuid.uuid4().hex.encode())
        finally:
            os.close(fd)
        with suppress(FileExistsError):
            path.hardlink_to(mine)
        mine.unlink()
    return path.read_text(encoding="ascii")
