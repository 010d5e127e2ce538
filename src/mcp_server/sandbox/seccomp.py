"""A system call filter (seccomp(2)) for the actions that Landlock does not cover.

Landlock restricts which files can be opened. It does not restrict changes to the owner, mode, times or attributes of a
file, connections to sockets in the file system (such as a container engine's), the user's keyrings, System V and POSIX
queues and shared memory, or limits and priorities of the user's other processes. No tool needs any of these, so the
filter refuses these calls with EPERM.

The filter refuses further calls:

- A socket of a family other than IPv4, IPv6, netlink and, with raw sockets, packet gives EAFNOSUPPORT.
- socketpair(2) can only make connected streams, because a datagram socket of a pair can still be given an address.
- Joining a multicast group gives EPERM, because the kernel then sends packets that belong to no process.
- New namespaces give EPERM, because a process has every capability in a user namespace that it creates.
- bpf, perf_event_open and userfaultfd give EPERM, because exploits of kernel defects use them.
- io_uring gives EPERM, because it makes calls that no filter sees.
- clone3 gives ENOSYS, because a filter cannot read its flags. The C library then uses clone.

The functions for building a filter are also used by `mcp_server.netguard.syscall_filter`.
"""

from __future__ import annotations

import os
import struct
from errno import EAFNOSUPPORT, ENOSYS, EPERM

TYPE_CHECKING = False  # importing it from typing would double the start time of the runner
if TYPE_CHECKING:
    from collections.abc import Iterable

    Instruction = tuple[int, int, int, int]
    """Operation, jump if true, jump if false (both count the instructions to skip), and value."""

KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000  # linux/seccomp.h
# linux/bpf_common.h: LD|W|ABS, JMP|JEQ|K, JMP|JGE|K, JMP|JSET|K, ALU|AND|K, RET|K
_LOAD, _EQUAL, _AT_LEAST, _ANY_OF, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
# Offsets of the lower halves of three arguments (little-endian). The kernel ignores the upper halves of these.
FIRST, SECOND, THIRD = 16, 24, 32
_PR_GET_SECCOMP, _PR_SET_SECCOMP, _MODE_FILTER = 21, 22, 2
_X32 = 0x40000000
_CLONE3 = 435
_NEW_NAMESPACES = 0x7E020000

_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK, _AF_PACKET = 1, 2, 10, 16, 17
_SOCK_STREAM, _SOCK_TYPE_MASK = 1, 0xF
# FS_IOC_SETFLAGS, its 32-bit form, FS_IOC_FSSETXATTR, FS_IOC_SETVERSION (linux/fs.h).
_FILE_ATTRIBUTES = (0x40086602, 0x40046602, 0x401C5820, 0x40087602)
_SOL_IP, _SOL_IPV6 = 0, 41
# IP_ADD_MEMBERSHIP, IP_ADD_SOURCE_MEMBERSHIP, MCAST_JOIN_GROUP, MCAST_JOIN_SOURCE_GROUP; IPV6_JOIN_GROUP,
# IPV6_JOIN_ANYCAST and the last two (linux/in.h, linux/in6.h).
_JOIN4, _JOIN6 = (35, 39, 42, 46), (20, 27, 42, 46)

# From 424, the numbers are the same on every machine: io_uring_setup, fchmodat2, setxattrat, removexattrat,
# file_setattr.
_EVERYWHERE = (425, 452, 463, 466, 469)
# fchmod, fchmodat, fchownat, fchown, utimensat, and setting and removing attributes by path, link and descriptor;
# unshare, setns; add_key, request_key, keyctl; bpf, perf_event_open, userfaultfd; mq_open, mq_unlink, msgget to shmat;
# setpriority, sched_setparam, sched_setscheduler, sched_setaffinity, sched_setattr, ioprio_set.
_GENERIC = (
    *(52, 53, 54, 55, 88, 5, 6, 7, 14, 15, 16, 97, 268, 217, 218, 219, 280, 241, 282),
    *(180, 181, *range(186, 197)),
    *(140, 118, 119, 122, 274, 30),
)
# chmod, fchmod, chown, fchown, lchown, utime, attributes as above, utimes, fchownat, futimesat, fchmodat, utimensat;
# the others as above, with shmget, shmat, shmctl, semget, semop, semctl, msgget to msgctl, semtimedop among the queues.
_X86_64 = (
    *(90, 91, 92, 93, 94, 132, 188, 189, 190, 197, 198, 199, 235, 260, 261, 268, 280),
    *(272, 308, 248, 249, 250, 321, 298, 323),
    *(240, 241, 29, 30, 31, 64, 65, 66, 68, 69, 70, 71, 220),
    *(141, 142, 144, 203, 314, 251),
)

# By machine: the audit number, the refused calls, and the calls that are decided by their arguments: socket,
# socketpair, setsockopt, ioctl, prlimit64 and clone. Sources: linux/audit.h and the tables of system calls.
_MACHINES = {
    "x86_64": (0xC000003E, _X86_64, 41, 53, 54, 16, 302, 56),
    "aarch64": (0xC00000B7, _GENERIC, 198, 199, 208, 29, 261, 220),
    "riscv64": (0xC00000F3, _GENERIC, 198, 199, 208, 29, 261, 220),
}


_filters: dict[bool, bytes] = {}
"""The filters made so far. The runner makes both at its start, and the processes that it forks inherit them."""


def program_filter(*, raw: bool = True) -> bytes:
    """Return the filter for programs on this machine.

    It is empty if the machine's call numbers are not known here or the kernel does not support filters. ``raw`` allows
    packet sockets, which a process can open only with CAP_NET_RAW.
    """
    if raw not in _filters:
        _filters[raw] = _make(raw=raw)
    return _filters[raw]


def restrict(filter_code: bytes) -> None:
    """Apply a filter to this process and its descendants. An empty one does nothing. Raises OSError.

    This needs no_new_privs.
    """
    from mcp_server.sandbox.syscalls import prctl_filter

    if filter_code:
        prctl_filter(_PR_SET_SECCOMP, _MODE_FILTER, filter_code)


def _make(*, raw: bool) -> bytes:
    from mcp_server.sandbox.syscalls import prctl

    machine = _MACHINES.get(os.uname().machine)
    try:
        prctl(_PR_GET_SECCOMP)
    except OSError:
        return b""
    if machine is None:
        return b""
    architecture, refused, open_socket, open_pair, set_option, control, set_limit, clone = machine
    families = (_AF_INET, _AF_INET6, _AF_NETLINK, *((_AF_PACKET,) if raw else ()))
    stream = [load(SECOND), (_AND, 0, 0, _SOCK_TYPE_MASK), *allow_only((_SOCK_STREAM,), EPERM)]
    join4, join6 = ([load(THIRD), *refuse(options, EPERM)] for options in (_JOIN4, _JOIN6))
    return assemble(
        [
            *prologue(architecture, x32=KILL),
            *(instruction for number in (*refused, *_EVERYWHERE) for instruction in refuse_call(number, EPERM)),
            *if_equal(open_socket, [load(FIRST), *allow_only(families, EAFNOSUPPORT)]),
            *if_equal(
                open_pair,
                [load(FIRST), (_EQUAL, 1, 0, _AF_UNIX), (_RETURN, 0, 0, fail(EAFNOSUPPORT)), *stream],
            ),
            *if_equal(set_option, [load(SECOND), *if_equal(_SOL_IP, join4), *if_equal(_SOL_IPV6, join6), allow()]),
            *if_equal(control, [load(SECOND), *refuse(_FILE_ATTRIBUTES, EPERM)]),
            # A process may set its own limits (pid 0) and those of no other process.
            *if_equal(set_limit, [load(FIRST), *allow_only((0,), EPERM)]),
            *if_equal(
                clone,
                [load(FIRST), (_ANY_OF, 0, 1, _NEW_NAMESPACES), (_RETURN, 0, 0, fail(EPERM)), allow()],
            ),
            *refuse_call(_CLONE3, ENOSYS),
            allow(),
        ]
    )


def assemble(instructions: Iterable[Instruction]) -> bytes:
    """Encode instructions as struct sock_filter (linux/filter.h), eight bytes each."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def prologue(architecture: int, *, x32: int) -> list[Instruction]:
    """Kill a process of a wrong architecture, return ``x32`` for calls of the x32 ABI, and load the call's number."""
    return [
        *((_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, KILL)),
        (_LOAD, 0, 0, _NUMBER),
        *((_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, x32)),
    ]


def load(offset: int) -> Instruction:
    """Load the word at an offset of struct seccomp_data."""
    return (_LOAD, 0, 0, offset)


def allow() -> Instruction:
    """Allow the call."""
    return (_RETURN, 0, 0, _ALLOW)


def fail(error: int) -> int:
    """Return the value with which a filter makes a call fail with this errno."""
    return _ERRNO | error


def refuse_call(number: int, error: int) -> list[Instruction]:
    """Refuse the call if its number, which was loaded last, is ``number``."""
    return if_equal(number, [(_RETURN, 0, 0, fail(error))])


def if_equal(value: int, body: list[Instruction]) -> list[Instruction]:
    """Run ``body`` if the word that was loaded last is ``value``. Every path through ``body`` must return."""
    return [(_EQUAL, 0, len(body), value), *body]


def allow_only(values: Iterable[int], error: int) -> list[Instruction]:
    """Allow the call if the word that was loaded last is one of ``values``, and refuse it otherwise."""
    return _split(tuple(values), _ALLOW, fail(error))


def refuse(values: Iterable[int], error: int) -> list[Instruction]:
    """Refuse the call if the word that was loaded last is one of ``values``, and allow it otherwise."""
    return _split(tuple(values), fail(error), _ALLOW)


def _split(values: tuple[int, ...], found: int, otherwise: int) -> list[Instruction]:
    tests = [(_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]
    return [*tests, (_RETURN, 0, 0, otherwise), (_RETURN, 0, 0, found)]
