"""System calls the standard library does not offer, by ctypes: prctl, capabilities, namespaces, close-by-death.

Loaded by the runner and never by the server: importing ctypes costs three milliseconds. Every function raises OSError
with the kernel's errno. Numbers are those of linux/prctl.h, linux/capability.h and linux/sched.h.
"""

from __future__ import annotations

import ctypes
import os
import struct

CAP_SETPCAP = 8
CAP_NET_RAW = 13
CAP_SYS_ADMIN = 21
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000

_PR_SET_PDEATHSIG = 1
_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_AMBIENT_RAISE = 2
_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_word = ctypes.c_ulong


def buffer(content: bytes) -> ctypes.Array[ctypes.c_char]:
    """The bytes where the kernel can read them."""
    return ctypes.create_string_buffer(content, len(content))


def call(name: str, *arguments: ctypes.c_ulong | ctypes.Array[ctypes.c_char] | int | None) -> int:
    """Call a function of the C library that answers -1 for an error."""
    answer: int = getattr(_libc, name)(*arguments)
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return answer


def raw(number: int, *arguments: int | ctypes.Array[ctypes.c_char] | None) -> int:
    """Call the kernel by the number of the call, as syscall(2) does."""
    return call("syscall", *(_word(each) if isinstance(each, int) else each for each in (number, *arguments)))


def prctl(option: int, first: int = 0, second: int = 0) -> int:
    """Have one option of the calling process set or told (man 2 of that name)."""
    return call("prctl", option, _word(first), _word(second), _word(0), _word(0))


class _Program(ctypes.Structure):
    """struct sock_fprog (linux/filter.h)."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def prctl_program(option: int, mode: int, code: bytes) -> None:
    """Hand prctl(2) a program of the Berkeley packet filter, eight bytes an instruction."""
    program = _Program(len(code) // 8, code)
    call("prctl", option, _word(mode), _word(ctypes.addressof(program)), _word(0), _word(0))


def die_with_parent(number: int) -> None:
    """Have the kernel send signal ``number`` when the parent thread ends; not when it already has."""
    prctl(_PR_SET_PDEATHSIG, number)


def become_subreaper() -> None:
    """Have orphans among the descendants handed to this process, also those that called setsid(2)."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def no_new_privileges() -> None:
    """Give up, for this process and all it starts, what set-uid bits and file capabilities would add."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def effective_capabilities() -> int:
    """The effective set of this process as a bit mask."""
    head = buffer(struct.pack("=2I", _CAPABILITY_VERSION_3, 0))
    data = (ctypes.c_uint32 * 6)()
    call("capget", head, data)  # type: ignore[arg-type]  # an array of another type is passed the same way
    return int(data[0]) | int(data[3]) << 32


def keep_capabilities(mask: int) -> None:
    """Hold exactly ``mask``, also over execve(2). The bounding set stays as it is."""
    low, high = mask & 0xFFFFFFFF, mask >> 32
    head = buffer(struct.pack("=2I", _CAPABILITY_VERSION_3, 0))
    data = (ctypes.c_uint32 * 6)(low, low, low, high, high, high)
    call("capset", head, data)  # type: ignore[arg-type]  # as in capget
    prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    for number in range(mask.bit_length()):
        if mask >> number & 1:
            prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, number)


def bound_bounding_set(mask: int) -> None:
    """Drop everything but ``mask`` from the bounding set. Without CAP_SETPCAP it stays: no_new_privs holds then."""
    if not effective_capabilities() >> CAP_SETPCAP & 1:
        return
    for number in range(64):
        if mask >> number & 1:
            continue
        try:
            prctl(_PR_CAPBSET_DROP, number)
        except OSError:  # EINVAL: beyond the kernel's last capability
            return


def drop_from_bounding_set(number: int) -> None:
    """Drop one capability from the bounding set, under the same condition."""
    if effective_capabilities() >> CAP_SETPCAP & 1:
        prctl(_PR_CAPBSET_DROP, number)


def enter_user_namespace() -> None:
    """Enter a user namespace of our own with this user and group mapped to themselves, and have one for pids prepared.

    The next process forked is process 1 of the pid namespace.
    """
    user, group = os.geteuid(), os.getegid()
    dumpable = prctl(_PR_GET_DUMPABLE)
    prctl(_PR_SET_DUMPABLE, 1)  # after a change of user the files of /proc/self belong to root
    call("unshare", CLONE_NEWUSER | CLONE_NEWPID)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    prctl(_PR_SET_DUMPABLE, dumpable)
