"""What a program inside the guard can and cannot do: frames, sockets of the host, the guard helper, policy reloads."""

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
def program(host: World) -> Iterator[Inside]:
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
        except OSError:  # some senders get an error for a dropped frame
            pass
"""


def own_link(found: Inside) -> tuple[str, str]:
    """The IPv4 address and the MAC address of the guarded device."""
    (device,) = json.loads(found.inside(binary("ip"), "-json", "addr", "show", "scope0", check=True).stdout)
    return device["addr_info"][0]["local"], device["address"]


def test_the_server_is_an_unprivileged_user_with_one_capability(program: Inside) -> None:
    status = program.status()
    for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh"):
        assert status[name] == "0000000000002000", f"{name}: expected CAP_NET_RAW only, found {status[name]}"
    assert status["NoNewPrivs"] == "1"
    assert status["Groups"].strip() == ""
    assert set(status["Uid"].split()) == {"61101"}


def test_frames_outside_the_scope_are_dropped_and_counted_and_never_arrive(host: World, program: Inside) -> None:
    source, mac = own_link(program)
    before, dropped = host.counted(), program.ask("read")["drops"]["target4"]
    program.inside(*attack(FRAMES), source, mac, "5", UNKNOWN_CALLER, NOWHERE, check=True)
    assert program.ask("read")["drops"]["target4"] == dropped + 10
    assert host.counted() == before

    # The counters work: the same frames arrive if they come from the unguarded host.
    host.run(binary("ip"), "link", "add", "scope0", "link", "eth0", "type", "macvlan")
    host.run(binary("ip"), "link", "set", "scope0", "up")
    host.run(*attack(FRAMES), source, mac, "5", UNKNOWN_CALLER, NOWHERE)
    host.run(binary("ip"), "link", "del", "scope0")
    assert host.counted()["stray"] == before["stray"] + 10


@pytest.mark.parametrize("mode", ["macvlan", "nat"])
def test_a_guarded_scan_finds_the_same_as_an_unguarded_one(host: World, mode: str) -> None:
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


def test_ipv6_can_be_scanned_and_the_kernel_itself_sends_nothing(host: World) -> None:
    own = {"MCP_GUARD_ADDRESSES": "10.99.0.250/24,fd99::250/64"}
    stray = host.counted()["stray"]
    with inside(host, PORT, settings=own, rules=policy(TARGET, "fd99::2")) as found:
        time.sleep(1.5)  # router solicitations and duplicate address detection would have begun by then
        found_stray = host.counted()["stray"]
        assert found_stray == stray, f"expected no frames of the kernel itself, found {found_stray - stray}"
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


def test_a_program_inside_can_neither_change_nor_leave_the_guard(host: World, program: Inside) -> None:
    before = program.ask("read")["ruleset"]
    for command in (
        [binary("nft"), "flush", "ruleset"],
        [binary("ip"), "link", "set", "scope0", "address", "02:00:00:00:00:99"],
        [binary("ip"), "addr", "add", "10.99.0.77/24", "dev", "scope0"],
        [binary("ip"), "link", "add", "link", "scope0", "type", "macvlan"],
        [binary("nsenter"), "--target", str(host.pid), "--net", "true"],
        [binary("nsenter"), f"--net=/proc/{program.process.pid}/ns/net", "true"],
        [binary("unshare"), "--user", "--map-root-user", binary("nft"), "flush", "ruleset"],
        [binary("unshare"), "--user", "--map-root-user", binary("nsenter"), "--target", str(host.pid), "--net", "true"],
    ):
        refused = program.inside(*command)
        assert refused.returncode, f"expected {command} to fail, found {refused.stdout!r}"
    assert program.ask("read")["ruleset"] == before


def test_sockets_of_the_host_can_answer_but_not_connect(host: World, program: Inside) -> None:
    """The listening socket and its accepted connections stay in the host's namespace."""
    accept = (
        "import os; os.set_blocking(guard.listener.fileno(), True); guard.listener.settimeout(5)\n"
        "guard.accepted, _ = guard.listener.accept(); guard.accepted.sendall(b'hello'); found = 'answered'"
    )
    connect = f"import socket; print(socket.create_connection(({HOST!r}, {PORT})).recv(5))"
    enter = [binary("nsenter"), "--target", str(host.outside), "--net"]
    client = [*enter, "timeout", "5", sys.executable, "-c", connect]
    with subprocess.Popen(client, stdout=subprocess.PIPE, text=True) as connecting:
        assert program.ask("python", code=accept) == "answered"
        assert connecting.communicate(timeout=10)[0].strip() == "b'hello'"

    stray = host.counted()["stray"]
    assert _reconnect(program, "guard.listener") != "connected"
    # Linux 6.18.44 refuses to connect a socket that has listened. For an accepted connection, only the rule does.
    before = _dropped_by_user_rule(host)
    assert _reconnect(program, "guard.accepted") != "connected"
    assert host.counted()["stray"] == stray
    dropped = _dropped_by_user_rule(host) - before
    assert dropped > 0, f"expected the rule for the server's user to drop packets, found {dropped}"


def _reconnect(program: Inside, name: str) -> str:
    """Disconnect a socket of the program with AF_UNSPEC, then connect it to an address outside the scope."""
    code = (
        "import ctypes\n"
        f"{name}.settimeout(1.5)\n"
        f"assert ctypes.CDLL(None, use_errno=True).connect({name}.fileno(), bytes(16), 16) == 0\n"
        "try:\n"
        f"    {name}.connect(({UNKNOWN_CALLER!r}, {OPEN_PORT})); found = 'connected'\n"
        "except OSError as error:\n"
        "    found = repr(error)"
    )
    result: str = program.ask("python", code=code)
    return result


def _dropped_by_user_rule(host: World) -> int:
    rules = host.run(binary("nft"), "list", "ruleset").stdout
    (rule,) = [line for line in rules.splitlines() if "skuid" in line and "drop" in line]
    return int(rule.split("packets ")[1].split()[0])


def test_a_reload_can_widen_and_narrow_the_policy_while_the_server_runs(host: World, program: Inside) -> None:
    scan = [binary("nmap"), "-n", "-Pn", "--privileged", "-sS", "-p", str(OPEN_PORT), "-oG", "-", UNKNOWN_CALLER]
    first = program.ask("read")
    wide = program.policy_hash(policy(TARGET, UNKNOWN_CALLER))
    assert program.ask("reload", policy=wide) == wide
    assert f"{OPEN_PORT}/open" in program.inside(*scan, check=True).stdout
    assert program.ask("read")["ruleset"] != first["ruleset"]

    narrow = program.policy_hash(policy(TARGET))
    assert program.ask("reload", policy=narrow) == narrow
    stray = host.counted()["stray"]
    assert f"{OPEN_PORT}/open" not in program.inside(*scan).stdout
    assert host.counted()["stray"] == stray
    assert program.ask("read")["ruleset"] == first["ruleset"]


def test_a_reload_with_another_policy_than_the_servers_is_an_error(program: Inside) -> None:
    error = program.try_to("reload", policy="0" * 64)["error"]
    assert error["code"] == "guard_unavailable"
    assert "000000000000" in error["message"]


def test_an_invalid_policy_file_changes_nothing(host: World, program: Inside) -> None:
    before = program.ask("read")
    (host.folder / "policy.yaml").write_text("version: 1\nallow: [everything")
    error = program.try_to("reload", policy="0" * 64)["error"]
    assert error["code"] == "config_invalid"
    (host.folder / "policy.yaml").write_text(policy("0.0.0.0/1"))
    (host.folder / "policy.yaml").chmod(0o666)
    try:
        assert program.try_to("reload", policy="0" * 64)["error"]["code"] == "config_invalid"
    finally:
        (host.folder / "policy.yaml").chmod(0o644)
    assert program.ask("read")["ruleset"] == before["ruleset"]


def test_reloads_under_load_neither_leak_nor_stop_frames(host: World, program: Inside) -> None:
    source, mac = own_link(program)
    hashes = {rules: program.policy_hash(rules) for rules in (policy(TARGET), policy(TARGET, "10.98.0.0/16"))}
    before, dropped = host.counted(), sum(program.ask("read")["drops"].values())
    sender = attack(
        "import time\nend = time.monotonic() + 2.5\nwhile time.monotonic() < end:\n "
        + FRAMES.strip().replace("\n", "\n ")
    )
    with subprocess.Popen(
        [
            binary("nsenter"),
            "--target",
            str(program.server),
            "--net",
            *sender,
            source,
            mac,
            "200",
            UNKNOWN_CALLER,
            TARGET,
        ]
    ) as sending:
        reloads = 0
        while sending.poll() is None:
            for rules, wanted in hashes.items():
                (host.folder / "policy.yaml").write_text(rules)
                program.ask("reload", policy=wanted)
                reloads += 1
        assert sending.returncode == 0
    after = host.counted()
    out = sum(program.ask("read")["drops"].values()) - dropped
    assert reloads > 20
    assert out > 1000
    assert after["stray"] == before["stray"]
    seen = after["fine"] - before["fine"]
    # As many frames were sent to each address. The kernel sends a few ARP requests of its own.
    assert out <= seen <= out + 10


INVALID_REQUESTS = [
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


def test_invalid_requests_to_the_guard_helper_are_ignored(program: Inside) -> None:
    for data in INVALID_REQUESTS:
        program.ask("send", hex=data.hex())
    assert program.ask("read")["ruleset"]
    for _ in range(50):
        program.try_to("descriptors", count=200)
    assert program.ask("read")["ruleset"]
    held = len(list((program.world.see("/proc") / str(program.process.pid) / "fd").iterdir()))
    assert held < 40, f"expected the guard helper to keep no passed descriptors, found {held} open ones"


def test_a_server_that_reads_no_replies_does_not_block_the_guard_helper(program: Inside) -> None:
    requests = (
        "import socket\nfor n in range(5000):\n"
        "    try: guard._channel.send(b'[1,\"read\"]', socket.MSG_DONTWAIT)\n"
        "    except BlockingIOError: pass\n"
    )
    program.ask("python", code=requests)
    assert program.guard()["state"] == "up"
    assert program.ask("read")["ruleset"]


def test_a_changed_ruleset_makes_the_guard_unavailable(host: World, program: Inside) -> None:
    tamper = [binary("nsenter"), "--target", str(program.server), "--net", binary("nft")]
    subprocess.run([*tamper, "flush", "chain", "netdev", "mcp_scope", "egress"], check=True)
    error = program.try_to("read")["error"]
    assert error["code"] == "guard_unavailable"
    shown = host.cli("guard", "status", "--json", check=False)
    assert json.loads(shown.stdout)["guards"][0]["state"] == "broken"
    assert shown.returncode == 9
    rules = program.policy_hash(policy(TARGET, UNKNOWN_CALLER))
    assert program.try_to("reload", policy=rules)["error"]["code"] == "guard_unavailable"


def test_only_loopback_targets_are_scanned_from_the_host(host: World) -> None:
    listening = (
        "import socket, time; l = socket.create_server(('127.0.0.1', 8299)); print('on', flush=True); time.sleep(60)"
    )
    service = subprocess.Popen([*host.prefix, *attack(listening)], stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None
        assert service.stdout.readline() == "on\n"
        with inside(host, PORT, rules=policy(TARGET, "127.0.0.1")) as found:
            _scan_loopback(host, found)
    finally:
        service.kill()
        service.communicate()


def _scan_loopback(host: World, found: Inside) -> None:
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
    assert refused["returncode"], "expected no raw sockets on the host's loopback, found a successful scan"
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
