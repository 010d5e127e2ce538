"""Raw output: compressed while it arrives, named by the hash of its content, and kept once.

While a run is under way, its output goes to ``raw/spool/RUN.gz``. When the run ends, the file is renamed to
``raw/ab/cdef….gz`` after the SHA-256 of the uncompressed bytes. The spool can be read at any time, so `adopt_spool` can
keep the output of a process that was killed. All functions here block; call those that read or adopt in a thread.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from mcp_server.errors import ArgumentError, PlatformError
from mcp_server.model.run import Raw
from mcp_server.store.files import explain_os_error, make_private, unavailable

SPOOL = Path("raw", "spool")
"""The folder, in the state folder, of the raw output of running runs."""
READ_LIMIT_MAX = 16 * 1024 * 1024
"""The most bytes that `read_raw` returns."""
_CHUNK = 256 * 1024
_GZIP = 31  # zlib's window bits for a gzip header and trailer
_FAST = 1  # takes a third of the default level's time, and a tenth more bytes for XML
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


def blob_path(state_dir: Path, sha256: str) -> Path:
    """Return the path of the content with that hash."""
    return state_dir / "raw" / sha256[:2] / f"{sha256[2:]}.gz"


def _spool_path(state_dir: Path, run_id: str) -> Path:
    # A run id may be any text. If it cannot be a file name, its hash is used.
    name = run_id if _PLAIN_NAME.fullmatch(run_id) else hashlib.sha256(run_id.encode()).hexdigest()
    return state_dir / SPOOL / f"{name}.gz"


class RawSpool:
    """Writes the raw output of one run, at most ``max_bytes`` of it before compression.

    It is not safe to use from several threads. After an error, further output is dropped, and `finish` keeps what was
    written before.
    """

    def __init__(self, state_dir: Path, run_id: str, max_bytes: int) -> None:
        """Create the file; raise PlatformError if that fails."""
        self._state_dir = state_dir
        self._run_id = run_id
        self._path = _spool_path(state_dir, run_id)
        self._remaining = max_bytes
        self._size = 0
        self._truncated = False
        self._failed = False
        self._hash = hashlib.sha256()
        self._compress = zlib.compressobj(_FAST, zlib.DEFLATED, _GZIP)
        try:
            make_private(self._path.parent)
            self._fd: int | None = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with suppress(BlockingIOError):  # the lock shows that a process uses the file, see `recovery.py`
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise explain_os_error(error, str(self._path)) from error

    @property
    def truncated(self) -> bool:
        """Whether output was dropped because it was longer than ``max_bytes``."""
        return self._truncated

    def write(self, data: bytes) -> None:
        """Append ``data``, up to ``max_bytes`` in total.

        If a write fails, PlatformError is raised once, and later data is dropped.
        """
        if self._fd is None or self._failed:
            return
        if len(data) > self._remaining:
            data = data[: self._remaining]
            self._truncated = True
        if not data:
            return
        self._remaining -= len(data)
        # Flushed at every write, because a tool may be killed after it has written nothing for minutes.
        self._put(self._compress.compress(data) + self._compress.flush(zlib.Z_SYNC_FLUSH))
        self._hash.update(data)
        self._size += len(data)

    def finish(self) -> Raw:
        """Close the file and rename it after its hash; raise PlatformError if that fails.

        If it fails, the spool stays, so that `adopt_spool` can be tried.
        """
        if self._failed:
            self._close()
            raw = adopt_spool(self._state_dir, self._run_id)
            return raw or Raw(hashlib.sha256().hexdigest(), 0, 0, truncated=True)
        if self._fd is None:
            raise PlatformError(f"The raw output of run {self._run_id!r} is closed.", code="internal_error")
        self._put(self._compress.flush())
        self._close()
        sha256 = self._hash.hexdigest()
        final = blob_path(self._state_dir, sha256)
        try:
            make_private(final.parent)
            stored = self._path.stat().st_size
            # This replaces a file of the same content, which also repairs a damaged file.
            self._path.replace(final)
        except OSError as error:
            self._failed = True
            raise explain_os_error(error, str(final)) from error
        return Raw(sha256, self._size, stored, self._truncated)

    def abort(self) -> None:
        """Delete the file. May be called at any time, and does nothing after `finish`."""
        if self._fd is not None:
            self._close()
            self._path.unlink(missing_ok=True)

    def _put(self, data: bytes) -> None:
        try:
            while data and self._fd is not None:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            self._failed = True
            raise explain_os_error(error, str(self._path)) from error

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def adopt_spool(state_dir: Path, run_id: str) -> Raw | None:
    """Keep the spool that a killed run left, marked as truncated, or return None if there is none.

    Raises PlatformError if it cannot be kept; the spool then stays.
    """
    path = _spool_path(state_dir, run_id)
    if not path.exists():
        return None
    rescue = RawSpool(state_dir, f"{path.stem}-rescue", max_bytes=1 << 62)
    try:
        for chunk in _decompressed(path):
            rescue.write(chunk)
        raw = rescue.finish()
    except OSError as error:
        raise explain_os_error(error, str(path)) from error
    finally:
        rescue.abort()
    with suppress(OSError):
        path.unlink()
    return Raw(raw.sha256, raw.size, raw.stored, truncated=True)


def iter_raw(state_dir: Path, raw: Raw) -> Iterator[bytes]:
    """Yield the uncompressed content in pieces of at most 256 KiB.

    When a file is read for the first time, its content is checked against its hash before the first piece. Raises
    PlatformError if the file is missing or damaged.
    """
    path = blob_path(state_dir, raw.sha256)
    try:
        status = path.stat()
        _verify(path, raw.sha256, status.st_ino, status.st_size, status.st_mtime_ns)
        yield from _decompressed(path)
    except OSError as error:
        raise explain_os_error(error, str(path)) from error


def read_raw(state_dir: Path, raw: Raw, offset: int, limit: int) -> bytes:
    """Return ``limit`` bytes (1 to 16 MiB) of the uncompressed content from ``offset``, or fewer at its end.

    Everything before ``offset`` is decompressed again. Raises ArgumentError if ``offset`` or ``limit`` is out of range,
    and PlatformError as `iter_raw` does.
    """
    if offset < 0:
        raise ArgumentError(f"The offset {offset} is negative.", parameter="offset")
    if not 1 <= limit <= READ_LIMIT_MAX:
        raise ArgumentError(f"The limit {limit} is not from 1 to {READ_LIMIT_MAX} bytes.", parameter="limit")
    out = bytearray()
    position = 0
    for chunk in iter_raw(state_dir, raw):
        start = max(offset - position, 0)
        out += chunk[start : start + limit - len(out)]
        position += len(chunk)
        if len(out) == limit:
            break
    return bytes(out)


@lru_cache(maxsize=256)
def _verify(path: Path, sha256: str, _inode: int, _size: int, _mtime: int) -> None:
    """Check the content against its hash, once for each state of the file. A failure is not cached."""
    seen = hashlib.sha256()
    for chunk in _decompressed(path):
        seen.update(chunk)
    if seen.hexdigest() != sha256:
        raise unavailable(
            f"The raw output {path} is damaged: its content does not have the hash in its name.",
            "Use the observations of the run, which are stored separately.",
        )


def _decompressed(path: Path) -> Iterator[bytes]:
    """Yield the content of a file in bounded pieces, up to the first damaged byte."""
    inflate = zlib.decompressobj(_GZIP)
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            while data:
                try:
                    chunk = inflate.decompress(data, _CHUNK)
                except zlib.error:
                    return
                if chunk:
                    yield chunk
                data = inflate.unconsumed_tail
        # All input may be consumed before all output was returned.
        while not inflate.eof and (chunk := inflate.decompress(b"", _CHUNK)):
            yield chunk
