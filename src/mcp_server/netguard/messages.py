"""Messages between the server and its guard helper, over a pair of connected SOCK_SEQPACKET sockets.

The server sends requests, and the guard helper replies. A request is one of a few words and a number. It contains no
path, address or argument, so a compromised server can make the guard helper do nothing but what the operator's files
say. File descriptors are passed from the guard helper to the server only.
"""

from __future__ import annotations

import array
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final

from mcp_server.errors import ERRORS, NetworkToolsError, PlatformError
from mcp_server.netguard import GuardReading

_MAX_REQUEST: Final = 128
"""Bytes of the longest request. A longer one is ignored."""
_MAX_REPLY: Final = 64 * 1024
_MAX_DESCRIPTORS: Final = 4

LISTENER: Final = "listener"
"""Name of a passed descriptor: the listening socket of the HTTP interfaces."""
LOOPBACK: Final = "loopback"
"""Name of a passed descriptor: the control socket of the loopback runner."""


class RequestKind(StrEnum):
    """The kinds of request."""

    HELLO = "hello"
    READ = "read"
    RELOAD = "reload"


@dataclass(frozen=True, slots=True)
class HelperRequest:
    """A request. Its reply has the same number."""

    number: int
    kind: RequestKind

    def encode(self) -> bytes:
        """Return the datagram of this request."""
        return json.dumps([self.number, self.kind.value], separators=(",", ":")).encode()


@dataclass(slots=True)
class HelperReply:
    """A reply: a body or an error, and descriptors by name."""

    number: int
    body: dict[str, Any] = field(default_factory=dict)
    error: dict[str, str] | None = None
    descriptors: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of_reading(cls, number: int, reading: GuardReading, more: Mapping[str, Any] | None = None) -> HelperReply:
        """Return the reply with a reading, and with the fields ``more`` in its body."""
        return cls(number, {**(more or {}), "reading": asdict(reading)})

    @classmethod
    def of_error(cls, number: int, error: NetworkToolsError) -> HelperReply:
        """Return the reply that reports ``error``."""
        return cls(number, error={"code": error.code, "message": error.message, "hint": error.hint})

    def reading(self) -> GuardReading:
        """Return the reading in the body. Raises PlatformError ``guard_unavailable`` if there is none."""
        try:
            return GuardReading(**self.body["reading"])
        except (KeyError, TypeError) as error:
            raise PlatformError(
                "The guard helper's reply has no reading of the guard.", code="guard_unavailable"
            ) from error

    def raise_for_error(self) -> None:
        """Raise the reported error as a PlatformError, if there is one."""
        if self.error is None:
            return
        code = self.error.get("code", "")
        raise PlatformError(
            self.error.get("message", "The guard helper reported an error without a message."),
            code=code if code in ERRORS else "guard_unavailable",
            hint=self.error.get("hint"),
        )


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets: the guard helper's and the server's."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def receive_request(channel: socket.socket) -> HelperRequest | None:
    """Return the next request, or None for an invalid datagram, which gets no reply.

    This has no buffer for ancillary data, so the kernel closes descriptors that the server passes. Raises EOFError at
    the end of file.
    """
    data, _, flags, _ = channel.recvmsg(_MAX_REQUEST)
    if not data:
        raise EOFError
    if flags & socket.MSG_TRUNC:
        return None
    try:
        match json.loads(data):
            case [int() as number, str() as word] if not isinstance(number, bool) and 0 <= number < 2**53:
                return HelperRequest(number, RequestKind(word))
            case _:
                return None
    except (ValueError, RecursionError):
        return None


def send_reply(channel: socket.socket, reply: HelperReply) -> bool:
    """Send a reply without waiting. Return False if the other side does not read or is gone."""
    names = list(reply.descriptors)
    document = {"number": reply.number, "body": reply.body, "error": reply.error, "descriptors": names}
    data = json.dumps(document, separators=(",", ":")).encode()
    rights = array.array("i", reply.descriptors.values())
    # socket.send_fds ignores its flags.
    try:
        channel.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else [], socket.MSG_DONTWAIT)
    except OSError:
        return False
    return True


def receive_reply(channel: socket.socket) -> HelperReply:
    """Return the next reply. The caller must close its descriptors.

    Raises EOFError at the end of file, and PlatformError if the reply cannot be parsed.
    """
    # No check of the flags: a truncated document cannot be parsed, and truncated descriptors do not match their names.
    data, ancillary, _, _ = channel.recvmsg(
        _MAX_REPLY, socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
    )
    received = _descriptors(ancillary)
    if not data:
        raise EOFError
    try:
        document = json.loads(data)
        descriptors = dict(zip(document["descriptors"], received, strict=True))
        return HelperReply(document["number"], document["body"], document["error"], descriptors)
    except (ValueError, KeyError, TypeError) as error:
        for descriptor in received:
            socket.close(descriptor)
        raise PlatformError(f"The guard helper's reply cannot be parsed: {error}.", code="guard_unavailable") from error


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)
