"""The complete pipeline in one process and several: partial, cancelled and interrupted runs keep what they found."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mcp_server.config import load_config
from mcp_server.errors import BusyError, PlatformError, TargetError
from mcp_server.model.access import FULL_ACCESS
from mcp_server.model.run import Actor, Outcome
from mcp_server.server import EnhancedMCPServer
from mcp_server.server.applying import apply
from tests.support.clock import within_a_second
from tests.support.interfaces import accepted, environment, log_records
from tests.support.scans import scanners, started

ACTOR = Actor("tester", "test", access=FULL_ACCESS)
SLOW = {"target": "127.0.0.0/25", "mode": "services", "ports": "1-4", "extra_args": "--scan-delay 300ms"}
"""128 addresses in groups of 16. The first hosts are done after a second or two, and all of them take far longer."""


def make_server(state: Path, **extra: str) -> EnhancedMCPServer:
    return EnhancedMCPServer(load_config(env=environment(state, **extra)))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EnhancedMCPServer]:
    made = make_server(tmp_path / "state")
    yield made
    await made.cleanup()


async def test_a_completed_run_is_recorded_with_its_raw_output(server: EnhancedMCPServer) -> None:
    answer = await server.pipeline.call("nmap", {"target": "127.0.0.1", "mode": "ports", "ports": "1-3"}, ACTOR)
    store = await server.pipeline.open_store()
    run = await store.get_run(answer.run.id)
    assert run == answer.run
    assert (run.outcome, run.returncode, run.tool_version) == (Outcome.COMPLETED, 0, "7.93")
    assert run.coverage is not None
    assert run.coverage.complete
    assert (run.coverage.planned, run.coverage.looked_at, run.coverage.ports[0].count) == (1, 1, 3)
    assert run.raw is not None
    raw = await store.read_raw(run.raw, 0, 1 << 20)
    assert raw.startswith(b"<?xml")
    assert raw.rstrip().endswith(b"</nmaprun>")
    assert len(raw) == run.raw.size
    hosts = await store.hosts(run.id)
    assert [host.address for host in hosts.items] == ["127.0.0.1"]


async def test_the_decision_is_on_the_log_before_the_process(server: EnhancedMCPServer) -> None:
    answer = await server.pipeline.call("nmap", {"target": "127.0.0.1", "mode": "discover"}, ACTOR)
    lines = (server.config.state_dir / "audit.jsonl").read_text().splitlines()
    decision, end = (json.loads(line) for line in lines)
    assert decision["decision"] == "accept"
    assert decision["run_id"] == end["run_id"] == answer.run.id
    assert decision["argv"] == list(answer.run.argv)
    assert decision["targets"] == [{"given": "127.0.0.1", "pinned": ["127.0.0.1"]}]
    assert (decision["actor"], decision["enforcement"]) == ("tester", "argument")
    assert end["raw"] == answer.run.raw.sha256  # type: ignore[union-attr]  # a finished run has raw output


async def test_without_a_writable_log_nothing_runs(server: EnhancedMCPServer) -> None:
    (server.config.state_dir / "audit.jsonl").mkdir()
    with pytest.raises(Exception, match="audit log") as caught:
        await server.pipeline.call("nmap", {"target": "127.0.0.1", "mode": "discover"}, ACTOR)
    assert getattr(caught.value, "code", "") == "audit_unavailable"
    assert (await (await server.pipeline.open_store()).list_runs()).total == 0


async def test_a_timeout_keeps_the_hosts_found_before(server: EnhancedMCPServer) -> None:
    answer = await server.pipeline.call("nmap", {**SLOW, "timeout_sec": 4}, ACTOR)
    run = answer.run
    assert answer.timed_out
    assert answer.error is not None
    assert answer.error.code == "timeout"
    assert (run.outcome, run.returncode) == (Outcome.PARTIAL, 124)
    assert run.coverage is not None
    assert not run.coverage.complete
    assert 0 < run.coverage.looked_at < 128
    assert run.coverage.not_looked_at_count == 128 - run.coverage.looked_at
    page = await (await server.pipeline.open_store()).hosts(run.id)
    assert page.total == run.coverage.looked_at == run.counts["hosts_up"]


async def test_a_cancelled_call_leaves_no_process_and_keeps_the_hosts_found_before(server: EnhancedMCPServer) -> None:
    task = asyncio.create_task(server.pipeline.call("nmap", SLOW, ACTOR))
    store = await server.pipeline.open_store()
    async with asyncio.timeout(20):
        while not (runs := await store.list_runs()).items or not (await store.hosts(runs.items[0].id)).total:
            await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not scanners("127.0.0.0/25")
    run = await store.get_run(runs.items[0].id)
    assert (run.outcome, run.error_code) == (Outcome.CANCELLED, "cancelled")
    assert run.coverage is not None
    assert 0 < run.coverage.looked_at < 128
    assert run.raw is not None
    assert run.raw.size > 0
    assert (await store.hosts(run.id)).total == run.coverage.looked_at


async def test_a_call_that_waited_is_decided_by_the_policy_in_force_at_its_start(server: EnhancedMCPServer) -> None:
    first = asyncio.create_task(server.pipeline.call("nmap", SLOW, ACTOR))
    store = await server.pipeline.open_store()
    async with asyncio.timeout(30):
        while not (await store.list_runs()).total:
            await asyncio.sleep(0.05)
    waiting = asyncio.create_task(server.pipeline.call("nmap", {"target": "127.0.0.200", "mode": "discover"}, ACTOR))
    async with asyncio.timeout(10):
        while len(accepted(server.config.state_dir)) < 2:
            await asyncio.sleep(0.05)
    narrow = environment(server.config.state_dir, MCP_SECURITY_ALLOWED_TARGETS="127.0.0.0/25")
    await apply(server.pipeline, load_config(env=narrow))
    first.cancel()
    with pytest.raises(TargetError):
        await waiting
    ends = {each["run_id"]: each for each in log_records(server.config.state_dir) if each["event"] == "end"}
    refused = ends[accepted(server.config.state_dir)[1]["run_id"]]
    assert (refused["outcome"], refused["code"]) == ("refused", "target_out_of_scope")


async def test_the_run_of_a_killed_process_is_interrupted_after_the_next_start(tmp_path: Path) -> None:
    env = environment(tmp_path / "state")
    words = [f"{key}={value}" for key, value in SLOW.items()]
    child = subprocess.Popen(
        [sys.executable, "-m", "mcp_server", "call", "nmap", *words, "--json"], env=env, stdout=subprocess.DEVNULL
    )
    try:
        watcher = make_server(tmp_path / "state")
        store = await watcher.pipeline.open_store()
        async with asyncio.timeout(30):
            while not (runs := await store.list_runs()).items or not (await store.hosts(runs.items[0].id)).total:
                await asyncio.sleep(0.2)
        assert runs.items[0].outcome is Outcome.RUNNING, "a second process must leave the first one's run alone"
        child.kill()
        child.wait()
        await watcher.cleanup()
    finally:
        child.kill()
    deadline = time.monotonic() + 5
    while scanners("127.0.0.0/25") and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert not scanners("127.0.0.0/25")
    after = make_server(tmp_path / "state")
    store = await after.pipeline.open_store()
    run = await store.get_run(runs.items[0].id)
    page = await store.hosts(run.id)
    await after.cleanup()
    assert run.outcome is Outcome.INTERRUPTED
    assert page.total > 0
    assert run.raw is not None
    assert run.raw.size > 0, "the raw output up to the kill is kept"
    records = [json.loads(line) for line in (tmp_path / "state" / "audit.jsonl").read_text().splitlines()]
    (end,) = [record for record in records if record["event"] == "end" and record["run_id"] == run.id]
    assert end["outcome"] == "interrupted", "the end that the killed process could not log is logged by the next"
    (decision,) = [record for record in records if record.get("decision") == "accept"]
    for name in ("scope_hash", "enforcement", "actor", "interface", "tool", "correlation_id"):
        assert end[name] == decision[name], name


def handshake(call: dict[str, Any]) -> list[dict[str, Any]]:
    info = {"name": "test", "version": "1"}
    start = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info}
    return [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": start},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call},
    ]


async def scanning_server(state: Path) -> asyncio.subprocess.Process:
    """A stdio server with an active scan."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mcp_server.server",
        env=environment(state, MCP_SERVER_SHUTDOWN_GRACE_PERIOD="1"),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin
    for message in handshake({"name": "nmap", "arguments": SLOW}):
        process.stdin.write(json.dumps(message).encode() + b"\n")
    await started("127.0.0.0/25")
    return process


async def test_end_of_input_ends_the_server_and_its_scan_within_a_second(tmp_path: Path) -> None:
    async def attempt() -> float:
        process = await scanning_server(tmp_path / "state")
        assert process.stdin
        closed = time.monotonic()
        process.stdin.close()
        await asyncio.wait_for(process.wait(), 10)
        took = time.monotonic() - closed
        assert not scanners("127.0.0.0/25")
        return took

    await within_a_second(attempt)


async def test_a_term_signal_ends_a_stdio_server_with_its_scan(tmp_path: Path) -> None:
    process = await scanning_server(tmp_path / "state")
    os.kill(process.pid, signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 10) == 0
    assert not scanners("127.0.0.0/25")
    after = make_server(tmp_path / "state")
    (run,) = (await (await after.pipeline.open_store()).list_runs()).items
    await after.cleanup()
    assert run.outcome is Outcome.CANCELLED


async def test_a_reloaded_scope_applies_to_the_next_call(server: EnhancedMCPServer) -> None:
    arguments = {"target": "127.0.0.1", "mode": "discover"}
    assert (await server.pipeline.call("nmap", arguments, ACTOR)).error is None
    narrow = environment(server.config.state_dir, MCP_SECURITY_ALLOWED_TARGETS="RFC1918")
    await apply(server.pipeline, load_config(env=narrow))
    with pytest.raises(TargetError):
        await server.pipeline.call("nmap", arguments, ACTOR)


async def test_calls_beyond_a_full_queue_are_refused_at_once(server: EnhancedMCPServer) -> None:
    calls = [asyncio.create_task(server.pipeline.call("nmap", {**SLOW, "timeout_sec": 2}, ACTOR)) for _ in range(70)]
    done, waiting = await asyncio.wait(calls, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    refused = [task for task in done if isinstance(task.exception(), BusyError)]
    assert refused, "the 66th call of a tool with one slot and a queue of 64 must be refused"
    for task in waiting:
        task.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_cleanup_may_be_called_twice_and_nothing_is_opened_afterwards(server: EnhancedMCPServer) -> None:
    await server.pipeline.open_store()
    await server.cleanup()
    await server.cleanup()
    with pytest.raises(PlatformError, match="has stopped"):
        await server.pipeline.open_store()


async def test_every_acceptance_has_its_end_on_the_log(server: EnhancedMCPServer) -> None:
    running = asyncio.create_task(server.pipeline.call("nmap", SLOW, ACTOR))
    queued = asyncio.create_task(server.pipeline.call("nmap", SLOW, ACTOR))
    async with asyncio.timeout(20):
        while server.pipeline.admission.load("nmap").waiting != 1:
            await asyncio.sleep(0.05)
    queued.cancel()
    running.cancel()
    await asyncio.gather(running, queued, return_exceptions=True)
    records = [json.loads(line) for line in (server.config.state_dir / "audit.jsonl").read_text().splitlines()]
    accepted = [record["run_id"] for record in records if record.get("decision") == "accept"]
    ends = {record["run_id"]: record["outcome"] for record in records if record["event"] == "end"}
    assert len(accepted) == 2
    assert ends == dict.fromkeys(accepted, "cancelled")


async def test_a_call_whose_output_cannot_be_kept_has_its_end_on_the_log(server: EnhancedMCPServer) -> None:
    await server.pipeline.open_store()
    raw = server.config.state_dir / "spool"
    for folder in (server.config.state_dir / "raw", raw):
        shutil.rmtree(folder, ignore_errors=True)
        folder.write_text("in the way")
    with pytest.raises(PlatformError):
        await server.pipeline.call("nmap", {"target": "127.0.0.1", "mode": "discover"}, ACTOR)
    records = [json.loads(line) for line in (server.config.state_dir / "audit.jsonl").read_text().splitlines()]
    assert [record["event"] for record in records] == ["decision", "end"]
    assert records[0]["run_id"] == records[1]["run_id"]
    assert records[1]["outcome"] == "failed"


async def test_hosts_share_the_time_limit_of_the_operator(tmp_path: Path) -> None:
    server = make_server(tmp_path / "state", MCP_SECURITY_TIMEOUT_SECONDS="40")
    planned = (await server.pipeline.plan("nmap", {"target": "127.0.0.0/30", "ports": "9"}, ACTOR)).plan
    assert planned.limits.timeout_sec == 40
    assert planned.argv[planned.argv.index("--host-timeout") + 1] == "20s"
    await server.cleanup()
