"""What a program inside the guard can and cannot do: frames, the host's sockets, the guard helper, a change of policy."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.guarded import (
    HOST,
    LOOPBACK_UID,
    NOWHERE,
    OPEN_PORT,
    TARGET,
    UNKNOWN_CALLER,
    Inside,
    World,
    attack,
    inside,
    policy,
    wait_for,
    world,
)
from tests.support.processes import binary

PORT = 8201


@pytest.fixture(scope="module")
def host() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture
def line(host: World) -> Iterator[Inside]:
    with inside(host, PORT) as found:
        yield found


FRAMES = """
import socket, struct, sys
source, mac, count = sys.argv[1], bytes.fromhex(sys.argv[2].replace(":", "")), int(sys.argv[3])
sending = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sending.bind(("scope0", 0x0800))
for to in sys.argv[4:]:
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28, 1, 0, 64, 17, 0, *map(socket.inet_aton, (source, to)))
    words = struct.unpack(">10H", head)
    total = sum(words)
    head = head[:10] + struct.pack(">H", ~(total % 0xffff) & 0xffff) + head[12:]
    frame = b"\\x02" + bytes(4) + b"\\x01" + mac + b"\\x08\\x00" + head + struct.pack(">4H", 1234, 9, 8, 0)
    for _ in range(count):
        try:
            sending.send(frame)
        except OSError:  # how a sender hears of a drop
            pass
"""


def own_link(found: Inside) -> tuple[str, str]:
    """The address and the MAC address of the guarded device."""
    (device,) = json.loads(found.inside(binary("ip"), "-json", "addr", "show", "scope0", check=True).stdout)
    return device["addr_info"][0]["local"], device["address"]


def test_the_server_is_nobody_with_one_capability(line: Inside) -> None:
    status = line.status()
    for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh"):
        assert status[name] == "0000000000002000", name
    assert status["NoNewPrivs"] == "1"
    assert status["Groups"].strip() == ""
    assert set(status["Uid"].split()) == {"61101"}


def test_a_frame_that_is_out_of_scope_is_dropped_counted_and_never_seen(host: World, line: Inside) -> None:
    source, mac = own_link(line)
    before, dropped = host.counted(), line.ask("read")["drops"]["target4"]
    line.inside(*attack(FRAMES), source, mac, "5", UNKNOWN_CALLER, NOWHERE, check=True)
    assert line.ask("read")["drops"]["target4"] == dropped + 10
    assert host.counted() == before

    # The tap is not blind: the same frames are seen when they come from the host, which nothing guards.
    host.run(binary("ip"), "link", "add", "scope0", "link", "eth0", "type", "macvlan")
    host.run(binary("ip"), "link", "set", "scope0", "up")
    host.run(*attack(FRAMES), source, mac, "5", UNKNOWN_CALLER, NOWHERE)
    host.run(binary("ip"), "link", "del", "scope0")
    assert host.counted()["stray"] == before["stray"] + 10


@pytest.mark.parametrize("mode", ["macvlan", "nat"])
def test_a_scan_inside_finds_what_a_bare_one_finds(host: World, mode: str) -> None:
    scan = [binary("nmap"), "-n", "-Pn", "--privileged", "-sS", "-p", f"{OPEN_PORT},23", "-oG", "-", TARGET]
    ports = [line for line in host.run(*scan).stdout.splitlines() if "Ports:" in line]
    assert f"{OPEN_PORT}/open/tcp" in ports[0]
    with inside(host, PORT, **({} if mode == "macvlan" else {"settings": {}})) as found:
        stray = host.counted()["stray"]
        assert [line for line in found.inside(*scan, check=True).stdout.splitlines() if "Ports:" in line] == ports
        found.inside(
            binary("nmap"), "-n", "-Pn", "--privileged", "-sS", "-p", str(OPEN_PORT), UNKNOWN_CALLER, check=True
        )
        connecting = attack(f"import socket; socket.create_connection(({UNKNOWN_CALLER!r}, {OPEN_PORT}), 1)")
        assert found.inside(*connecting).returncode
        assert host.counted()["stray"] == stray
        assert sum(found.ask("read")["drops"].values()) > 2


def test_ipv6_is_scanned_and_nothing_is_said_unasked(host: World) -> None:
    own = {"MCP_GUARD_ADDRESSES": "10.99.0.250/24,fd99::250/64"}
    stray = host.counted()["stray"]
    with inside(host, PORT, settings=own, rules=policy(TARGET, "fd99::2")) as found:
        time.sleep(1.5)  # as long as router solicitations and duplicate address detection take to begin
        assert host.counted()["stray"] == stray, "the kernel's own IPv6 chatter left the namespace"
        for line in ("sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0", "ip addr add fd99::2/64 dev eth0 nodad"):
            host.outdoors(*line.split())
        try:
            listen = "import socket; l = socket.create_server(('fd99::2', 2223), family=10)"
            serve = attack(f"{listen}; print('on', flush=True); l.accept()")
            enter = [binary("nsenter"), "--target", str(host.outside), "--net", *serve]
            with subprocess.Popen(enter, stdout=subprocess.PIPE, text=True) as listening:
                assert listening.stdout is not None
                listening.stdout.readline()
                scan = [binary("nmap"), "-6", "-n", "-Pn", "--privileged", "-sS", "-p", "2223", "fd99::2"]
                assert "2223/tcp open" in found.inside(*scan, check=True).stdout
                listening.kill()
        finally:
            host.outdoors("sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1")


def test_the_guard_cannot_be_changed_or_left_from_inside(host: World, line: Inside) -> None:
    before = line.ask("read")["ruleset"]
    for command in (
        [binary("nft"), "flush", "ruleset"],
        [binary("ip"), "link", "set", "scope0", "address", "02:00:00:00:00:99"],
        [binary("ip"), "addr", "add", "10.99.0.77/24", "dev", "scope0"],
        [binary("ip"), "link", "add", "link", "scope0", "type", "macvlan"],
        [binary("nsenter"), "--target", str(host.pid), "--net", "true"],
        [binary("nsenter"), f"--net=/proc/{line.process.pid}/ns/net", "true"],
        [binary("unshare"), "--user", "--map-root-user", binary("nft"), "flush", "ruleset"],
        [binary("unshare"), "--user", "--map-root-user", binary("nsenter"), "--target", str(host.pid), "--net", "true"],
    ):
        refused = line.inside(*command)
        assert refused.returncode, (command, refused.stdout)
    assert line.ask("read")["ruleset"] == before


def test_the_hosts_listening_socket_answers_and_cannot_call_out(host: World, line: Inside) -> None:
    answering = (
        "import os; os.set_blocking(guard.listener.fileno(), True); guard.listener.settimeout(5)\n"
        "c, _ = guard.listener.accept(); c.sendall(b'hello'); c.close(); found = 'answered'"
    )
    client = [
        "timeout",
        "5",
        sys.executable,
        "-c",
        f"import socket; print(socket.create_connection(({HOST!r}, {PORT})).recv(5))",
    ]
    enter = [binary("nsenter"), "--target", str(host.outside), "--net"]
    with subprocess.Popen([*enter, *client], stdout=subprocess.PIPE, text=True) as calling:
        assert line.ask("python", code=answering) == "answered"
        assert calling.communicate(timeout=10)[0].strip() == "b'hello'"

    stray = host.counted()["stray"]
    escaping = (
        "import socket, struct\n"
        "s = guard.listener; s.settimeout(1.5)\n"
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.connect(s.fileno(), bytes(16), 16) == 0\n"  # AF_UNSPEC: it listens no more
        "try:\n"
        f"    s.connect(({UNKNOWN_CALLER!r}, {OPEN_PORT})); found = 'out'\n"
        "except OSError as error:\n"
        "    found = repr(error)"
    )
    assert line.ask("python", code=escaping) != "out"
    assert host.counted()["stray"] == stray
    rules = host.run(binary("nft"), "list", "ruleset").stdout
    (drop,) = [each for each in rules.splitlines() if "skuid" in each and "drop" in each]
    assert "packets 0 " not in drop, "the socket was not even tried"


def test_a_policy_is_widened_and_narrowed_while_the_server_runs(host: World, line: Inside) -> None:
    scan = [binary("nmap"), "-n", "-Pn", "--privileged", "-sS", "-p", str(OPEN_PORT), "-oG", "-", UNKNOWN_CALLER]
    first = line.ask("read")
    wide = line.policy_hash(policy(TARGET, UNKNOWN_CALLER))
    assert line.ask("reload", policy=wide) == wide
    assert f"{OPEN_PORT}/open" in line.inside(*scan, check=True).stdout
    assert line.ask("read")["ruleset"] != first["ruleset"]

    narrow = line.policy_hash(policy(TARGET))
    assert line.ask("reload", policy=narrow) == narrow
    stray = host.counted()["stray"]
    assert f"{OPEN_PORT}/open" not in line.inside(*scan).stdout
    assert host.counted()["stray"] == stray
    assert line.ask("read")["ruleset"] == first["ruleset"]


def test_a_reload_that_read_something_else_says_so(line: Inside) -> None:
    error = line.try_to("reload", policy="0" * 64)["error"]
    assert error["code"] == "guard_unavailable"
    assert "000000000000" in error["message"]


def test_a_bad_policy_file_changes_nothing(host: World, line: Inside) -> None:
    before = line.ask("read")
    (host.folder / "policy.yaml").write_text("version: 1\nallow: [everything")
    error = line.try_to("reload", policy="0" * 64)["error"]
    assert error["code"] == "config_invalid"
    (host.folder / "policy.yaml").write_text(policy("0.0.0.0/1"))
    (host.folder / "policy.yaml").chmod(0o666)
    try:
        assert line.try_to("reload", policy="0" * 64)["error"]["code"] == "config_invalid"
    finally:
        (host.folder / "policy.yaml").chmod(0o644)
    assert line.ask("read")["ruleset"] == before["ruleset"]


def test_a_flood_during_swaps_never_leaks_and_never_stops(host: World, line: Inside) -> None:
    source, mac = own_link(line)
    hashes = {rules: line.policy_hash(rules) for rules in (policy(TARGET), policy(TARGET, "10.98.0.0/16"))}
    before, dropped = host.counted(), sum(line.ask("read")["drops"].values())
    flood = attack(
        "import time\nend = time.monotonic() + 2.5\nwhile time.monotonic() < end:\n "
        + FRAMES.strip().replace("\n", "\n ")
    )
    with subprocess.Popen(
        [binary("nsenter"), "--target", str(line.server), "--net", *flood, source, mac, "200", UNKNOWN_CALLER, TARGET]
    ) as flooding:
        swaps = 0
        while flooding.poll() is None:
            for rules, wanted in hashes.items():
                (host.folder / "policy.yaml").write_text(rules)
                line.ask("reload", policy=wanted)
                swaps += 1
        assert flooding.returncode == 0
    after = host.counted()
    out = sum(line.ask("read")["drops"].values()) - dropped
    assert swaps > 20
    assert out > 1000
    assert after["stray"] == before["stray"]
    seen = after["fine"] - before["fine"]
    assert out <= seen <= out + 10, "as many were sent to each address; the kernel asks for a neighbour now and then"


NONSENSE = [
    b"",
    b"x",
    b"[]",
    b"{}",
    b'["reload","/etc/shadow"]',
    b'[1,"reload","policy.yaml"]',
    b'[true,"read"]',
    b'[1.5,"read"]',
    b'[-1,"read"]',
    b"[" * 100,
    b'[1,"shut"]',
    b'[1,"read"]' + b" " * 5000,
    b"\xff\xfe\x00",
    b'[1e400,"read"]',
]


def test_nonsense_on_the_channel_is_not_answered_and_does_no_harm(line: Inside) -> None:
    for data in NONSENSE[1:]:
        line.ask("send", hex=data.hex())
    assert line.ask("read")["ruleset"]
    for _ in range(50):
        line.try_to("descriptors", count=200)
    assert line.ask("read")["ruleset"]
    held = len(list((line.world.see("/proc") / str(line.process.pid) / "fd").iterdir()))
    assert held < 40, "descriptors that were sent to the guard helper are kept by it"


def test_a_server_that_asks_and_never_reads_does_not_stop_the_guard_helper(line: Inside) -> None:
    asking = (
        "import socket\nfor n in range(5000):\n"
        "    try: guard._channel.send(b'[1,\"read\"]', socket.MSG_DONTWAIT)\n"
        "    except BlockingIOError: pass\n"
    )
    line.ask("python", code=asking)
    assert line.guard()["state"] == "up"
    assert line.ask("read")["ruleset"]


def test_a_guard_that_was_changed_is_no_guard(host: World, line: Inside) -> None:
    tamper = [binary("nsenter"), "--target", str(line.server), "--net", binary("nft")]
    subprocess.run([*tamper, "flush", "chain", "netdev", "mcp_scope", "egress"], check=True)
    error = line.try_to("read")["error"]
    assert error["code"] == "guard_unavailable"
    shown = host.cli("guard", "status", "--json", check=False)
    assert json.loads(shown.stdout)["guards"][0]["state"] == "broken"
    assert shown.returncode == 9
    rules = line.policy_hash(policy(TARGET, UNKNOWN_CALLER))
    assert line.try_to("reload", policy=rules)["error"]["code"] == "guard_unavailable"


def test_loopback_targets_are_looked_at_from_the_host_and_from_nowhere_else(host: World) -> None:
    listening = (
        "import socket, time; l = socket.create_server(('127.0.0.1', 8299)); print('on', flush=True); time.sleep(60)"
    )
    service = subprocess.Popen([*host.prefix, *attack(listening)], stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None
        assert service.stdout.readline() == "on\n"
        with inside(host, PORT, rules=policy(TARGET, "127.0.0.1")) as found:
            _look_at_loopback(host, found)
    finally:
        service.kill()
        service.communicate()


def _look_at_loopback(host: World, found: Inside) -> None:
    def scan(to: str, port: int, *targets: str) -> dict[str, Any]:
        argv = [
            binary("nmap"),
            "-n",
            "-Pn",
            "-sT",
            "--unprivileged",
            "--max-retries",
            "0",
            "-p",
            str(port),
            "-oG",
            "-",
            to,
        ]
        return found.try_to("run", argv=argv, targets=list(targets))

    assert "8299/open/tcp" in scan("127.0.0.1", 8299, "127.0.0.1")["answer"]["output"]
    before = host.counted()
    for to, port in ((TARGET, OPEN_PORT), (UNKNOWN_CALLER, OPEN_PORT), (HOST, PORT)):
        answer = scan(to, port, "127.0.0.1")["answer"]
        assert f"{port}/filtered/tcp" in answer["output"], answer
    assert host.counted() == before
    raw = [binary("nmap"), "-n", "-Pn", "--privileged", "-sS", "-p", "8299", "127.0.0.1"]
    refused = found.ask("run", argv=raw, targets=["127.0.0.1"], raw=True)
    assert refused["returncode"], "raw sockets on the host's loopback"
    assert scan(TARGET, OPEN_PORT, "127.0.0.1", TARGET)["error"]["code"] == "invalid_target"

    found.ask("reload", policy=found.policy_hash(policy(TARGET)))
    assert scan("127.0.0.1", 8299, "127.0.0.1")["error"]["code"] == "guard_unavailable"
    wait_for(lambda: not _processes_of(host, LOOPBACK_UID))
    found.ask("reload", policy=found.policy_hash(policy(TARGET, "127.0.0.1")))
    assert "8299/open/tcp" in scan("127.0.0.1", 8299, "127.0.0.1")["answer"]["output"]
    assert _processes_of(host, LOOPBACK_UID)


def _processes_of(host: World, uid: int) -> list[int]:
    found = []
    for pid in host.processes():
        try:
            lines = (host.see("/proc") / str(pid) / "status").read_text().splitlines()
        except OSError:
            continue
        found += [pid for line in lines if line.startswith("Uid:") and str(uid) in line.split()]
    return found
