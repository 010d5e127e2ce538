"""When a guard is not set up: each refusal is a typed error with a hint, and the host does not change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.guarded import HOST, SERVER_UID, TARGET, World, environment, policy, world
from tests.support.processes import binary


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture
def host(shared: World) -> Iterator[World]:
    """The host with a policy. The test fails if anything except files has changed at the end."""
    shared.env = environment()
    (shared.folder / "policy.yaml").write_text(policy(TARGET, "127.0.0.1"))
    before = shared.traces()
    yield shared
    assert shared.traces() == before
    shared.run("rm", "-rf", "/run/world")
    shared.run("mkdir", "/run/world")


def refused(host: World, *words: str, prefix: Sequence[str] = (), **settings: Any) -> tuple[int, str]:
    """Try to start a server. Return its exit code and its standard error."""
    host.env = environment(**settings)
    done = host.run(*prefix, sys.executable, "-m", "mcp_server", "serve", "--guard", "kernel", *words, check=False)
    assert done.returncode, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_only_root_can_set_up_the_kernel_tier(host: World) -> None:
    prefix = (binary("setpriv"), f"--reuid={SERVER_UID}", f"--regid={SERVER_UID}", "--clear-groups")
    code, said = refused(host, prefix=prefix)
    assert code == 9
    assert said.startswith("guard_unavailable: Only root can set up the kernel tier.")
    assert "sudo mcp-network-tools serve --guard kernel" in said


def test_the_servers_user_must_exist(host: World) -> None:
    code, said = refused(host, MCP_GUARD_USER="nobody-of-that-name")
    assert code == 9
    assert "guard.user: the user 'nobody-of-that-name' does not exist" in said
    assert "sudo useradd --system" in said


def test_the_users_must_not_be_root_and_must_differ(host: World) -> None:
    code, said = refused(host, MCP_GUARD_USER="root")
    assert (code, said.split(":")[0]) == (8, "config_invalid")
    code, said = refused(host, MCP_GUARD_LOOPBACK_USER="world-server")
    assert (code, said.split(":")[0]) == (8, "config_invalid")
    assert "guard.loopback_user" in said


@pytest.mark.parametrize(("hidden", "package"), [("libnftables", "nftables"), ("ip", "iproute2")])
def test_a_missing_program_is_named_with_its_package(host: World, hidden: str, package: str) -> None:
    if hidden == "ip":
        hide = "for p in /usr/sbin/ip /usr/bin/ip /sbin/ip /bin/ip; do [ -e $p ] && mount --bind /dev/null $p; done"
    else:
        hide = "for p in $(ldconfig -p | sed -n 's/.*libnftables.so.1 .*=> //p'); do mount --bind /dev/null $p; done"
    private = (binary("unshare"), "--mount", "--propagation", "private", "sh", "-c", f'{hide}; exec "$@"', "sh")
    code, said = refused(host, prefix=private)
    assert code == 9, said
    assert said.startswith("guard_unavailable"), said
    assert package in said


def test_a_port_in_use_is_refused(host: World) -> None:
    listening = f"import socket; l = socket.create_server(('{HOST}', 8301)); print('on', flush=True); l.accept()"
    with subprocess.Popen([*host.prefix, "python3", "-c", listening], stdout=subprocess.PIPE, text=True) as taken:
        try:
            assert taken.stdout is not None
            taken.stdout.readline()
            before = host.traces()
            code, said = refused(host, "--transport", "http", "--host", HOST, "--port", "8301")
            assert code == 8
            assert "the port is in use" in said
            assert host.traces() == before
        finally:
            taken.kill()


def test_a_state_folder_with_files_of_another_user_is_refused(host: World) -> None:
    host.run("mkdir", "-p", "/run/world/state/runs")
    code, said = refused(host)
    assert code == 9
    assert "does not belong to the server's user 'world-server'" in said
    assert "sudo chown -R world-server: /run/world/state" in said


def test_a_state_folder_that_the_user_cannot_reach_is_refused(host: World) -> None:
    host.run("mkdir", "-m", "700", "/run/world/shut")
    code, said = refused(host, MCP_STATE_DIR="/run/world/shut/state")
    assert code == 9
    assert "cannot reach the state folder" in said


@pytest.mark.parametrize("how", ["file", "group", "folder", "link"])
def test_a_policy_file_that_the_server_could_change_is_refused(host: World, how: str) -> None:
    file, settings = "/run/world/policy.yaml", dict[str, str]()
    if how == "file":
        host.run("chown", str(SERVER_UID), file)
    elif how == "group":
        host.run("chgrp", str(SERVER_UID), "/run/world")
        host.run("chmod", "775", "/run/world")
    elif how == "folder":
        host.run("sh", "-c", f"mkdir /run/world/own && cp {file} /run/world/own && chown {SERVER_UID} /run/world/own")
        settings = {"MCP_SECURITY_POLICY_FILE": "/run/world/own/policy.yaml"}
    else:
        host.run(
            "sh", "-c", f"mkdir /run/world/own && ln -s {file} /run/world/own && chown {SERVER_UID} /run/world/own"
        )
        settings = {"MCP_SECURITY_POLICY_FILE": "/run/world/own/policy.yaml"}
    code, said = refused(host, **settings)
    assert code == 8, said
    if how == "group":  # a file that a group can write is refused for every user
        assert "its folder /run/world has mode 0775" in said
    else:
        assert "can change /run/world" in said
        assert "sudo chown root:root" in said
    host.run("chmod", "755", "/run/world")


def test_a_configuration_that_the_server_cannot_read_is_refused(host: World) -> None:
    host.run("sh", "-c", "echo 'server: {transport: stdio}' >/run/world/c.yaml; chmod 600 /run/world/c.yaml")
    code, said = refused(host, MCP_CONFIG_FILE="/run/world/c.yaml")
    assert code == 9
    assert "cannot read /run/world/c.yaml" in said
    assert "chgrp" in said


def test_an_installation_that_the_user_cannot_run_is_refused(host: World) -> None:
    python = Path(sys.base_prefix).resolve()
    shut = (
        f"mkdir /run/k && mount --bind {python} /run/k && mount -t tmpfs -o mode=700 shut {python.parent} && "
        f'mkdir {python} && mount --bind /run/k {python} && umount /run/k && rmdir /run/k && exec "$@"'
    )
    private = (binary("unshare"), "--mount", "--propagation", "private", "sh", "-c", shut, "sh")
    code, said = refused(host, prefix=private)
    assert code == 9
    assert "cannot run this installation" in said
    assert "/opt/mcp-network-tools" in said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"MCP_GUARD_UPLINK": "wlan9"}, "no network device 'wlan9'"),
        ({"MCP_GUARD_MODE": "macvlan"}, "needs guard.addresses"),
        ({"MCP_GUARD_ADDRESSES": "10.99.0.250/24", "MCP_GUARD_GATEWAYS": "10.98.0.1"}, "not in a network of"),
        ({"MCP_GUARD_ADDRESSES": "10.99.0.250/24", "MCP_GUARD_UPLINK": "lo"}, "not an Ethernet device"),
        ({"MCP_GUARD_LINK_NETWORK": "10.99.0.0/30"}, "is in use: eth0 has the address 10.99.0.1"),
    ],
)
def test_settings_that_do_not_match_the_hosts_devices_are_refused(
    host: World, settings: dict[str, str], words: str
) -> None:
    code, said = refused(host, **settings)
    assert code == 8, said
    assert words in said


def test_without_a_default_route_the_uplink_must_be_set(host: World) -> None:
    host.run(binary("ip"), "route", "del", "default")
    try:
        code, said = refused(host)
        assert code == 8
        assert "guard.uplink" in said
    finally:
        host.run(binary("ip"), "route", "add", "default", "via", TARGET)


def test_a_weaker_tier_than_required_is_refused(host: World) -> None:
    host.env = environment(MCP_SECURITY_REQUIRE_ENFORCEMENT="kernel", MCP_GUARD_USER="")
    for words in ((), ("--guard", "argument")):
        done = host.run(sys.executable, "-m", "mcp_server", "serve", *words, check=False)
        assert done.returncode == 9
        assert done.stderr.startswith("enforcement_too_weak")


def test_without_a_user_for_the_server_root_gets_the_argument_tier_and_the_reason(host: World) -> None:
    host.env = environment(MCP_GUARD_USER="", MCP_STATE_DIR="/run/world/roots")
    done = host.run(sys.executable, "-m", "mcp_server", "serve", text_in="")
    (line,) = [line for line in done.stderr.splitlines() if "guard.chosen" in line]
    assert '"enforcement": "argument"' in line
    assert "guard.user" in line


@pytest.fixture
def default_user(host: World) -> Iterator[World]:
    """The host with the server's default user."""
    line = f"mcp-network-tools:x:{SERVER_UID}:{SERVER_UID}::/nonexistent:/usr/sbin/nologin"
    host.run("sh", "-c", f"echo {line} >>/etc/passwd")
    yield host
    host.run("sh", "-c", "grep -v ^mcp-network-tools: /etc/passwd >/run/keep/p; cat /run/keep/p >/etc/passwd")


def test_if_the_default_user_exists_root_gets_the_kernel_tier(default_user: World) -> None:
    default_user.env = environment(MCP_GUARD_USER="", MCP_STATE_DIR="/run/world/its-own")
    done = default_user.run(sys.executable, "-m", "mcp_server", "serve", text_in="")
    assert '"event": "guard.up", "enforcement": "kernel"' in done.stderr


def test_a_problem_with_the_default_user_is_a_reason_and_no_error(default_user: World) -> None:
    default_user.env = environment(MCP_GUARD_USER="", MCP_STATE_DIR="/run/world/roots")
    default_user.run("sh", "-c", "mkdir /run/world/roots && touch /run/world/roots/store.db")
    done = default_user.run(sys.executable, "-m", "mcp_server", "serve", text_in="")
    (line,) = [line for line in done.stderr.splitlines() if "guard.chosen" in line]
    assert '"enforcement": "argument"' in line
    assert "does not belong to" in line


def test_if_a_user_is_configured_root_gets_the_kernel_tier(host: World) -> None:
    host.env = environment()
    done = host.run(sys.executable, "-m", "mcp_server", "serve", text_in="")
    assert '"event": "guard.up", "enforcement": "kernel"' in done.stderr


def test_root_without_the_needed_capabilities_is_refused(host: World) -> None:
    """An ordinary container has no CAP_NET_ADMIN."""
    prefix = (binary("setpriv"), "--bounding-set=-net_admin,-sys_admin", "--inh-caps=-all", "--")
    code, said = refused(host, prefix=prefix)
    assert code == 9, said
    assert said.startswith("guard_unavailable: Root lacks CAP_NET_ADMIN, CAP_SYS_ADMIN"), said


def test_a_read_only_proc_sys_is_refused(host: World) -> None:
    """Some containers have all capabilities, but /proc/sys is read-only in them."""
    private = (binary("unshare"), "--mount", "--propagation", "private", "sh", "-c",
               'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"', "sh")  # fmt: skip
    code, said = refused(host, prefix=private)
    assert code == 9, said
    assert said.startswith("guard_unavailable: The guard cannot be set up: [Errno 30]"), said


RECORD: dict[str, Any] = {
    "helper": 999999, "born": 1, "host": 0, "enforcement": "kernel", "user": "u", "mode": "nat", "uplink": "eth0",
    "server": 0, "device": "mcps999999", "tables": [["ip", "mcp_scope_nat_999999"]], "sysctls": {}, "addresses": [],
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"sysctls": {"/run/world/victim": "0"}},
        {"sysctls": {"/proc/sys/net/ipv4/conf/../forwarding": "0"}},
        {"tables": [["inet", "x\nadd table inet injected"]]},
        {"device": "eth0"},
        {"user": "\x1b]0;title\x07"},
        {"helper": 1},
        {"more": 1},
    ],
    ids=str,
)
def test_a_record_that_no_guard_helper_can_have_written_is_ignored(host: World, change: dict[str, Any]) -> None:
    folder = host.see("/run/mcp-network-tools")
    folder.mkdir(mode=0o700, exist_ok=True)
    record = folder / "guard-999999.json"
    inode = _inode(host)
    try:
        record.write_text(json.dumps(RECORD | {"host": inode} | change))
        record.chmod(0o600)
        for command in ("status", "down"):
            done = host.cli("guard", command, check=False)
            assert (done.returncode, "is not a valid record of a guard" in done.stderr) == (9, True), done.stderr
        record.write_text(json.dumps(RECORD | {"host": inode}))
        assert host.cli("guard", "down", "--dead").stdout == "Ended: 999999\n"
    finally:
        record.unlink(missing_ok=True)


def test_a_folder_of_guards_that_other_users_can_change_is_not_trusted(host: World) -> None:
    folder = host.see("/run/mcp-network-tools")
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        os.chown(folder, SERVER_UID, SERVER_UID)
        assert "only root can change" in host.cli("guard", "down", check=False).stderr
        assert "only root can change" in refused(host)[1]
        os.chown(folder, 0, 0)
        (folder / "lock").unlink(missing_ok=True)
        (folder / "lock").symlink_to("/run/world/made")
        (folder / "guard-999999.json").write_text(json.dumps(RECORD | {"host": _inode(host)}))
        assert "lock is not a valid record" in host.cli("guard", "down", check=False).stderr
        assert not (host.folder / "made").exists()
    finally:
        os.chown(folder, 0, 0)
        for name in ("lock", "guard-999999.json"):
            (folder / name).unlink(missing_ok=True)


def _inode(host: World) -> int:
    return Path(f"/proc/{host.pid}/ns/net").stat().st_ino
