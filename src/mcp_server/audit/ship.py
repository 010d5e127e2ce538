"""Sending a checkpoint to where this server cannot take it back: the system log, or a file elsewhere."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Final

from mcp_server.audit.files import open_regular
from mcp_server.audit.notes import as_log_line

SYSLOG_SOCKET: Final = Path("/dev/log")
_AUTHPRIV_NOTICE: Final = 10 * 8 + 5
_PATIENCE_SEC: Final = 2.0


def ship(note: str, ship_to: str, syslog: Path = SYSLOG_SOCKET) -> None:
    """Send one note to ``syslog`` or append it to the file of this absolute path; raises OSError.

    To syslog it goes as one line in the form local daemons read (``<PRI>TAG[PID]: TEXT``, RFC 3164), with the facility
    authpriv, which most keep out of files that everybody can read.
    """
    if ship_to == "syslog":
        _to_syslog(f"<{_AUTHPRIV_NOTICE}>mcp-network-tools[{os.getpid()}]: {as_log_line(note)}".encode(), syslog)
    elif ship_to:
        append_text(Path(ship_to), note)


def append_text(path: Path, note: str) -> int:
    """Append a note to a file of notes, synced, mode 0600 if it is made; returns the file's new size. Raises OSError.

    A blank line stands between notes, also after one that a crash cut off. Where it does not fit, the file is left as
    it was.
    """
    descriptor = open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        size = os.fstat(descriptor).st_size
        data = (
            b"\n\n" if size and os.pread(descriptor, 1, size - 1) != b"\n" else b"\n" if size else b""
        ) + note.encode()
        if os.write(descriptor, data) != len(data):
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
        return size + len(data)
    finally:
        os.close(descriptor)


def _to_syslog(message: bytes, path: Path) -> None:
    for kind, end in ((socket.SOCK_DGRAM, b""), (socket.SOCK_STREAM, b"\0")):
        with socket.socket(socket.AF_UNIX, kind) as link:
            link.settimeout(_PATIENCE_SEC)
            try:
                link.connect(str(path))
            except OSError as error:
                if error.errno == errno.EPROTOTYPE and kind == socket.SOCK_DGRAM:
                    continue
                raise
            link.sendall(message + end)
            return
