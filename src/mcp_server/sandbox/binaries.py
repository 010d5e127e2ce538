"""Finding the program behind a tool's ``command_name``, once."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from mcp_server.errors import PlatformError

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_SBIN: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where Debian keeps network programs; an ordinary user's PATH leaves these out."""

_DEBIAN_PACKAGES: Final = {
    "arp-scan": "arp-scan",
    "bwrap": "bubblewrap",
    "curl": "curl",
    "dig": "bind9-dnsutils",
    "fping": "fping",
    "gobuster": "gobuster",
    "host": "bind9-host",
    "ip": "iproute2",
    "masscan": "masscan",
    "mtr": "mtr-tiny",
    "nft": "nftables",
    "nmap": "nmap",
    "nslookup": "bind9-dnsutils",
    "openssl": "openssl",
    "ping": "iputils-ping",
    "prlimit": "util-linux",
    "setpriv": "util-linux",
    "ss": "iproute2",
    "tcpdump": "tcpdump",
    "traceroute": "traceroute",
    "unshare": "util-linux",
    "whois": "whois",
}


@dataclass(frozen=True, slots=True)
class BinaryFile:
    """A file as it was found: ``identity`` is device, inode, size and the times of the last change, in nanoseconds."""

    path: str
    identity: tuple[int, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class Binary:
    """A program of this machine: its name, the path found, and the file that path leads to.

    ``pins`` holds that file and, where it is a script, its interpreter; empty where it was not found by `pin`.
    """

    name: str
    path: str
    realpath: str
    files: tuple[BinaryFile, ...] = ()

    def sha256(self) -> str:
        """The hexadecimal SHA-256 of the file, read again only when the file has changed.

        Raises PlatformError ``permission_denied`` where the file may be executed but not read.
        """
        return _look(self.realpath).sha256

    def check_unchanged(self) -> None:
        """Make sure that what would be executed now is what was pinned: one stat(2) a file while nothing was touched.

        A file that was touched but holds the same bytes passes. Raises PlatformError ``binary_changed`` with both
        hashes, ``binary_not_found`` where a file has gone, ValueError for a command that was not pinned.
        """
        if not self.files:
            raise ValueError(f"{self.name} was not pinned")
        for pinned in self.files:
            try:
                if _identity(pinned.path) == pinned.identity:
                    continue
            except OSError as error:
                raise PlatformError(
                    f"{pinned.path} has gone: {error.strerror}", code="binary_not_found", hint=_RELOAD
                ) from error
            found = _look(pinned.path).sha256
            if found != pinned.sha256:
                raise PlatformError(
                    f"{pinned.path} has changed: its SHA-256 was {pinned.sha256} and is {found}",
                    code="binary_changed",
                    path=pinned.path,
                    pinned=pinned.sha256,
                    found=found,
                )


_RELOAD: Final = "If the program was upgraded or moved, reload the server: it then looks for it again."
_cache: dict[str, Binary] = {}
_pinned: dict[str, Binary] = {}


def find_binary(name: str) -> Binary:
    """The program called ``name`` as it was at the first call since the start or the last reload, with its hashes.

    Unlike `resolve_binary` it never goes over to another file: `Command.check_unchanged` refuses instead. A script's
    interpreter is pinned with it, since it is what runs; shared libraries and what a script reads are not. The first
    call reads the files, some milliseconds. Raises as `resolve_binary` does, and PlatformError ``permission_denied``
    for a file that may be executed but not read: its hash could not stand on the audit log.
    """
    from mcp_server.sandbox.confine import programs

    known = _pinned.get(name)
    if known is None:
        found = resolve_binary(name)
        known = replace(found, files=tuple(_look(path) for path in programs(found.path)))
        _pinned[name] = known
    return known


def resolve_binary(name: str) -> Binary:
    """The program called ``name``, from the absolute entries of PATH and then the sbin folders.

    The answer is cached; a cached program that has gone is looked for again. Raises PlatformError
    ``binary_not_found`` (also for a name that is a path or has odd characters), or ``permission_denied`` where
    there is only a file that may not be executed.
    """
    known = _cache.get(name)
    if known is not None and os.access(known.path, os.X_OK):
        return known
    _cache.pop(name, None)
    if not _NAME.fullmatch(name):
        raise PlatformError(
            f"{name!r} is not the name of a program",
            code="binary_not_found",
            hint="Name the program alone, without a folder: letters, digits and . _ + - only.",
        )
    refused: str | None = None
    for folder in _folders():
        path = os.path.join(folder, name)  # noqa: PTH118 - the path is kept as text
        if not _is_file(path):
            continue
        if os.access(path, os.X_OK):
            binary = Binary(name, path, os.path.realpath(path))
            _cache[name] = binary
            return binary
        refused = refused or path
    if refused is not None:
        raise PlatformError(
            f"{refused} may not be executed by this user",
            code="permission_denied",
            hint=f"Allow it: chmod a+x {refused}",
        )
    raise PlatformError(f"the program {name!r} is not installed", code="binary_not_found", hint=install_hint(name))


def install_hint(name: str) -> str:
    """The sentence that says how to install a program; Debian's package where it is known."""
    package = _DEBIAN_PACKAGES.get(name)
    if package is None:
        return f"Install {name} and make sure that its folder is in the server's PATH."
    return f"Install it, on Debian or Ubuntu with: sudo apt-get install {package}"


def invalidate_command_cache() -> None:
    """Forget every program found or pinned so far; a reload is the owner's word that what is there now is right."""
    _cache.clear()
    _pinned.clear()


def _folders() -> Iterator[str]:
    """Absolute folders in the order of search, each once. A relative entry would depend on who started us where."""
    entries = (*os.environ.get("PATH", "").split(os.pathsep), *_SBIN)
    yield from dict.fromkeys(entry for entry in entries if entry.startswith("/"))


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 - as above, text in and a mode out
    except OSError:
        return False


def _look(path: str) -> BinaryFile:
    """The file as it is now, hashed only when it has changed."""
    try:
        identity = _identity(path)
        return BinaryFile(path, identity, _sha256(path, *identity))
    except OSError as error:
        raise PlatformError(f"{path} cannot be read: {error.strerror}") from error


def _identity(path: str) -> tuple[int, ...]:
    # The time of the last change of the inode, too: unlike the other it cannot be set back.
    seen = os.stat(path)  # noqa: PTH116 - one system call on the way of every run
    return (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


@functools.lru_cache(maxsize=64)
def _sha256(path: str, *_identity: int) -> str:
    """Hash a file; the identity makes a replaced file a new entry."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
