"""Records which process carries out a run: every open store holds a lock file, and a run names its owner's lock.

The kernel releases an flock when its process ends, so a run is abandoned if its owner's lock can be taken. The lock
files are in the state folder, which has an id. Only runs that began under the same state folder are checked, because
the locks of another folder or machine cannot be seen.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

from mcp_server.store.files import make_private


class Owner:
    """The lock of this process, made by `claim`. ``id`` names the lock, ``folder`` its state folder."""

    def __init__(self, directory: Path, folder: str, owner_id: str, fd: int) -> None:
        self.id = owner_id
        self.folder = folder
        self._directory = directory
        self._fd: int | None = fd

    @classmethod
    def claim(cls, state_dir: Path) -> Owner:
        """Create and take a lock under ``state_dir``/owners; raise OSError if that folder cannot be written."""
        directory = make_private(state_dir / "owners")
        folder = _folder_id(directory)
        owner_id = uuid.uuid4().hex
        # The file is locked under a hidden name first: a visible lock file that is not locked counts as abandoned.
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
        """Return whether the process with that lock still runs; remove the lock file if it does not."""
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
        """Remove the locks of processes that ended, and hidden files older than ``settled_sec`` seconds.

        A process whose runs had all ended is named by no run, so nothing else checks its lock.
        """
        for path in self._directory.glob("*.lock"):
            self.is_alive(path.stem)
        for path in self._directory.glob(".*"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > settled_sec:
                    path.unlink()

    def release(self) -> None:
        """Release the lock. May be called more than once."""
        if self._fd is not None:
            with suppress(OSError):
                _lock(self._directory, self.id).unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = None


def _lock(directory: Path, owner_id: str) -> Path:
    return directory / f"{owner_id}.lock"


def _folder_id(directory: Path) -> str:
    """Return the id of the state folder; the first process writes it."""
    path = directory / "folder"
    if not path.exists():
        new = directory / f".folder-{uuid.uuid4().hex}"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(fd, uuid.uuid4().hex.encode())
        finally:
            os.close(fd)
        with suppress(FileExistsError):
            path.hardlink_to(new)
        new.unlink()
    return path.read_text(encoding="ascii")
