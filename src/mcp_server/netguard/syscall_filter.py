"""A system call filter that closes the ways past the packet filter.

With CAP_NET_RAW alone, a process has three ways to send a frame past the ruleset. Each was seen to work on Linux 6.18:

- An AF_XDP socket passes frames to the driver, and no egress hook sees them.
- For a packet socket with PACKET_VNET_HDR, the kernel writes a checksum after the hook, at an offset that the sender
  chooses. This can overwrite the destination address.
- A packet socket with PACKET_TX_RING sends from memory that the sender can change while the frame is being sent.

io_uring could make the same calls unseen by the filter, and so could a 32-bit program.
"""

from __future__ import annotations

import platform
import resource
import socket
from errno import ENOSYS, EPERM
from typing import Final

from mcp_server.errors import PlatformError
from mcp_server.sandbox import seccomp, syscalls

_AF_XDP, _SOL_PACKET = 44, 263
_RING_AND_HEADER: Final = (13, 15, 24)  # PACKET_TX_RING, PACKET_VNET_HDR, PACKET_VNET_HDR_SZ (linux/if_packet.h)
_IO_URING_SETUP: Final = 425

# By machine: audit number, socket(2), setsockopt(2). Sources: linux/audit.h and the tables of system calls.
_MACHINES: Final = {
    "x86_64": (0xC000003E, 41, 54),
    "aarch64": (0xC00000B7, 198, 208),
    "riscv64": (0xC00000F3, 198, 208),
}


def restrict_raw_sockets() -> None:
    """Give up the sockets that bypass the ruleset, for this process and its descendants.

    Call this in the process that becomes the server, while it has one thread and before execve(2). It sets no_new_privs
    and allows no locked memory, which AF_XDP needs too. Raises PlatformError ``guard_unavailable`` if the kernel does
    not support the filter or this machine's call numbers are not known here.
    """
    filter_code = _filter(platform.machine())
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    try:
        syscalls.no_new_privileges()
        seccomp.restrict(filter_code)
    except OSError as error:
        raise _unavailable(str(error.strerror)) from error
    try:
        socket.socket(_AF_XDP, socket.SOCK_RAW, 0).close()
    except OSError as error:
        if error.errno == EPERM:
            return
    raise _unavailable("it is not in force")


def _filter(machine: str) -> bytes:
    if machine not in _MACHINES:
        raise _unavailable(f"the system call numbers of {machine} are not known")
    architecture, open_socket, set_option = _MACHINES[machine]
    packet_option = [seccomp.load(seccomp.THIRD), *seccomp.refuse(_RING_AND_HEADER, EPERM)]
    return seccomp.assemble(
        [
            *seccomp.prologue(architecture, x32=seccomp.fail(ENOSYS)),
            *seccomp.refuse_call(_IO_URING_SETUP, EPERM),
            *seccomp.if_equal(open_socket, [seccomp.load(seccomp.FIRST), *seccomp.refuse((_AF_XDP,), EPERM)]),
            *seccomp.if_equal(
                set_option,
                [seccomp.load(seccomp.SECOND), *seccomp.if_equal(_SOL_PACKET, packet_option), seccomp.allow()],
            ),
            seccomp.allow(),
        ]
    )


def _unavailable(why: str) -> PlatformError:
    return PlatformError(
        f"The guard's system call filter cannot be set: {why}.",
        code="guard_unavailable",
        hint="Use a kernel with CONFIG_SECCOMP_FILTER. Without the filter, a raw socket can send past the guard.",
    )
