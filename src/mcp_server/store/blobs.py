"""Raw output: compressed while it streams, named by the hash of what it holds, kept once.

While a run is under way its bytes go to ``raw/spool/RUN.gz``; when it ends the file is renamed to
``raw/ab/cdef….gz`` after the SHA-256 of the uncompressed bytes. Everything written can be read back from the
spool at any moment, also when the process was killed: `adopt_spool` does that. All functions here block; call
those that read or adopt in a thread.
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
"""Where raw output lies while its run goes on, below the state folder."""
READ_LIMIT_MAX = 16 * 1024 * 1024
_CHUNK = 256 * 1024
_GZIP = 31  # zlib's window bits for a gzip header and trailer
_FAST = 1  # a third of the time of the default level, for a tenth more bytes of XML
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


def blob_path(state_dir: Path, sha256: str) -> Path:
    """Where the content of that hash lies."""
    return state_dir / "raw" / sha256[:2] / f"{sha256[2:]}.gz"


def _spool_path(state_dir: Path, run_id: str) -> Path:
    # Run ids are opaque: one that is no plain file name is replaced by its hash.
    name = run_id if _PLAIN_NAME.fullmatch(run_id) else hashlib.sha256(run_id.encode()).hexdigest()
    return state_dir / SPOOL / f"{name}.gz"


class RawSpool:
    """Takes the raw output of one run, at most ``max_bytes`` of it before compression.

    Not for several threads. After an error nothing more is taken; `finish` then keeps what was written before.
    """

    def __init__(self, state_dir: Path, run_id: str, max_bytes: int) -> None:
        """Make the file; raise PlatformError where that is not possible."""
        self._state_dir = state_dir
        self._run_id = run_id
        self._path = _spool_path(state_dir, run_id)
        self._room = max_bytes
        self._size = 0
        self._truncated = False
        self._failed = False
        self._hash = hashlib.sha256()
        self._compress = zlib.compressobj(_FAST, zlib.DEFLATED, _GZIP)
        try:
            make_private(self._path.parent)
            self._fd: int | None = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with suppress(BlockingIOError):  # it only says that somebody is here, see `leftovers.py`
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise explain_os_error(error, str(self._path)) from error

    @property
    def truncated(self) -> bool:
        """Whether the cap was reached and bytes were left out."""
        return self._truncated

    def write(self, data: bytes) -> None:
        """Append ``data``; what passes the cap is dropped. Raises PlatformError (``disk_full``) once, then drops."""
        if self._fd is None or self._failed:
            return
        if len(data) > self._room:
            data = data[: self._room]
            self._truncated = True
        if not data:
            return
        self._room -= len(data)
        # Flushed at every write: a tool may say little and then be silent for minutes, and be killed in them.
        self._put(self._compress.compress(data) + self._compress.flush(zlib.Z_SYNC_FLUSH))
        self._hash.update(data)
        self._size += len(data)

    def finish(self) -> Raw:
        """Close the file and move it to its place by hash; raise PlatformError where that is not possible.

        The spool stays where this fails, and `adopt_spool` can be tried again.
        """
        if self._failed:
            self._close()
            raw = adopt_spool(self._state_dir, self._run_id)
            return raw or Raw(hashlib.sha256().hexdigest(), 0, 0, truncated=True)
        if self._fd is None:
            raise PlatformError(f"the raw output of run {self._run_id!r} is closed", code="internal_error")
        self._put(self._compress.flush())
        self._close()
        sha256 = self._hash.hexdigest()
        final = blob_path(self._state_dir, sha256)
        try:
            make_private(final.parent)
            stored = self._path.stat().st_size
            # Replaces a file of the same content, which also mends one that was damaged.
            self._path.replace(final)
        except OSError as error:
            self._failed = True
            raise explain_os_error(error, str(final)) from error
        return Raw(sha256, self._size, stored, self._truncated)

    def abort(self) -> None:
        """Forget what was written; safe to call at any time, also after `finish`."""
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
    """Keep what a run left in its spool, marked truncated, or return None where it left nothing.

    Raises PlatformError where it cannot be kept; the spool stays then.
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

    The whole content is checked against its hash before the first piece, the first time it is read. Raises
    PlatformError where the file is missing or is not what was kept.
    """
    path = blob_path(state_dir, raw.sha256)
    try:
        status = path.stat()
        _verify(path, raw.sha256, status.st_ino, status.st_size, status.st_mtime_ns)
        yield from _decompressed(path)
    except OSError as error:
        raise explain_os_error(error, f"raw output {path}") from error


def read_raw(state_dir: Path, raw: Raw, offset: int, limit: int) -> bytes:
    """Return ``limit`` bytes (1 to 16 MiB) of the uncompressed content from ``offset`` on; fewer at its end.

    Everything before ``offset`` is decompressed again. Raises ArgumentError for bounds and PlatformError as
    `iter_raw` does.
    """
    if offset < 0:
        raise ArgumentError(f"offset {offset} is negative", parameter="offset")
    if not 1 <= limit <= READ_LIMIT_MAX:
        raise ArgumentError(f"limit {limit} is not from 1 to {READ_LIMIT_MAX} bytes", parameter="limit")
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
    """Read the content through once for each state of its file; an error is not remembered."""
    seen = hashlib.sha256()
    for chunk in _decompressed(path):
        seen.update(chunk)
    if seen.hexdigest() != sha256:
        raise unavailable(
            f"raw output {path} is damaged: its content has another hash than its name",
            "The run's observations are kept apart from it and still hold.",
        )


def _decompressed(path: Path) -> Iterator[bytes]:
    """What can be decompressed of a file, in bounded pieces; a cut or damaged end just ends it."""
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
        # All input may be taken in before all output has been given out.
        while not inflate.eof and (chunk := inflate.decompress(b"", _CHUNK)):
            yield chunk
