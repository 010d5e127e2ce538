"""The ways past a packet filter that only a system call filter closes.

CAP_NET_RAW alone is enough for three of them, each seen to work against the ruleset on Linux 6.18:

- An AF_XDP socket hands frames to the driver; no egress hook sees them.
- A packet socket with PACKET_VNET_HDR has the kernel write a checksum after the hook, at an offset of the sender's
  choice: over the destination address, say.
- A packet socket with PACKET_TX_RING sends from memory that the sender can write to while the frame is on its way.

io_uring would make the same calls out of sight of the filter, and so would a 32-bit program.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import socket
import struct
from typing import Final

from mcp_server.errors import PlatformError

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_AF_XDP, _SOL_PACKET = 44, 263
_TX_RING, _VNET_HDR, _VNET_HDR_SZ = 13, 15, 24  # linux/if_packet.h
_IO_URING_SETUP: Final = 425
_X32: Final = 0x40000000

# Machine: audit number, socket(2), setsockopt(2). linux/audit.h and the tables of system calls.
_MACHINES: Final = {
    "x86_64": (0xC000003E, 41, 54),
    "aarch64": (0xC00000B7, 198, 208),
    "riscv64": (0xC00000F3, 198, 208),
}

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000  # linux/seccomp.h
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h: LD|W|ABS, JMP|JEQ|K, JMP|JGE|K, RET|K
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND, _THIRD = 0, 4, 16, 24, 32  # offsets in struct seccomp_data, low words


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def confine() -> None:
    """Give up, for this process and all it will start, the sockets that reach the wire past the guard.

    To be called in the process that becomes the server, without threads, before its program is executed. Sets
    no_new_privs and allows no locked memory, which AF_XDP needs too. PlatformError ``guard_unavailable`` where the
    kernel or this machine has no such filter.
    """
    code = _code(platform.machine())
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(code) // 8, code)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0
    ):
        raise _unavailable(os.strerror(ctypes.get_errno()))
    check_confined()


def check_confined() -> None:
    """Raise PlatformError ``guard_unavailable`` unless the filter holds in this process."""
    try:
        socket.socket(_AF_XDP, socket.SOCK_RAW, 0).close()
    except OSError as error:
        if error.errno == errno.EPERM:
            return
    raise _unavailable("it is not in force")


def _code(machine: str) -> bytes:
    if machine not in _MACHINES:
        raise _unavailable(f"the numbers of {machine}'s system calls are not known to this version")
    architecture, open_socket, set_option = _MACHINES[machine]
    refuse, allow, other_table = 1, 2, 3  # places to jump to, replaced by distances below
    instructions: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, -other_table, 0, _X32),
        (_EQUAL, -refuse, 0, _IO_URING_SETUP),
        (_EQUAL, 2, 0, open_socket),
        (_EQUAL, 3, 0, set_option),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _FIRST),
        (_EQUAL, -refuse, -allow, _AF_XDP),
        (_LOAD, 0, 0, _SECOND),
        (_EQUAL, 0, -allow, _SOL_PACKET),
        (_LOAD, 0, 0, _THIRD),
        (_EQUAL, -refuse, 0, _TX_RING),
        (_EQUAL, -refuse, 0, _VNET_HDR),
        (_EQUAL, -refuse, -allow, _VNET_HDR_SZ),
    ]
    executors = {-refuse: len(instructions), -allow: len(instructions) + 1, -other_table: len(instructions) + 2}
    instructions += [
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]

    def distance(at: int, jump: int) -> int:
        return executors[jump] - at - 1 if jump < 0 else jump

    return b"".join(
        struct.pack("=HBBI", operation, distance(at, yes), distance(at, no), value)
        for at, (operation, yes, no, value) in enumerate(instructions)
    )


def _unavailable(why: str) -> PlatformError:
    return PlatformError(
        f"the system call filter that belongs to the guard cannot be set: {why}",
        code="guard_unavailable",
        hint="The kernel needs CONFIG_SECCOMP_FILTER. Without the filter a raw socket can send past the guard.",
    )
