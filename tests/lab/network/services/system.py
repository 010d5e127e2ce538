"""Redis, mail, SNMP and time."""

from __future__ import annotations

from collections.abc import Iterable

from tests.lab.network.daemons import WORK, Daemon, folder, own_copy, write
from tests.lab.network.programs import find
from tests.lab.network.truth import Truth


def system_daemons(truth: Truth) -> Iterable[Daemon]:
    """Yield redis-server, smtpd, snmpd and ntpd."""
    yield _redis()
    yield _smtpd(truth)
    yield _snmpd(truth)
    yield _ntpd()


def _redis() -> Daemon:
    options = ["--bind", "*", "-::*", "--protected-mode", "no", "--save", "", "--dir", str(WORK)]
    return Daemon("redis", "redis1", [find("redis-server"), *options], [("tcp", 6379)])


def _smtpd(truth: Truth) -> Daemon:
    folder("../../var/spool/smtpd").chmod(0o711)  # /var/spool belongs to the lab; smtpd creates the rest
    configuration = write(
        "smtpd.conf",
        f"""\
listen on 0.0.0.0 hostname {truth["mail1"].fqdn}
listen on :: hostname {truth["mail1"].fqdn}
action "keep" maildir "/nonexistent"
match from any for domain "lab.internal" action "keep"
""",
    )
    return Daemon("smtpd", "mail1", [find("smtpd"), "-d", "-f", str(configuration)], [("tcp", 25)])


def _snmpd(truth: Truth) -> Daemon:
    configuration = write(
        "snmpd.conf",
        f"""\
agentaddress udp:161,udp6:161
rocommunity public
rocommunity6 public
syslocation rack 7
sysname {truth["snmp1"].fqdn}
""",
    )
    argv = [find("snmpd"), "-f", "-Lo", "-C", "-c", str(configuration), "-p", f"{WORK}/snmpd.pid"]
    return Daemon("snmpd", "snmp1", argv, [("udp", 161), ("tcp", 199)])


def _ntpd() -> Daemon:
    # The clock of the machine is only read: "disable ntp", and no peer except itself.
    configuration = write(
        "ntp.conf",
        f"""\
server 127.127.1.0
fudge 127.127.1.0 stratum 10
driftfile {WORK}/ntp.drift
disable ntp
""",
    )
    return Daemon("ntpd", "udp1", [own_copy("ntpd"), "-n", "-g", "-x", "-c", str(configuration)], [("udp", 123)])
