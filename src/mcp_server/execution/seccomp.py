"""What Landlock does not look at, closed by a filter of system calls (seccomp(2)).

Landlock says which files can be opened. It lets a process change owner, mode, times and attributes of any file it
can name, connect to any socket that is a file (that of a container engine, say), read its user's keyrings, and set
the limits of other processes of its user. None of the tools needs that: the calls are refused with EPERM, AF_UNIX
with EAFNOSUPPORT. So are new namespaces, in which a process has every capability, the calls that the kernel's defects
are reached by (bpf, perf_event_open, userfaultfd), and io_uring, which makes calls that no filter sees. clone3 is
ENOSYS, because a filter cannot see its flags; the C library then uses clone.
"""

from __future__ import annotations

import errno
import os
import struct

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000  # linux/seccomp.h
# linux/bpf_common.h: LD|W|ABS, JMP|JEQ|K, JMP|JGE|K, JMP|JSET|K, RET|K
_LOAD, _EQUAL, _AT_LEAST, _ANY_OF, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST = 0, 4, 16  # offsets in struct seccomp_data
_PR_GET_SECCOMP, _PR_SET_SECCOMP, _MODE_FILTER = 21, 22, 2
_AF_UNIX = 1
_X32 = 0x40000000
_CLONE3 = 435
_NEW_NAMESPACES = 0x7E020000

# From 424 on the numbers are the same everywhere: io_uring_setup, fchmodat2, setxattrat, removexattrat, file_setattr.
_EVERYWHERE = (425, 452, 463, 466, 469)
# fchmod, fchmodat, fchownat, fchown, utimensat, and set and remove of path, link and descriptor for attributes;
# unshare, setns; add_key, request_key, keyctl; bpf, perf_event_open, userfaultfd.
_GENERIC = (52, 53, 54, 55, 88, 5, 6, 7, 14, 15, 16, 97, 268, 217, 218, 219, 280, 241, 282)
# chmod, fchmod, chown, fchown, lchown, utime, attributes as above, utimes, fchownat, futimesat, fchmodat, utimensat;
# the others as above.
_X86_64 = (
    *(90, 91, 92, 93, 94, 132, 188, 189, 190, 197, 198, 199, 235, 260, 261, 268, 280),
    *(272, 308, 248, 249, 250, 321, 298, 323),
)

# Machine: audit number, the calls refused, socket, prlimit64 and clone. linux/audit.h and the tables of system calls.
_MACHINES = {
    "x86_64": (0xC000003E, _X86_64, 41, 302, 56),
    "aarch64": (0xC00000B7, _GENERIC, 198, 261, 220),
    "riscv64": (0xC00000F3, _GENERIC, 198, 261, 220),
}


_made: list[bytes] = []
"""The filter, once it was made: a runner makes it at its start and hands it down to what it forks."""


def code() -> bytes:
    """The filter for this machine; empty where its numbers are not known, or the kernel takes no filter."""
    if not _made:
        _made.append(_make())
    return _made[0]


def _make() -> bytes:
    from mcp_server.execution.syscalls import prctl

    machine = _MACHINES.get(os.uname().machine)
    try:
        prctl(_PR_GET_SECCOMP)
    except OSError:
        return b""
    if machine is None:
        return b""
    architecture, refused, open_socket, set_limit, clone = machine
    lines = [
        *((_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)),
        (_LOAD, 0, 0, _NUMBER),
        *((_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)),
    ]
    for number in (*refused, *_EVERYWHERE):
        lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    lines += [
        *((_EQUAL, 0, 4, open_socket), (_LOAD, 0, 0, _FIRST), (_EQUAL, 0, 1, _AF_UNIX)),
        *((_RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT), (_RETURN, 0, 0, _ALLOW)),
        # The limits of any process but 0, which is the caller itself.
        *((_EQUAL, 0, 4, set_limit), (_LOAD, 0, 0, _FIRST), (_EQUAL, 1, 0, 0)),
        *((_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)),
        *((_EQUAL, 0, 4, clone), (_LOAD, 0, 0, _FIRST), (_ANY_OF, 0, 1, _NEW_NAMESPACES)),
        *((_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)),
        *((_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS), (_RETURN, 0, 0, _ALLOW)),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def restrict(filter_code: bytes) -> None:
    """Hold this process and all it starts to the filter that `code` made. Needs no_new_privs. Raises OSError."""
    from mcp_server.execution.syscalls import prctl_program

    if filter_code:
        prctl_program(_PR_SET_SECCOMP, _MODE_FILTER, filter_code)
