"""SIGKILL at any moment leaves no child, lock or incomplete record, and the next start repairs the state."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tests.support import cli
from tests.support.interfaces import ROOT, environment, log_records
from tests.support.mcp_wire import call
from tests.support.scans import own_network

KILLS = 16
SEED = 20261122
LONGEST_SEC = 1.2


def serve(env: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mcp_server", "serve", "--transport", "stdio"]
    return subprocess.Popen(
        command,
        env=env,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )


def scans(chance: random.Random) -> list[dict[str, Any]]:
    """Start scans of loopback of different lengths, so that at any moment some start, some run and some end."""
    quick = {"mode": "ports", "ports": "1-20"}
    slow = {"mode": "ports", "ports": "1-4", "extra_args": "--scan-delay 20ms --max-hostgroup 1"}
    return [
        call(number, "nmap", target=own_network(), **(slow if chance.random() < 0.6 else quick)) for number in range(5)
    ]


def tree(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def test_a_server_that_is_killed_at_any_moment_leaves_nothing(tmp_path: Path) -> None:
    chance = random.Random(SEED)  # noqa: S311 - moments to kill at, the same in every run
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    env = environment(tmp_path / "state", TMPDIR=str(scratch), MCP_DEFAULT_CONCURRENCY="4")
    found_running = 0
    for number in range(KILLS):
        process = serve(env)
        assert process.stdin is not None
        for message in scans(chance):
            process.stdin.write(json.dumps(message).encode() + b"\n")
        children: dict[int, psutil.Process] = {}
        # Kill some servers during the start, and most after their first child process has started.
        early, begun = number % 4 == 0, time.monotonic()
        while not early and not children and time.monotonic() < begun + 20:
            children |= {child.pid: child for child in tree(process)}
            time.sleep(0.005)
        end = time.monotonic() + chance.uniform(0, LONGEST_SEC)
        while time.monotonic() < end:
            children |= {child.pid: child for child in tree(process)}
            time.sleep(0.01)
        process.kill()
        process.wait()
        process.stdin.close()
        _, left = psutil.wait_procs(children.values(), timeout=5)
        assert not left, f"processes outlive the server: {left}"
        found_running += len(children) > 1
    assert found_running >= KILLS // 2, f"expected scans to run at half of the kills, found {found_running} of {KILLS}"
    assert not list(scratch.glob("mcp-run-*")), "scratch folders are left"
    check_repair(tmp_path / "state", env)


def check_repair(state: Path, env: dict[str, str]) -> None:
    """Start again, and check everything that the killed server left."""
    for path in state.rglob("*"):
        # Make the files a few minutes old. The server would treat new files as still being written.
        os.utime(path, times=(time.time() - 600, time.time() - 600))
    shown = cli.run("runs", "list", "--json", "--limit", "1000", env=env | {"LOG_LEVEL": "DEBUG"})
    assert shown.returncode == 0, shown.stdout + shown.stderr
    runs = {run["id"]: run for run in json.loads(shown.stdout)["runs"]}
    outcomes = [run["outcome"] for run in runs.values()]
    assert "running" not in outcomes
    assert "interrupted" in outcomes, f"expected an interrupted run, found {set(outcomes)}"
    verified = cli.run("audit", "verify", "--json", env=env)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    records = log_records(state)
    accepted = {record["run_id"] for record in records if record.get("decision") == "accept"}
    ends = [record["run_id"] for record in records if record["event"] == "end"]
    assert len(ends) == len(set(ends)), "expected one end record for each run"
    assert set(ends) <= accepted
    assert {run_id for run_id in runs if runs[run_id]["outcome"] == "interrupted"} <= set(ends)
    assert set(runs) <= accepted, "expected a decision for every run"
    assert not list((state / "owners").glob("*.lock"))
    assert not list((state / "raw" / "spool").glob("*")), "raw output of killed runs is left"
    for run in runs.values():
        if run.get("raw"):
            done = cli.run("runs", "raw", run["id"], env=env)
            assert done.returncode == 0, done.stderr
    assert not [path for path in state.rglob("*") if path.name.startswith(".") or path.suffix in {".tmp", ".new"}]
