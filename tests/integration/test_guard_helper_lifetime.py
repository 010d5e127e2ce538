"""A guard from its start to every kind of end: it serves requests, and afterwards the host is as before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest

from tests.support.guarded import (
    GUARDED,
    HOST,
    MACVLAN,
    OPEN_PORT,
    ROOT,
    SOON,
    TARGET,
    UNKNOWN_CALLER,
    Guarded,
    World,
    environment,
    guarded,
    policy,
    wait_for,
    world,
)
from tests.support.processes import binary

MODES = {"macvlan": MACVLAN, "nat": {}}


@pytest.fixture(scope="module")
def host() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture
def clean(host: World) -> Iterator[World]:
    """The host. The test fails if the host is not as before at the end."""
    before = host.traces()
    yield host
    wait_for(lambda: host.traces() == before, lambda: f"{before}\n{host.traces()}\n{host.log}")


def http(port: int) -> tuple[str, ...]:
    return ("serve", "--guard", "kernel", "--transport", "http", "--host", HOST, "--port", str(port))


def listening(host: World) -> None:
    wait_for(lambda: "Listening on" in host.log, lambda: host.log, 30)


def ask(host: World, port: int, path: str, body: dict[str, Any] | None = None) -> Any:
    """Send a request to the REST interface from the machine outside."""
    token = (host.folder / "state/token").read_text().strip()
    script = (
        "import json, sys, urllib.request\n"
        "r = urllib.request.Request(sys.argv[1], data=sys.argv[3].encode() or None, headers={"
        "'Authorization': 'Bearer ' + sys.argv[2], 'Content-Type': 'application/json'})\n"
        "try: print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(r, timeout=30).read().decode())\n"
        "except urllib.error.HTTPError as e: print(e.read().decode())"
    )
    sent = json.dumps(body) if body else ""
    return json.loads(host.outdoors(sys.executable, "-c", script, f"http://{HOST}:{port}{path}", token, sent).stdout)


def logged(host: World) -> list[dict[str, Any]]:
    """The audit records of the servers so far. Each must match the schema."""
    lines = (host.folder / "state/audit.jsonl").read_text().splitlines()
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    validator = jsonschema.Draft202012Validator(
        json.loads((ROOT / "src/mcp_server/audit/record.schema.json").read_text())
    )
    assert [error.message for record in records for error in validator.iter_errors(record)] == []
    return records


@pytest.mark.parametrize("mode", MODES)
def test_a_scan_over_http_is_complete_and_stays_in_scope(clean: World, mode: str) -> None:
    with guarded(clean, *http(8101), settings=MODES[mode], rules=policy(TARGET, "127.0.0.1")) as found:
        listening(clean)
        status = found.status()
        for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
            assert status[name] == "0000000000002000", f"{name}: expected CAP_NET_RAW only, found {status[name]}"
        assert status["NoNewPrivs"] == "1"
        spaces = [Path(f"/proc/{pid}/ns/net").stat().st_ino for pid in (found.server, found.process.pid)]
        assert spaces[0] != spaces[1]
        stray = clean.counted()["stray"]
        scan = {"target": TARGET, "mode": "ports", "ports": f"23,{OPEN_PORT}"}
        result = ask(clean, 8101, "/tools/nmap/execute", scan)
        (open_port,) = [port for port in result["hosts"][0]["ports"] if port["state"] == "open"]
        assert open_port["number"] == OPEN_PORT
        assert result["coverage"]["ports"][0]["method"] == "syn"
        assert (
            ask(clean, 8101, "/tools/nmap/execute", scan | {"target": UNKNOWN_CALLER})["code"] == "target_out_of_scope"
        )
        assert ask(clean, 8101, "/tools/nmap/execute", scan | {"target": "127.0.0.1"})["outcome"] == "completed"
        assert clean.counted()["stray"] == stray
    assert found.process.returncode == 0
    held = [(r["executor"], r["sandbox"]["tier"]) for r in logged(clean) if r.get("decision") == "accept"][-2:]
    assert held == [("here", "supervisor"), ("loopback", "user-namespace")]


def test_the_health_check_starts_a_program_with_both_runners_and_sends_nothing(clean: World) -> None:
    """These are the server's own runner inside the guard, and the loopback runner on the host."""
    stray = clean.counted()["stray"]
    with guarded(clean, *http(8104), rules=policy(TARGET, "127.0.0.0/8")):
        listening(clean)
        checks = {check["name"]: check for check in ask(clean, 8104, "/health")["checks"]}
    assert (checks["engine"]["state"], checks["guard"]["state"]) == ("ok", "ok")
    assert "(here, loopback)" in checks["engine"]["detail"]
    assert clean.counted()["stray"] == stray


@pytest.mark.parametrize("mode", MODES)
def test_the_end_of_standard_input_ends_the_guard_within_a_second(clean: World, mode: str) -> None:
    took = []
    for _ in range(3):
        with guarded(clean, settings=MODES[mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as found:
            assert found.process.stdin is not None
            assert found.process.stdout is not None
            hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
            message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
            found.process.stdin.write(json.dumps(message) + "\n")
            found.process.stdin.flush()
            assert "serverInfo" in json.loads(found.process.stdout.readline())["result"]
            started = time.monotonic()
            found.process.stdin.close()
            assert found.process.stdout.read() == ""  # the client waits for the end of the output
            assert found.process.wait(10) == 0
            found.process.stdin = None
            took.append(time.monotonic() - started)
        if took[-1] < 1:
            return
    pytest.fail(f"expected an end within a second, found {took}")


def end(found: Guarded, *pids: int) -> None:
    """Kill processes with SIGKILL, nearly at the same time, and wait for the end of the guard helper."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    found.process.wait(10)


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_server_ends_the_whole_guard(clean: World, mode: str) -> None:
    with guarded(clean, settings=MODES[mode]) as found:
        end(found, found.server)
    assert found.process.returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_guard_helper_ends_the_whole_guard(clean: World, mode: str) -> None:
    with guarded(clean, settings=MODES[mode], rules=policy(TARGET, "127.0.0.1")) as found:
        left = subprocess.Popen(
            [binary("nsenter"), "--target", str(found.server), "--net", "setsid", "sleep", "600"]
        )  # like a tool that has left the control of its runner
        end(found, found.process.pid)
        assert left.wait(10) == -signal.SIGKILL
        wait_for(lambda: not Path(f"/proc/{found.server}").exists() or found.status()["State"].startswith("Z"))


@pytest.mark.parametrize("mode", MODES)
def test_killing_guard_helper_and_server_together_leaves_nothing(clean: World, mode: str) -> None:
    with guarded(clean, settings=MODES[mode]) as found:
        end(found, found.process.pid, found.server)


def reaper(found: Guarded) -> int:
    """The PID of the reaper: the only child of the guard helper besides the server."""
    children = Path(f"/proc/{found.process.pid}/task/{found.process.pid}/children").read_text().split()
    (pid,) = {int(child) for child in children} - {found.server}
    return pid


@pytest.mark.parametrize("by", ["guard down", "the next guard"])
def test_changes_to_the_host_are_undone_later_if_the_reaper_was_killed_too(clean: World, by: str) -> None:
    before = clean.traces()
    with guarded(clean, settings={}) as found:
        end(found, reaper(found), found.process.pid)
    left = clean.traces()
    assert left["tables"] != before["tables"]
    assert left["settings"] != before["settings"]
    shown = clean.cli("guard", "status", "--json", check=False)
    assert (shown.returncode, json.loads(shown.stdout)["guards"][0]["state"]) == (9, "dead")
    if by == "guard down":
        assert json.loads(clean.cli("guard", "down", "--json").stdout)["taken_down"] == [found.process.pid]
    else:
        with guarded(clean, settings=MACVLAN):
            assert len(clean.traces()["tables"]) == 1


def test_a_clean_end_does_not_need_the_reaper(clean: World) -> None:
    with guarded(clean, *http(8105), settings={}) as found:
        listening(clean)
        os.kill(reaper(found), signal.SIGKILL)
        found.process.send_signal(signal.SIGTERM)
        assert found.process.wait(10) == 0


@pytest.mark.parametrize("mode", MODES)
def test_guard_status_and_guard_down_report_and_end_a_guard(clean: World, mode: str) -> None:
    nothing = clean.cli("guard", "status", check=False)
    assert (nothing.returncode, nothing.stdout) == (4, "There is no guard.\n")
    with guarded(clean, *http(8102), settings=MODES[mode]) as found:
        listening(clean)
        shown = found.guard()
        assert (shown["state"], shown["enforcement"], shown["mode"]) == ("up", "kernel", mode)
        assert (shown["helper"], shown["server"]) == (found.process.pid, found.server)
        assert len(shown["ruleset"]) == len(shown["policy"]) == 64
        assert str(found.process.pid) in clean.cli("guard", "status").stdout
        assert clean.cli("guard", "down", "--dead").stdout == "There was no guard.\n"
        elsewhere = clean.run("unshare", "--net", sys.executable, "-m", "mcp_server", "guard", "down", check=False)
        assert (elsewhere.returncode, "belongs to another network namespace" in elsewhere.stderr) == (9, True)
        assert found.guard()["state"] == "up"
        assert json.loads(clean.cli("guard", "down", "--json").stdout) == {"taken_down": [found.process.pid]}
        found.process.wait(5)
    assert clean.cli("guard", "down").stdout == "There was no guard.\n"


def test_two_guards_work_on_one_host(clean: World) -> None:
    second = {"MCP_GUARD_ADDRESSES": "10.99.0.251/24", "MCP_GUARD_GATEWAYS": TARGET}
    with guarded(clean, settings=MACVLAN, stdin=subprocess.PIPE) as one:
        with guarded(clean, settings=second, stdin=subprocess.PIPE) as two:
            for found in (one, two):
                scan = [binary("nmap"), "-n", "-Pn", "--privileged", "-sS", "-p", str(OPEN_PORT), TARGET]
                assert f"{OPEN_PORT}/tcp open" in found.inside(*scan, check=True).stdout
        assert f"{OPEN_PORT}/tcp open" in one.inside(*scan, check=True).stdout


def test_a_second_guard_in_nat_mode_needs_its_own_link_network_and_keeps_forwarding(clean: World) -> None:
    scan = [binary("nmap"), "-n", "-Pn", "--privileged", "-sS", "-p", str(OPEN_PORT), TARGET]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE}
    with guarded(clean, settings={}, **pipes) as one:
        refused = clean.cli("serve", "--guard", "kernel", check=False)
        assert refused.returncode == 8
        assert "guard.link_network" in refused.stderr
        with guarded(clean, settings={"MCP_GUARD_LINK_NETWORK": "198.18.77.4/30"}, **pipes) as two:
            one.process.send_signal(signal.SIGTERM)
            one.process.wait(10)
            assert f"{OPEN_PORT}/tcp open" in two.inside(*scan, check=True).stdout


def test_in_nat_mode_nothing_else_is_forwarded(clean: World) -> None:
    """The machine outside can neither use the host as a router nor reach the namespace."""
    with guarded(clean, settings={}, stdin=subprocess.PIPE) as found:
        clean.outdoors(binary("ip"), "route", "add", "198.18.77.0/30", "via", HOST)
        clean.outdoors(binary("ip"), "route", "add", "192.0.2.0/24", "via", HOST)
        try:
            serve = "import socket; l = socket.create_server(('0.0.0.0', 8103)); print('on', flush=True); l.accept()"
            enter = [binary("nsenter"), "--target", str(found.server), "--net", sys.executable, "-c", serve]
            with subprocess.Popen(enter, stdout=subprocess.PIPE, text=True) as target:
                assert target.stdout is not None
                target.stdout.readline()
                try:
                    reach = "import socket; socket.create_connection(('198.18.77.2', 8103), 1)"
                    assert clean.outdoors(sys.executable, "-c", reach, check=False).returncode
                finally:
                    target.kill()
            before = clean.counted()["stray"]
            through = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.9', 9))"
            clean.outdoors(sys.executable, "-c", through)
            time.sleep(0.2)
            assert clean.counted()["stray"] == before  # a forwarded packet would come back
            rules = clean.run(binary("nft"), "list", "ruleset").stdout
            (rule,) = [line for line in rules.splitlines() if 'iifname "eth0" oifname !=' in line]
            assert "packets 0 " not in rule, f"expected dropped packets, found {rule}"
        finally:
            clean.outdoors(binary("ip"), "route", "del", "198.18.77.0/30")
            clean.outdoors(binary("ip"), "route", "del", "192.0.2.0/24")


def test_a_signal_reaches_the_server_once(clean: World) -> None:
    with guarded(clean, *http(8104), settings=MACVLAN) as found:
        listening(clean)
        found.process.send_signal(signal.SIGINT)
        assert found.process.wait(10) == 0
    assert clean.log.count("Shutting down") == 1


def test_an_interrupted_start_leaves_nothing(clean: World) -> None:
    for pause in (0.2, 0.3, 0.4, 0.5, 0.6):
        for number in (signal.SIGTERM, signal.SIGKILL):
            (clean.folder / "policy.yaml").write_text(policy(TARGET))
            clean.env = environment()
            process = clean.start("serve", "--guard", "kernel", stdin=subprocess.PIPE)
            time.sleep(pause)
            process.send_signal(number)
            process.wait(10)
            process.communicate()


def test_the_guarded_device_has_the_configured_address(clean: World) -> None:
    with guarded(clean, settings=MACVLAN, stdin=subprocess.PIPE) as found:
        assert GUARDED in found.inside(binary("ip"), "-brief", "addr", check=True).stdout


def test_the_capabilities_in_the_unit_file_are_sufficient(clean: World) -> None:
    lines = (ROOT / "deploy/systemd/mcp-network-tools.service").read_text().splitlines()
    named = [line.partition("=")[2].split() for line in lines if line.startswith("CapabilityBoundingSet=")]
    bound = ",".join(f"+{name.removeprefix('CAP_').lower()}" for names in named for name in names)
    under = (binary("setpriv"), "--no-new-privs", f"--bounding-set=-all,{bound}", "--")
    for settings in MODES.values():
        with guarded(clean, *http(8106), settings=settings, rules=policy(TARGET, "127.0.0.1"), under=under) as found:
            listening(clean)
            assert found.guard()["state"] == "up"
            end(found, found.server)
        assert clean.traces()["files"] == []


def test_a_guard_that_is_gone_ends_all_runs_and_turns_health_red(clean: World) -> None:
    with guarded(clean, *http(8115)) as found:
        listening(clean)
        call = {"target": TARGET, "mode": "ports", "ports": str(OPEN_PORT)}
        assert ask(clean, 8115, "/health")["status"] != "unhealthy"
        tamper = [binary("nsenter"), "--target", str(found.server), "--net", binary("nft")]
        subprocess.run([*tamper, "delete", "table", "netdev", "mcp_scope"], check=True)
        assert ask(clean, 8115, "/tools/nmap/execute", call)["code"] == "guard_unavailable"
        health = ask(clean, 8115, "/health")
        assert health["status"] == "unhealthy"
        assert next(check for check in health["checks"] if check["name"] == "guard")["state"] == "failed"
    assert "guard_unavailable" in {record.get("code") for record in logged(clean)}


def test_a_guard_that_goes_in_the_middle_of_a_run_ends_the_run(clean: World) -> None:
    with guarded(clean, *http(8116), rules=policy("10.99.0.0/24")) as found:
        listening(clean)
        slow = {"target": "10.99.0.64/26", "mode": "ports", "ports": "1-50", "extra_args": "--max-rate 20"}
        with ThreadPoolExecutor(1) as thread:
            call = thread.submit(ask, clean, 8116, "/tools/nmap/execute", slow)
            wait_for(lambda: any(run["outcome"] == "running" for run in ask(clean, 8116, "/runs")["runs"]))
            time.sleep(1)
            tamper = [binary("nsenter"), "--target", str(found.server), "--net", binary("nft")]
            gone = time.monotonic()
            subprocess.run([*tamper, "flush", "chain", "netdev", "mcp_scope", "egress"], check=True)
            answer = call.result(timeout=20)
        assert time.monotonic() - gone < SOON, "a second or so, and not the minute the scan would take"
        assert answer["code"] == "guard_unavailable"
        run = ask(clean, 8116, f"/runs/{answer['details']['run_id']}")["run"]
        assert (run["outcome"], run["error_code"]) == ("failed", "guard_unavailable")
    decision, alarm, end = [record for record in logged(clean) if record.get("run_id") == answer["details"]["run_id"]]
    assert (decision["decision"], alarm["alarm"]) == ("accept", "guard_lost")
    assert (end["code"], end["guard"]["lost"]) == ("guard_unavailable", alarm["reason"])


def test_the_command_call_sets_up_its_own_guard(clean: World) -> None:
    (clean.folder / "policy.yaml").write_text(policy(TARGET))
    clean.env = environment(**MACVLAN)
    done = clean.cli("call", "nmap", f"target={TARGET}", "mode=ports", f"ports={OPEN_PORT}", "--json")
    body = json.loads(done.stdout)
    assert body["metadata"]["enforcement"] == "kernel"
    assert body["coverage"]["ports"][0]["method"] == "syn"
    assert [port["state"] for port in body["hosts"][0]["ports"]] == ["open"]
    refused = clean.cli("call", "nmap", f"target={UNKNOWN_CALLER}", "--json", check=False)
    assert (refused.returncode, json.loads(refused.stdout)["error"]["code"]) == (3, "target_out_of_scope")


def test_a_second_guard_cannot_have_the_address_of_another(clean: World) -> None:
    with guarded(clean, *http(8116)):
        listening(clean)
        done = clean.cli("call", "nmap", f"target={TARGET}", "--json", check=False)
    assert json.loads(done.stdout)["error"]["code"] == "guard_unavailable"
    assert GUARDED in json.loads(done.stdout)["error"]["message"]
