"""Finding the program behind a tool's ``command_name``, once."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
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
class Command:
    """A program of this machine: its name, the path found, and the file that path leads to."""

    name: str
    path: str
    realpath: str

    def sha256(self) -> str:
        """The hexadecimal SHA-256 of the file, read anew only when the file has changed.

        Raises PlatformError ``permission_denied`` where the file may be executed but not read.
        """
        try:
            seen = os.stat(self.realpath)  # noqa: PTH116 - one system call on the way of every run
            return _sha256(self.realpath, seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)
        except OSError as error:
            raise PlatformError(f"{self.realpath} cannot be read: {error.strerror}") from error


_cache: dict[str, Command] = {}


def resolve_command(name: str) -> Command:
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
            command = Command(name, path, os.path.realpath(path))
            _cache[name] = command
            return command
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
    """Forget every program found so far; called after a reload."""
    _cache.clear()


def _folders() -> Iterator[str]:
    """Absolute folders in the order of search, each once. A relative entry would depend on who started us where."""
    entries = (*os.environ.get("PATH", "").split(os.pathsep), *_SBIN)
    yield from dict.fromkeys(entry for entry in entries if entry.startswith("/"))


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 - as above, text in and a mode out
    except OSError:
        return False


@functools.lru_cache(maxsize=64)
def _sha256(path: str, *_identity: int) -> str:
    """Hash a file; the identity (device, inode, size, time) makes a replaced file a new entry."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
