"""System calls that the standard library lacks, through ctypes: prctl, capabilities and namespaces.

The runner and the guard helper load this module. The server does not, because importing ctypes takes 3 ms. Every
function raises OSError with the kernel's errno. The numbers are from linux/prctl.h, linux/capability.h and
linux/sched.h.
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
    """Return the bytes as an array that can be passed to the kernel."""
    return ctypes.create_string_buffer(content, len(content))


def call(name: str, *arguments: ctypes.c_ulong | ctypes.Array[ctypes.c_char] | int | None) -> int:
    """Call a function of the C library that returns -1 after an error."""
    result: int = getattr(_libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def raw(number: int, *arguments: int | ctypes.Array[ctypes.c_char] | None) -> int:
    """Make a system call by its number, as syscall(2) does."""
    return call("syscall", *(_word(each) if isinstance(each, int) else each for each in (number, *arguments)))


def prctl(option: int, first: int = 0, second: int = 0) -> int:
    """Change or read one property of this process (see the manual page)."""
    return call("prctl", option, _word(first), _word(second), _word(0), _word(0))


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog (linux/filter.h)."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def prctl_filter(option: int, mode: int, code: bytes) -> None:
    """Call prctl(2) with a BPF program, which has eight bytes for each instruction."""
    program = _FilterProgram(len(code) // 8, code)
    call("prctl", option, _word(mode), _word(ctypes.addressof(program)), _word(0), _word(0))


def die_with_parent(number: int) -> None:
    """Have the kernel send signal ``number`` when the parent thread ends. If it has already ended, none is sent."""
    prctl(_PR_SET_PDEATHSIG, number)


def become_subreaper() -> None:
    """Make orphaned descendants children of this process, even those that called setsid(2)."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def no_new_privileges() -> None:
    """Set no_new_privs: set-uid bits and file capabilities no longer affect this process and its descendants."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def effective_capabilities() -> int:
    """Return the effective set of this process as a bit mask."""
    head = buffer(struct.pack("=2I", _CAPABILITY_VERSION_3, 0))
    data = (ctypes.c_uint32 * 6)()
    call("capget", head, data)  # type: ignore[arg-type]  # any array is passed the same way
    return int(data[0]) | int(data[3]) << 32


def keep_capabilities(mask: int) -> None:
    """Keep exactly the capabilities in ``mask``, also after execve(2). The bounding set does not change."""
    low, high = mask & 0xFFFFFFFF, mask >> 32
    head = buffer(struct.pack("=2I", _CAPABILITY_VERSION_3, 0))
    data = (ctypes.c_uint32 * 6)(low, low, low, high, high, high)
    call("capset", head, data)  # type: ignore[arg-type]  # as in capget
    prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    for number in range(mask.bit_length()):
        if mask >> number & 1:
            prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, number)


def bound_bounding_set(mask: int) -> None:
    """Drop everything except ``mask`` from the bounding set.

    Without CAP_SETPCAP, this does nothing. no_new_privs then protects against new capabilities.
    """
    if not effective_capabilities() >> CAP_SETPCAP & 1:
        return
    for number in range(64):
        if mask >> number & 1:
            continue
        try:
            prctl(_PR_CAPBSET_DROP, number)
        except OSError:  # EINVAL: above the kernel's last capability
            return


def drop_from_bounding_set(number: int) -> None:
    """Drop one capability from the bounding set. Without CAP_SETPCAP, this does nothing."""
    if effective_capabilities() >> CAP_SETPCAP & 1:
        prctl(_PR_CAPBSET_DROP, number)


def enter_user_namespace(flags: int = CLONE_NEWPID) -> None:
    """Enter a new user namespace, and with it the namespaces in ``flags``.

    This user and group keep their numbers in it. If ``flags`` has CLONE_NEWPID, the next process that is forked is
    process 1 of the PID namespace.
    """
    user, group = os.geteuid(), os.getegid()
    dumpable = prctl(_PR_GET_DUMPABLE)
    prctl(_PR_SET_DUMPABLE, 1)  # after a change of user, the files in /proc/self belong to root
    call("unshare", CLONE_NEWUSER | flags)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    prctl(_PR_SET_DUMPABLE, dumpable)
