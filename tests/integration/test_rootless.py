"""The rootless tier, set up by an unprivileged user on a host that the test creates."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

import pytest

from tests.containment.guarded_link import NetNamespace, ip
from tests.lab.network.programs import find

ROOT: Final = Path(__file__).resolve().parents[2]
USER: Final = 61203
HOST, TARGET, EXCLUDED, OUTSIDE = "10.77.1.2", "10.77.1.10", "10.77.1.5", "10.99.0.1"
PASTA: Final = "/usr/bin/pasta"

# Give the user access to the interpreter, to this checkout, and to /dev/net/tun.
_MOUNTS: Final = r"""
set -e
mount -t tmpfs -o mode=755 none /mnt
mknod /mnt/tun c 10 200
chmod "$TUN_MODE" /mnt/tun
mount --bind /mnt/tun /dev/net/tun
for program in $HIDDEN; do mount --bind /dev/null "$program"; done
while [ "$1" != -- ]; do
  mkdir /mnt/kept
  mount --bind "$2" /mnt/kept
  mount -t tmpfs -o mode=755 none "$1"
  mkdir -p "$2"
  mount --move /mnt/kept "$2"
  rmdir /mnt/kept
  shift 2
done
shift
cd /
exec setpriv --reuid="$USER_ID" --regid="$USER_ID" --clear-groups --inh-caps=-all --ambient-caps=-all \
  --bounding-set=-all -- "$@"
"""

_HELPER: Final = """
import sys
from mcp_server.config import load_config
from mcp_server.errors import NetworkToolsError
from mcp_server.netguard.rootless import RootlessGuardHelper, rootless_unavailable
if sys.argv[1] == "unavailable":
    print(rootless_unavailable())
    sys.exit(0)
def load():
    return load_config(notify=False)
def bind():
    import socket
    return socket.create_server(("127.0.0.1", 0))
try:
    helper = RootlessGuardHelper(load(), [sys.executable, "-c", *sys.argv[1:]], load_config=load, bind=bind)
    sys.exit(helper.run())
except NetworkToolsError as error:
    sys.exit(f"{error.code}: {error.message}")
"""

_SERVER: Final = """
import asyncio, json, os, socket, struct, subprocess, sys
from pathlib import Path
from mcp_server.netguard.client import PacketGuard
target, excluded, outside = sys.argv[1:4]

def scan(*words):
    return subprocess.run(["nmap", "-n", "--privileged", "-Pn", *words], capture_output=True, text=True).stdout

def attempt(act):
    try:
        act()
    except OSError as error:
        return type(error).__name__
    return "sent"

def frame(address, ethertype=0x0800):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        head = bytes.fromhex("ffffffffffff024d43500002") + struct.pack(">H", ethertype)
        packet = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28, 1, 0, 64, 17, 0,
                             socket.inet_aton("198.18.77.2"), socket.inet_aton(address))
        sender.sendto(head + packet + struct.pack(">HHHH", 9, 9, 8, 0), ("scope0", ethertype))

def datagram(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (address, 9))

def xdp():
    socket.socket(44, socket.SOCK_RAW, 0)

def writes(path):
    with open(path, "w") as file:
        file.write("0")

async def main():
    guard = PacketGuard(int(sys.argv[-1]))
    before = await guard.read()
    scanned = scan("-sS", "-p", "8079,8080", target)
    missed = scan("-sS", "-p", "8080", "--max-retries", "0", excluded, outside)
    between = await guard.read()
    tried = {
        "frame": attempt(lambda: frame(outside)),
        "excluded frame": attempt(lambda: frame(excluded)),
        "vlan frame": attempt(lambda: frame(target, 0x8100)),
        "datagram": attempt(lambda: datagram(outside)),
        "AF_XDP": attempt(xdp),
        "nft": subprocess.run(["nft", "flush", "ruleset"], capture_output=True).returncode,
        "ip": subprocess.run(["ip", "link", "set", "scope0", "down"], capture_output=True).returncode,
        "guard helper's memory": attempt(lambda: open(f"/proc/{os.getppid()}/mem", "rb")),
    }
    after = await guard.read()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps({
        "tier": guard.enforcement, "scanned": scanned, "missed": missed, "tried": tried, "uid": os.getuid(),
        "passed": between.passed - before.passed, "dropped": between.dropped - before.dropped,
        "dropped frames": after.dropped - between.dropped, "same": before.ruleset == after.ruleset,
        "listener": guard.listener.getsockname()[0],
        "status": {key: status[key].strip() for key in ("CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")},
        "services": os.listdir("/run/user") if os.path.isdir("/run/user") else [],
    }), flush=True)

asyncio.run(main())
"""

_WAITING: Final = """
import os, sys, time
print(os.getpid(), flush=True)
time.sleep(100)
"""


@dataclass
class Host:
    """A host and its only neighbor. ``net`` and ``wire`` are their namespaces. The tap on ``wire`` sees what leaves."""

    net: NetNamespace = field(default_factory=NetNamespace)
    wire: NetNamespace = field(default_factory=NetNamespace)
    tap: socket.socket = field(init=False)
    web: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        with self.wire.inside():
            ip(
                "link set lo up",
                f"link add w0 type veth peer name up0 netns {self.net.path}",
                *(f"addr add {address}/24 dev w0" for address in (TARGET, EXCLUDED, OUTSIDE)),
                "link set w0 up",
            )
            self.tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
            self.tap.bind(("w0", 0x0800))
            self.tap.setblocking(False)
            self.web = socket.create_server((TARGET, 8080))
        threading.Thread(target=self._serve, daemon=True).start()
        with self.net.inside():
            ip("link set lo up", f"addr add {HOST}/24 dev up0", "link set up0 up", f"route add default via {TARGET}")

    def _serve(self) -> None:
        while True:
            try:
                self.web.accept()[0].close()
            except OSError:
                return

    def reached(self) -> set[str]:
        """The destination addresses of the IPv4 packets that arrived on ``wire``."""
        addresses: set[str] = set()
        while True:
            try:
                frame, origin = self.tap.recvfrom(1 << 16)
            except BlockingIOError:
                return addresses
            if origin[2] != socket.PACKET_OUTGOING:
                addresses.add(str(IPv4Address(frame[30:34])))

    def start(self, *words: str, hidden: tuple[str, ...] = (), tun_mode: str = "666") -> subprocess.Popen[str]:
        """Start the guard helper as an ordinary user of the host."""
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "MCP_STATE_DIR": "/nonexistent",
            "MCP_SECURITY_ALLOWED_TARGETS": "10.77.1.10/31",
            "USER_ID": str(USER),
            "TUN_MODE": tun_mode,
            "HIDDEN": " ".join(hidden),
        }
        enter = [find("unshare"), "--mount", "--propagation", "private", find("bash"), "-c", _MOUNTS, "bash"]
        with self.net.inside():
            return subprocess.Popen(
                [*enter, *_private_folders(), "--", sys.executable, "-c", _HELPER, *words],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def close(self) -> None:
        self.web.shutdown(socket.SHUT_RDWR)
        self.web.close()
        self.tap.close()
        os.close(self.net.descriptor)
        os.close(self.wire.descriptor)


def _private_folders() -> list[str]:
    """Pairs of a private folder and a folder below it that is needed."""
    pairs = {}
    for needed in (Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), ROOT):
        private = [folder for folder in reversed(needed.parents) if not folder.stat().st_mode & 0o001]
        if private and private[0] not in pairs:
            pairs[private[0]] = needed
    return [str(each) for pair in pairs.items() for each in pair]


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


def answer(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def test_a_user_can_scan_in_scope_and_nothing_else(host: Host) -> None:
    report: dict[str, Any] = json.loads(answer(host.start(_SERVER, TARGET, EXCLUDED, OUTSIDE)))
    assert report["tier"] == "rootless"
    assert "8080/tcp open" in report["scanned"]
    assert "8079/tcp closed" in report["scanned"]
    assert "open" not in report["missed"].replace("open ports", "")
    assert report["passed"] > 0
    assert report["dropped"] > 0
    assert report["same"] is True
    assert report["status"] == {
        **dict.fromkeys(("CapPrm", "CapEff", "CapBnd", "CapAmb"), "0000000000002000"),
        "NoNewPrivs": "1",
    }
    assert report["uid"] == USER
    assert report["listener"] == "127.0.0.1"
    assert report["services"] == []
    tried = report["tried"]
    assert tried.pop("nft") != 0
    assert tried.pop("ip") != 0
    assert tried.pop("datagram") == "sent"  # it is sent to the queue for the gateway's MAC address, and dropped later
    assert set(tried.values()) <= {"PermissionError", "OSError"}, tried
    assert report["dropped frames"] >= 4
    time.sleep(0.1)
    assert host.reached() == {TARGET}

    with host.net.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (OUTSIDE, 9))
    time.sleep(0.1)
    assert OUTSIDE in host.reached(), "expected the tap to see a packet from the unguarded host, found none"


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def below(pid: int) -> set[int]:
    """All descendants of a process."""
    children = {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    return children.union(*(below(child) for child in children))


@pytest.mark.parametrize("victim", ["guard helper", "server", "pasta"])
def test_killing_any_process_with_sigkill_leaves_no_process(host: Host, victim: str) -> None:
    helper = host.start(_WAITING)
    assert helper.stdout is not None
    line = helper.stdout.readline()
    assert line, helper.communicate(timeout=10)[1]
    server = int(line)
    processes = below(helper.pid)
    assert server in processes
    pasta = processes - {server}
    assert pasta, f"expected a process of pasta, found only {processes}"
    victims = {"guard helper": helper.pid, "server": server, "pasta": min(pasta)}
    os.kill(victims[victim], signal.SIGKILL)
    code = helper.wait(timeout=10)
    deadline = time.monotonic() + 5
    while not all(gone(pid) for pid in processes) and time.monotonic() < deadline:
        time.sleep(0.01)
    _, error_output = helper.communicate(timeout=10)
    assert {pid for pid in processes if not gone(pid)} == set()
    assert code != 0
    if victim == "pasta":
        assert "guard_unavailable: The program pasta, which carries" in error_output


def test_an_error_says_what_is_missing_and_how_to_get_it(host: Host) -> None:
    assert answer(host.start("unavailable")).strip() == ""
    assert "apt-get install -y passt" in answer(host.start("unavailable", hidden=(PASTA,)))
    assert "chmod 0666 /dev/net/tun" in answer(host.start("unavailable", tun_mode="600"))
    refused = host.start(_WAITING, tun_mode="600")
    _, error_output = refused.communicate(timeout=30)
    assert refused.returncode == 1
    assert error_output.strip().startswith("guard_unavailable: The rootless tier cannot be set up. /dev/net/tun")


_RELOADING: Final = """
import asyncio, sys
from ipaddress import ip_network
from mcp_server.errors import NetworkToolsError
from mcp_server.netguard.client import PacketGuard
from mcp_server.model.target import Target, Targets

async def main():
    guard = PacketGuard(int(sys.argv[-1]))
    before = (await guard.read()).ruleset
    await guard.reload(guard.policy_hash)
    try:
        await guard.reload("another")
    except NetworkToolsError as error:
        print(error.code, error.message, error.hint)
    print((await guard.read()).ruleset == before)
    for text in ("127.0.0.1", "fd99::1"):
        try:
            guard.executor_for(Targets((Target(text, networks=(ip_network(text),)),)))
        except NetworkToolsError as error:
            print(error.code, error.message, error.hint)

asyncio.run(main())
"""


def test_the_user_of_the_server_cannot_reload_the_policy(host: Host) -> None:
    refused, same, loopback, version6 = answer(host.start(_RELOADING)).splitlines()
    assert refused.startswith("permission_denied In the rootless tier, a running server cannot get a new policy")
    assert "Restart the server" in refused
    assert same == "True"
    assert "The rootless tier cannot reach loopback targets" in loopback
    assert version6.startswith("invalid_target The target 'fd99::1' cannot be reached")
