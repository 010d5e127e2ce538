"""Finds the binary for a tool's ``command_name``, and checks that it has not changed since it was found."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from mcp_server.errors import PlatformError
from mcp_server.sandbox.confine import executed_files
from mcp_server.sandbox.file_hash import HashedFile, file_identity, hash_file

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_SBIN: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Debian installs network programs here, and the PATH of an ordinary user does not include these folders."""

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
_RELOAD: Final = "If the program was upgraded or moved, reload the server. It then looks for the program again."


@dataclass(frozen=True, slots=True)
class Binary:
    """A program of this host: its name, the path where it was found, and the path with all links resolved.

    ``files`` are the binary and, if it is a script, its interpreters. Only `find_binary` sets them.
    """

    name: str
    path: str
    realpath: str
    files: tuple[HashedFile, ...] = ()

    def sha256(self) -> str:
        """Return the hexadecimal SHA-256 of the binary.

        Raises PlatformError ``permission_denied`` if the file can be executed but not read.
        """
        return _hashed(self.realpath).sha256

    def check_unchanged(self) -> None:
        """Check that the files are still the ones that `find_binary` recorded, normally with one stat(2) for each.

        A file with a new timestamp and the same content passes. Raises PlatformError ``binary_changed`` with both
        checksums, PlatformError ``binary_not_found`` if a file is gone, and ValueError if no files were recorded.
        """
        if not self.files:
            raise ValueError(f"The files of {self.name} were not recorded.")
        for recorded in self.files:
            try:
                if file_identity(recorded.path) == recorded.identity:
                    continue
            except OSError as error:
                raise PlatformError(
                    f"{recorded.path} is gone: {error.strerror}.", code="binary_not_found", hint=_RELOAD
                ) from error
            found = _hashed(recorded.path).sha256
            if found != recorded.sha256:
                raise PlatformError(
                    f"{recorded.path} has changed. Its SHA-256 was {recorded.sha256} and is now {found}.",
                    code="binary_changed",
                    path=recorded.path,
                    recorded=recorded.sha256,
                    found=found,
                )


_resolved: dict[str, Binary] = {}
_recorded: dict[str, Binary] = {}


def find_binary(name: str) -> Binary:
    """Return the binary called ``name`` with its files as they were at the first call since the start or last reload.

    Unlike `resolve_binary`, this never switches to another file: `Binary.check_unchanged` refuses instead. A script's
    interpreter is recorded too. Shared libraries and the files that a script reads are not. The first call reads the
    files, which takes some milliseconds. Raises as `resolve_binary` does, and PlatformError ``permission_denied`` if a
    file can be executed but not read, because the audit log needs its checksum.
    """
    known = _recorded.get(name)
    if known is None:
        found = resolve_binary(name)
        known = replace(found, files=tuple(_hashed(path) for path in executed_files(found.path)))
        _recorded[name] = known
    return known


def resolve_binary(name: str) -> Binary:
    """Look for the binary called ``name`` in the absolute folders of PATH, then in the sbin folders.

    The result is cached until the file is gone. Raises PlatformError ``binary_not_found`` if there is no such program
    or the name contains a slash or other unexpected characters, and ``permission_denied`` if the only file found
    cannot be executed.
    """
    known = _resolved.get(name)
    if known is not None and os.access(known.path, os.X_OK):
        return known
    _resolved.pop(name, None)
    if not _NAME.fullmatch(name):
        raise PlatformError(
            f"{name!r} is not the name of a program.",
            code="binary_not_found",
            hint="Give the name without a folder. It may contain letters, digits and the characters '._+-'.",
        )
    refused: str | None = None
    for folder in _folders():
        path = os.path.join(folder, name)  # noqa: PTH118 - the path is kept as text
        if not os.path.isfile(path):  # noqa: PTH113 - as above
            continue
        if os.access(path, os.X_OK):
            binary = Binary(name, path, os.path.realpath(path))
            _resolved[name] = binary
            return binary
        refused = refused or path
    if refused is not None:
        raise PlatformError(
            f"{refused} cannot be executed by this user.",
            code="permission_denied",
            hint=f"Allow it with 'chmod a+x {refused}'.",
        )
    raise PlatformError(f"The program {name!r} is not installed.", code="binary_not_found", hint=install_hint(name))


def install_hint(name: str) -> str:
    """Return a sentence that says how to install a program, with its Debian package if that is known."""
    package = _DEBIAN_PACKAGES.get(name)
    if package is None:
        return f"Install {name} in a folder of the server's PATH."
    return f"Install it, on Debian or Ubuntu with 'sudo apt-get install {package}'."


def invalidate_command_cache() -> None:
    """Forget all binaries found so far. A reload calls this, and so accepts the files that are there now."""
    _resolved.clear()
    _recorded.clear()


def _folders() -> Iterator[str]:
    """Yield the folders to search, in order and each once. A relative folder of PATH is skipped."""
    entries = (*os.environ.get("PATH", "").split(os.pathsep), *_SBIN)
    yield from dict.fromkeys(entry for entry in entries if entry.startswith("/"))


def _hashed(path: str) -> HashedFile:
    try:
        return hash_file(path)
    except OSError as error:
        raise PlatformError(f"{path} cannot be read: {error.strerror}.") from error
