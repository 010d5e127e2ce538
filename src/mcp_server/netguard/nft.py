"""nftables in one network namespace: loads the ruleset, reads its counters, and checks that nobody changed it.

Scripts are run by libnftables, which is part of every nftables package. The readings before and after each run use a
netlink socket directly, because libnftables first fetches every set. That takes 0.5 s for 100,000 networks.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Final

from mcp_server.errors import PlatformError
from mcp_server.netguard import GuardReading
from mcp_server.netguard.ruleset import TABLE

_LIBRARY: Final = "libnftables.so.1"
_NETLINK_NETFILTER: Final = 12
_NFNL_SUBSYS_NFTABLES: Final = 10
_NFPROTO_NETDEV: Final = 5
_NFT_OBJECT_COUNTER: Final = 1
# enum nf_tables_msg_types (linux/netfilter/nf_tables.h)
_NEWGEN, _GETGEN, _NEWOBJ, _GETOBJ = 15, 16, 18, 19
_NLM_F_REQUEST, _NLM_F_DUMP, _NLM_F_DUMP_INTR = 0x1, 0x300, 0x10
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_STATELESS, _NUMERIC = 1 << 2, 0xF << 7  # enum nft_output_flags (nftables/libnftables.h)
_TRIES: Final = 5
_SECONDS: Final = 1.0
_CHANGING: Final = "The ruleset of the guard changes while it is read."

# This set lists the neighbors that asked for our address. Packets change it all the time.
_ASKED: Final = re.compile(r"(\n\tset asked6 \{[^{}]*?)\t\telements = \{[^{}]*\}\n")


class Nft:
    """nftables of the network namespace that the calling thread is in when it creates this object.

    Raises PlatformError ``guard_unavailable`` if libnftables is missing or this process may not change the namespace.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: tuple[str, int] | None = None
        self._sequence = 0
        self._library = _load_library()
        self._context = ctypes.c_void_p(self._library.nft_ctx_new(0))
        if not self._context:
            raise _unavailable("libnftables cannot open a netlink socket.")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_output_set_flags(self._context, ctypes.c_uint(_STATELESS | _NUMERIC))
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        self._socket.settimeout(_SECONDS)
        self._socket.bind((0, 0))

    def run(self, script: str) -> str:
        """Run a script as one transaction, and return the output of nft.

        If the guard's table exists afterwards, the ruleset is now the one that `read` compares with. Raises
        PlatformError ``guard_unavailable`` with the error of nft. It is also raised, before the script is run, if
        another program has changed the ruleset.
        """
        with self._lock:
            if self._loaded is not None:
                self._check(self._generation())
            printed = self._command(script)
            self._loaded = self._fingerprint() if self._holds_guard() else None
            return printed

    def read(self) -> GuardReading:
        """Return the hash and the counters of the ruleset. This takes 0.13 ms, whatever the size of the sets.

        The ruleset is listed only if the kernel's generation number has changed. Raises PlatformError
        ``guard_unavailable`` if the ruleset is gone or was changed.
        """
        with self._lock:
            if self._loaded is None:
                raise _unavailable("No ruleset has been loaded.")
            generation = self._generation()
            self._check(generation)
            counters = self._counters()
            if self._generation() != generation:
                self._check(self._generation())
            return GuardReading(
                ruleset=self._loaded[0],
                generation=self._loaded[1],
                passed=sum(count for name, count in counters.items() if name.startswith("pass_")),
                drops={name.removeprefix("drop_"): n for name, n in counters.items() if name.startswith("drop_")},
            )

    def counters(self) -> dict[str, int]:
        """Return packets by counter. Unlike a reading, this includes ``quiet_*`` and ``held``."""
        with self._lock:
            return self._counters()

    def holds(self, name: str, element: str) -> bool:
        """Return whether a set of the guard has an element, in the notation of `ruleset`."""
        with self._lock:
            try:
                self._command(f"get element netdev {TABLE} {name} {{ {element} }}")
            except PlatformError:
                return False
            return True

    def generation(self) -> int:
        """Return the kernel's number of the last change to nftables in this namespace."""
        with self._lock:
            return self._generation()

    def table(self, family: str, name: str) -> str:
        """Return a table as nft lists it, without counts, or an empty string if it does not exist."""
        with self._lock:
            if f"table {family} {name}" not in self._command(f"list tables {family}").splitlines():
                return ""
            return self._command(f"list table {family} {name}")

    def close(self) -> None:
        """Close the sockets. The ruleset stays."""
        with self._lock:
            if self._context:
                self._library.nft_ctx_free(self._context)
                self._context = ctypes.c_void_p()
            self._socket.close()

    def _check(self, generation: int) -> None:
        """Raise PlatformError unless the ruleset is the loaded one; ``generation`` is the present one."""
        if self._loaded is None or generation == self._loaded[1]:
            return
        ruleset, generation = self._fingerprint()
        if ruleset != self._loaded[0]:
            gone = f"table netdev {TABLE} " not in self._command("list tables netdev").replace("\n", " ") + " "
            raise _unavailable(
                "The ruleset of the guard is gone."
                if gone
                else "The ruleset of the guard is not the one that was loaded."
            )
        self._loaded = (ruleset, generation)

    def _holds_guard(self) -> bool:
        return f"table netdev {TABLE}" in self._command("list tables netdev").splitlines()

    def _fingerprint(self) -> tuple[str, int]:
        """Return the SHA-256 of all nftables rules and sets in the namespace, without counts, and their generation."""
        for _ in range(_TRIES):
            generation = self._generation()
            listing = _ASKED.sub(r"\1", self._command("list ruleset"))
            if self._generation() == generation:
                return hashlib.sha256(listing.encode()).hexdigest(), generation
        raise _unavailable(_CHANGING)

    def _command(self, script: str) -> str:
        if not self._context:
            raise _unavailable("The guard's connection to nftables is closed.")
        failed = self._library.nft_run_cmd_from_buffer(self._context, script.encode())
        printed: bytes = self._library.nft_ctx_get_output_buffer(self._context)
        message: bytes = self._library.nft_ctx_get_error_buffer(self._context)
        if failed:
            raise _unavailable(
                f"nftables refused the script: {' '.join(message.decode(errors='replace').split())[:500]}."
            )
        return printed.decode(errors="replace")

    def _generation(self) -> int:
        for kind, body in self._request(_GETGEN, 0, b""):
            if kind == _NEWGEN and (number := _attributes(body).get(1)) is not None:
                return int.from_bytes(number, "big")
        raise _unavailable("The kernel did not send the generation number of the ruleset.")

    def _counters(self) -> dict[str, int]:
        wanted = _attribute(1, TABLE.encode() + b"\0") + _attribute(3, _NFT_OBJECT_COUNTER.to_bytes(4, "big"))
        counts: dict[str, int] = {}
        for kind, body in self._request(_GETOBJ, _NLM_F_DUMP, wanted):
            if kind == _NEWOBJ:
                found = _attributes(body)
                if found[1].rstrip(b"\0") == TABLE.encode():
                    packets = _attributes(found[4], skip=0)[2]
                    counts[found[2].rstrip(b"\0").decode()] = int.from_bytes(packets, "big")
        return counts

    def _request(self, kind: int, flags: int, attributes: bytes) -> list[tuple[int, bytes]]:
        """Return the replies to a netlink request, as pairs of message type and body."""
        for _ in range(_TRIES):
            try:
                replies = self._exchange(kind, flags, attributes)
            except OSError as error:
                raise _unavailable(f"The kernel did not send the ruleset: {error.strerror or error}.") from error
            if replies is not None:
                return replies
        raise _unavailable(_CHANGING)

    def _exchange(self, kind: int, flags: int, attributes: bytes) -> list[tuple[int, bytes]] | None:
        """Return the replies, or None if the ruleset changed in the meantime."""
        self._sequence += 1
        body = struct.pack(">BBH", _NFPROTO_NETDEV, 0, 0) + attributes
        head = struct.pack(
            "=IHHII", 16 + len(body), _NFNL_SUBSYS_NFTABLES << 8 | kind, _NLM_F_REQUEST | flags, self._sequence, 0
        )
        self._socket.send(head + body)
        replies: list[tuple[int, bytes]] = []
        interrupted = False
        while True:
            for message, marks, sequence, content in _messages(self._socket.recv(1 << 16)):
                if sequence != self._sequence:
                    continue
                interrupted |= bool(marks & _NLM_F_DUMP_INTR)
                if message == _NLMSG_ERROR:
                    number = -int.from_bytes(content[:4], "little", signed=True)
                    raise OSError(number, os.strerror(number))
                if message == _NLMSG_DONE:
                    return None if interrupted else replies
                replies.append((message & 0xFF, content))
                if not flags:
                    return replies


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield the type, flags, sequence number and body of each netlink message."""
    while len(data) >= 16:
        length, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data)
        if not 16 <= length <= len(data):
            return
        yield kind, flags, sequence, data[16:length]
        data = data[(length + 3) & ~3 :]


def _attributes(body: bytes, skip: int = 4) -> dict[int, bytes]:
    """Return netlink attributes by type; ``skip`` is the length of the header before them."""
    found: dict[int, bytes] = {}
    at = skip
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = body[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _load_library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise PlatformError(
            f"{_LIBRARY}, which loads the guard's ruleset, is not installed.",
            code="guard_unavailable",
            hint="Install nftables, on Debian or Ubuntu with 'sudo apt-get install nftables'. Its library is "
            "in the package libnftables1.",
        ) from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    return library


def _unavailable(message: str) -> PlatformError:
    return PlatformError(message, code="guard_unavailable")
