"""The versions of the installed programs, as nmap prints them."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from tests.lab.network.programs import LabError, find


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions that nmap -sV should print for each program; "" for a program that is not part of this lab."""

    nginx: str
    openssh: str
    redis: str
    dnsmasq: str
    bind: str
    vsftpd: str
    mariadb: str


def installed_versions(*, databases: bool = True) -> Versions:
    """Ask each installed program for its version, in a few milliseconds each; raise LabError if one is missing."""
    return Versions(
        nginx=_ask(r"nginx/(\S+)", "nginx", "-v"),
        # The server's own -V leaves out patch level and revision; Debian gives client and server the same version.
        openssh=_ask(r"OpenSSH_(\S+ Debian-\S+?),", "ssh", "-V").replace(" Debian-", " Debian "),
        redis=_ask(r"v=(\S+)", "redis-server", "--version"),
        dnsmasq=_ask(r"Dnsmasq version (\S+)", "dnsmasq", "-v"),
        bind=_ask(r"BIND (\S+?)(?:-Debian)? ", "named", "-v"),
        # vsftpd -v writes to its standard input, so the version comes from the package.
        vsftpd=_ask(r"([\d.]+)", "dpkg-query", "-W", "-f", "${Version}", "vsftpd"),
        # MariaDB's greeting begins with "5.5.5-" for the replication of MySQL, and nmap prints it too.
        mariadb="5.5.5-" + _ask(r"Ver (\S+)", "mariadbd", "--version") if databases else "",
    )


def _ask(pattern: str, program: str, *arguments: str) -> str:
    done = subprocess.run([find(program), *arguments], capture_output=True, text=True, timeout=20, check=False)
    found = re.search(pattern, done.stdout + done.stderr)
    if found is None:
        raise LabError(f"{program} {' '.join(arguments)} shows no version: {(done.stdout + done.stderr)[:200]!r}")
    return found.group(1)
