"""What Landlock does not look at, closed by a filter of system calls (seccomp(2)).

Landlock says which files can be opened. It lets a process change owner, mode, times and attributes of any file it
can name, connect to any socket that is a file (that of a container engine, say), read its user's keyrings, use System
V and POSIX queues and memory, and set limits and priorities of other processes of its user. None of the tools needs
that: the calls are refused with EPERM, and with EAFNOSUPPORT every family of sockets but IPv4, IPv6, netlink and, with
raw sockets, packet. A socketpair(2) can only be a connected stream, which no address can be given to any more. So are
joining a multicast group, for which the kernel sends packets that no process owns, new namespaces, in which a process
has every capability, the calls that the kernel's defects are reached by (bpf, perf_event_open, userfaultfd), and
io_uring, which makes calls that no filter sees. clone3 is ENOSYS, because a filter cannot see its flags; the C library
then uses clone.
"""

from __future__ import annotations

import errno
import os
import struct

TYPE_CHECKING = False  # importing the name from typing costs the runner as much as all the rest
if TYPE_CHECKING:
    from collections.abc import Iterable

    Instruction = tuple[int, int, int, int]

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000  # linux/seccomp.h
# linux/bpf_common.h: LD|W|ABS, JMP|JEQ|K, JMP|JGE|K, JMP|JSET|K, ALU|AND|K, RET|K
_LOAD, _EQUAL, _AT_LEAST, _ANY_OF, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
# The lower half of an argument, which is all the kernel reads of those looked at (little-endian).
_FIRST, _SECOND, _THIRD = 16, 24, 32
_PR_GET_SECCOMP, _PR_SET_SECCOMP, _MODE_FILTER = 21, 22, 2
_X32 = 0x40000000
_CLONE3 = 435
_NEW_NAMESPACES = 0x7E020000

_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK, _AF_PACKET = 1, 2, 10, 16, 17
_SOCK_STREAM, _SOCK_TYPE_MASK = 1, 0xF
# FS_IOC_SETFLAGS, the same for 32 bits, FS_IOC_FSSETXATTR, FS_IOC_SETVERSION (linux/fs.h).
_FILE_ATTRIBUTES = (0x40086602, 0x40046602, 0x401C5820, 0x40087602)
_SOL_IP, _SOL_IPV6 = 0, 41
# IP_ADD_MEMBERSHIP, IP_ADD_SOURCE_MEMBERSHIP, MCAST_JOIN_GROUP, MCAST_JOIN_SOURCE_GROUP; IPV6_JOIN_GROUP,
# IPV6_JOIN_ANYCAST and the last two (linux/in.h, linux/in6.h).
_JOIN4, _JOIN6 = (35, 39, 42, 46), (20, 27, 42, 46)

# From 424 on the numbers are the same everywhere: io_uring_setup, fchmodat2, setxattrat, removexattrat, file_setattr.
_EVERYWHERE = (425, 452, 463, 466, 469)
# fchmod, fchmodat, fchownat, fchown, utimensat, and set and remove of path, link and descriptor for attributes;
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

# Machine: audit number, the calls refused, and those whose arguments decide: socket, socketpair, setsockopt, ioctl,
# prlimit64 and clone. linux/audit.h and the tables of system calls.
_MACHINES = {
    "x86_64": (0xC000003E, _X86_64, 41, 53, 54, 16, 302, 56),
    "aarch64": (0xC00000B7, _GENERIC, 198, 199, 208, 29, 261, 220),
    "riscv64": (0xC00000F3, _GENERIC, 198, 199, 208, 29, 261, 220),
}


_made: dict[bool, bytes] = {}
"""The filters, once they were made: a runner makes them at its start and hands them down to what it forks."""


def code(*, raw: bool = True) -> bytes:
    """The filter for this machine; empty where its numbers are not known, or the kernel takes no filter.

    ``raw`` leaves packet sockets to those that hold CAP_NET_RAW.
    """
    if raw not in _made:
        _made[raw] = _make(raw=raw)
    return _made[raw]


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
    lines: list[Instruction] = [
        *((_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)),
        (_LOAD, 0, 0, _NUMBER),
        *((_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)),
    ]
    for number in (*refused, *_EVERYWHERE):
        lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    stream = [(_LOAD, 0, 0, _SECOND), (_AND, 0, 0, _SOCK_TYPE_MASK), *_only((_SOCK_STREAM,), errno.EPERM)]
    join4, join6 = ([(_LOAD, 0, 0, _THIRD), *_all_but(options, errno.EPERM)] for options in (_JOIN4, _JOIN6))
    lines += [
        *_call(open_socket, [(_LOAD, 0, 0, _FIRST), *_only(families, errno.EAFNOSUPPORT)]),
        *_call(
            open_pair,
            [
                *((_LOAD, 0, 0, _FIRST), (_EQUAL, 1, 0, _AF_UNIX), (_RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT)),
                *stream,
            ],
        ),
        *_call(
            set_option,
            [(_LOAD, 0, 0, _SECOND), *_call(_SOL_IP, join4), *_call(_SOL_IPV6, join6), (_RETURN, 0, 0, _ALLOW)],
        ),
        *_call(control, [(_LOAD, 0, 0, _SECOND), *_all_but(_FILE_ATTRIBUTES, errno.EPERM)]),
        # The limits of any process but 0, which is the caller itself.
        *_call(set_limit, [(_LOAD, 0, 0, _FIRST), *_only((0,), errno.EPERM)]),
        *_call(
            clone,
            [
                *((_LOAD, 0, 0, _FIRST), (_ANY_OF, 0, 1, _NEW_NAMESPACES)),
                *((_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)),
            ],
        ),
        *((_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS), (_RETURN, 0, 0, _ALLOW)),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _call(loaded: int, body: list[Instruction]) -> list[Instruction]:
    """Run ``body``, which ends by returning, where ``loaded`` is what was loaded last."""
    return [(_EQUAL, 0, len(body), loaded), *body]


def _only(values: Iterable[int], error: int) -> list[Instruction]:
    """Let the call pass where one of the values is loaded, else refuse it."""
    return _split(tuple(values), _ALLOW, _ERRNO | error)


def _all_but(values: Iterable[int], error: int) -> list[Instruction]:
    """Refuse the call where one of the values is loaded, else let it pass."""
    return _split(tuple(values), _ERRNO | error, _ALLOW)


def _split(values: tuple[int, ...], found: int, otherwise: int) -> list[Instruction]:
    tests = [(_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]
    return [*tests, (_RETURN, 0, 0, otherwise), (_RETURN, 0, 0, found)]


def restrict(filter_code: bytes) -> None:
    """Hold this process and all it starts to the filter that `code` made. Needs no_new_privs. Raises OSError."""
    from mcp_server.sandbox.syscalls import prctl_program

    if filter_code:
        prctl_program(_PR_SET_SECCOMP, _MODE_FILTER, filter_code)
