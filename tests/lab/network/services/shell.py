"""OpenSSH servers, one of them with outdated algorithms."""

from __future__ import annotations

from collections.abc import Iterable

from tests.lab.network.daemons import WORK, Daemon, folder, write
from tests.lab.network.programs import find, run
from tests.lab.network.truth import Truth

_WEAK_PORT = 2222
_WEAK = """
KexAlgorithms diffie-hellman-group1-sha1,diffie-hellman-group14-sha1
Ciphers aes128-cbc,3des-cbc
MACs hmac-sha1,hmac-md5
HostKeyAlgorithms ssh-rsa
"""


def ssh_daemons(truth: Truth) -> Iterable[Daemon]:
    """Yield one sshd for each SSH port."""
    folder("ssh")
    for kind, bits in (("ed25519", "256"), ("rsa", "2048")):
        run([find("ssh-keygen"), "-q", "-t", kind, "-b", bits, "-N", "", "-f", str(WORK / f"ssh/{kind}")])
    folder("../sshd")  # /run/sshd, the root folder of sshd's unprivileged process
    for host in truth.hosts.values():
        for port, endpoint in host.open_ports("tcp").items():
            if endpoint.product == "OpenSSH":
                yield _sshd(host.name, port)


def _sshd(host: str, port: int) -> Daemon:
    configuration = write(
        f"ssh/{host}-{port}.conf",
        f"""
Port {port}
HostKey {WORK}/ssh/ed25519
HostKey {WORK}/ssh/rsa
PidFile none
UsePAM no
PasswordAuthentication no
MaxStartups 200
{_WEAK if port == _WEAK_PORT else ""}
""",
    )
    # sshd starts itself again for each connection, and needs an absolute path for that.
    return Daemon(f"sshd-{host}-{port}", host, [find("sshd"), "-D", "-e", "-f", str(configuration)], [("tcp", port)])
