"""The channel between a guard helper and the server it guards: small, typed messages over one SOCK_SEQPACKET pair.

The server asks, the guard helper answers; a request is a word of `Ask` and a number, and nothing else. There is no path,
address or argument in it, so a server that has been taken over can ask the guard helper for nothing but what the owner's
files say. File descriptors travel from the guard helper to the server only.
"""

from __future__ import annotations

import array
import json
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final

from mcp_server.errors import ERRORS, NetworkToolsError, PlatformError
from mcp_server.netguard import GuardReading

MAX_REQUEST: Final = 128
"""Bytes of the longest request; a longer datagram is not read."""
MAX_ANSWER: Final = 64 * 1024
MAX_DESCRIPTORS: Final = 4

LISTENER: Final = "listener"
LOOPBACK: Final = "loopback"
"""Names of the descriptors that travel: the HTTP interfaces' listening socket, and the control of the loopback runner."""


class Ask(StrEnum):
    """What a server can ask."""

    HELLO = "hello"
    READ = "read"
    RELOAD = "reload"


@dataclass(frozen=True, slots=True)
class HelperRequest:
    """One question; its answer carries the same number."""

    number: int
    ask: Ask

    def encode(self) -> bytes:
        """The datagram of this request."""
        return json.dumps([self.number, self.ask.value], separators=(",", ":")).encode()


@dataclass(slots=True)
class HelperReply:
    """An answer: the fields of its kind, or the error that stands in their place, and descriptors by name."""

    number: int
    body: dict[str, Any] = field(default_factory=dict)
    error: dict[str, str] | None = None
    descriptors: dict[str, int] = field(default_factory=dict)

    def reading(self) -> GuardReading:
        """The reading in the body; PlatformError ``guard_unavailable`` where there is none."""
        try:
            return GuardReading(**self.body["reading"])
        except (KeyError, TypeError) as error:
            raise PlatformError("the guard helper's answer holds no reading", code="guard_unavailable") from error


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new channel: the guard helper's and the server's."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def read_request(channel: socket.socket) -> HelperRequest | None:
    """The next request; None for a datagram that is none, which is not answered.

    Raises EOFError at the end of the channel. Without room for ancillary data the kernel closes descriptors that the
    other side sends along.
    """
    data, _, flags, _ = channel.recvmsg(MAX_REQUEST)
    if not data:
        raise EOFError
    if flags & socket.MSG_TRUNC:
        return None
    try:
        match json.loads(data):
            case [int() as number, str() as word] if not isinstance(number, bool) and 0 <= number < 2**53:
                return HelperRequest(number, Ask(word))
            case _:
                return None
    except (ValueError, RecursionError):
        return None


def send_answer(channel: socket.socket, answer: HelperReply) -> bool:
    """Send an answer without waiting; False where the other side does not read, or has gone."""
    names = list(answer.descriptors)
    document = {"number": answer.number, "body": answer.body, "error": answer.error, "descriptors": names}
    data = json.dumps(document, separators=(",", ":")).encode()
    rights = array.array("i", answer.descriptors.values())
    # Not socket.send_fds, which ignores its flags.
    try:
        channel.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else [], socket.MSG_DONTWAIT)
    except OSError:
        return False
    return True


def reading_body(reading: GuardReading) -> dict[str, Any]:
    """The body of an answer to `Ask.READ`."""
    return {"reading": asdict(reading)}


def error_answer(number: int, error: NetworkToolsError) -> HelperReply:
    """The answer that carries ``error``."""
    return HelperReply(number, error={"code": error.code, "message": error.message, "hint": error.hint})


def receive_answer(channel: socket.socket) -> HelperReply:
    """The next answer; the caller owns its descriptors. Raises EOFError at the end, PlatformError for nonsense."""
    # A cut off document does not parse, and descriptors that are cut off do not match their names.
    data, ancillary, _, _ = channel.recvmsg(
        MAX_ANSWER, socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
    )
    received = _descriptors(ancillary)
    if not data:
        raise EOFError
    try:
        document = json.loads(data)
        names = document["descriptors"]
        return HelperReply(
            document["number"], document["body"], document["error"], dict(zip(names, received, strict=True))
        )
    except (ValueError, KeyError, TypeError) as error:
        for descriptor in received:
            socket.close(descriptor)
        raise PlatformError(f"the guard helper's answer cannot be read: {error}", code="guard_unavailable") from error


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def raise_error(answer: HelperReply) -> None:
    """Raise the error an answer carries as PlatformError; return where it carries none."""
    if answer.error is None:
        return
    code = answer.error.get("code", "")
    raise PlatformError(
        answer.error.get("message", "the guard helper gives no reason"),
        code=code if code in ERRORS else "guard_unavailable",
        hint=answer.error.get("hint"),
    )
