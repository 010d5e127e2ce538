"""File servers: FTP, TFTP and SMB."""

from __future__ import annotations

from collections.abc import Iterable

from tests.lab.network.daemons import WORK, Daemon, folder, write
from tests.lab.network.programs import find
from tests.lab.network.truth import Truth


def file_daemons(_truth: Truth) -> Iterable[Daemon]:
    """Yield vsftpd, tftpd and smbd, each with one empty shared folder."""
    shared = folder("shared")
    shared.chmod(0o555)  # vsftpd refuses a writable root for anonymous users
    yield _vsftpd()
    options = ["-L", "-4", "--secure", "-a", "0.0.0.0:69", str(shared)]
    yield Daemon("tftpd", "udp1", [find("in.tftpd"), *options], [("udp", 69)])
    yield _smbd()


def _vsftpd() -> Daemon:
    configuration = write(
        "vsftpd.conf",
        f"""\
listen=NO
listen_ipv6=YES
background=NO
anonymous_enable=YES
anon_root={WORK}/shared
local_enable=NO
secure_chroot_dir={WORK}/shared
seccomp_sandbox=NO
""",
    )
    return Daemon("vsftpd", "ftp1", [find("vsftpd"), str(configuration)], [("tcp", 21)])


def _smbd() -> Daemon:
    folders = {
        "private dir": "private",
        "lock directory": "lock",
        "state directory": "state",
        "cache directory": "cache",
        "pid directory": "pid",
        "ncalrpc dir": "rpc",
    }
    own = "\n".join(f"{key}={folder(f'smb/{name}')}" for key, name in folders.items())
    configuration = write(
        "smb/smb.conf",
        f"""\
[global]
workgroup=LAB
netbios name=SMB1
{own}
map to guest=bad user
load printers=no
disable spoolss=yes
log file={WORK}/log/samba
[pub]
path={WORK}/shared
guest ok=yes
""",
    )
    argv = [find("smbd"), "-F", "--no-process-group", "--debug-stdout", "-s", str(configuration)]
    return Daemon("smbd", "smb1", argv, [("tcp", 139), ("tcp", 445)])
