"""Landlock (landlock(7)): the kernel enforces which files a process and its descendants can open.

A process can open only the named files. Any other file gives EACCES. Landlock does not cover stat(2), readlink(2), or
the folders on the path to a file. From ABI 6, a confined process also cannot send signals to a process outside, nor
connect to its abstract sockets. In every ABI, it cannot trace such a process or read its memory.
"""

from __future__ import annotations

import os
import stat
import struct

EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
TRUNCATE = 1 << 14
IOCTL_DEV = 1 << 15

READ = READ_FILE | READ_DIR
RUN = READ | EXECUTE
DEVICE = READ_FILE | WRITE_FILE | TRUNCATE
OWN = 0xFFFF & ~EXECUTE & ~IOCTL_DEV
"""All rights to a folder except executing files that were written there."""

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1
_ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1, 2
_KNOWN_TO = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
"""The rights that an ABI knows. From ABI 5, these are all sixteen."""


def abi() -> int:
    """Return the kernel's version of the Landlock ABI, or 0 if Landlock is missing or disabled."""
    from mcp_server.sandbox.syscalls import raw

    try:
        return raw(_CREATE_RULESET, None, 0, 1)
    except OSError:
        return 0


def restrict(rules: list[tuple[str, int]], version: int) -> None:
    """Restrict this process to ``rules``: paths and the rights to each and to everything below it.

    ``version`` is the result of `abi`. A path that does not exist or that this user cannot reach is left out. This
    needs no_new_privs. Raises OSError.
    """
    from mcp_server.sandbox.syscalls import buffer, raw

    handled = _KNOWN_TO.get(version, 0xFFFF)
    scoped = _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL if version >= 6 else 0
    fields = (handled, 0, scoped)[: 3 if version >= 6 else 2 if version >= 4 else 1]
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    ruleset = raw(_CREATE_RULESET, buffer(attributes), len(attributes), 0)
    try:
        for path, rights in rules:
            _allow(ruleset, path, rights & handled)
        raw(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    from mcp_server.sandbox.syscalls import buffer, raw

    try:
        fd = os.open(path, os.O_PATH)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _ON_FILES
        # linux/landlock.h declares this structure as packed.
        rule = struct.pack("=Qi", rights, fd)
        raw(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, buffer(rule), 0)
    finally:
        os.close(fd)
