"""Every end of a call has an event, a metric and an audit record. A failed reload changes nothing."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mcp_server.config import load_config
from mcp_server.errors import NetworkToolsError, PlatformError
from mcp_server.model.access import FULL_ACCESS
from mcp_server.model.run import Actor, Outcome
from mcp_server.server import EnhancedMCPServer
from mcp_server.server.applying import apply
from tests.support.clock import SOON
from tests.support.interfaces import environment, log_records
from tests.support.metrics import counting, series
from tests.support.scans import own_network, slow_scan, started

ACTOR = Actor("tester", "test", access=FULL_ACCESS)
QUICK = {"target": "127.0.0.1", "ports": "1-3"}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EnhancedMCPServer]:
    with counting():
        made = EnhancedMCPServer(load_config(env=environment(tmp_path / "state")))
        yield made
        await made.cleanup()


def ended(status: str) -> float:
    """Return how many calls of nmap ended with this status, as the metrics say."""
    found = series("mcp_tool_execution_total", "tool", "status", "error_type")
    return sum(number for labels, number in found.items() if labels[:2] == ("nmap", status))


async def test_the_end_of_a_call_that_is_cancelled_in_the_queue_is_reported(server: EnhancedMCPServer) -> None:
    events, before = server.pipeline.events.subscribe(), ended("cancelled")
    reported: dict[str, list[str]] = {}

    async def until_reported(kind: str) -> None:
        async with asyncio.timeout(2 * SOON):
            while kind not in itertools.chain(*reported.values()):
                for event in await events.take():
                    reported.setdefault(event.data["run_id"], []).append(event.kind)

    target = own_network()
    running = asyncio.create_task(server.pipeline.call("nmap", slow_scan(target), ACTOR))
    await started(target)
    queued = asyncio.create_task(server.pipeline.call("nmap", QUICK, ACTOR))
    await until_reported("run.queued")
    for task in (queued, running):
        task.cancel()
    await asyncio.gather(queued, running, return_exceptions=True)
    await until_reported("run.ended")
    first, second = (list(dict.fromkeys(kinds)) for kinds in reported.values())
    assert [kind for kind in first if kind != "run.progress"] == ["run.accepted", "run.started", "run.ended"]
    assert second == ["run.accepted", "run.queued", "run.ended"]
    assert ended("cancelled") == before + 2


async def test_a_run_whose_end_cannot_be_stored_is_reported_as_failed(
    server: EnhancedMCPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await server.pipeline.open_store()

    async def lost(*_: Any) -> None:
        raise PlatformError("the store is away", code="store_unavailable")

    events = server.pipeline.events.subscribe()
    with monkeypatch.context() as away:
        away.setattr(store, "finish", lost)
        with pytest.raises(PlatformError) as caught:
            await server.pipeline.call("nmap", QUICK, ACTOR)
    run_id = caught.value.details["run_id"]
    last = (await events.take())[-1]
    assert last.kind == "run.ended"
    assert (last.data["run_id"], last.data["outcome"], last.data["code"]) == (run_id, "failed", "store_unavailable")
    (end,) = [each for each in log_records(server.config.state_dir) if each["event"] == "end"]
    assert (end["outcome"], end["code"]) == ("failed", "store_unavailable")
    # When the store works again, the end of the run and its hosts are written, with the same outcome.
    async with asyncio.timeout(10):
        while (run := await store.get_run(run_id)).outcome is Outcome.RUNNING:
            await asyncio.sleep(0.1)
    assert (run.outcome, run.error_code) == (Outcome.FAILED, "store_unavailable")
    assert (await store.hosts(run_id)).total == 1


async def test_if_a_new_policy_cannot_be_logged_the_old_one_stays_in_force(
    server: EnhancedMCPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit, before = server.pipeline.audit, server.pipeline.current.value.policy.hash
    append = audit.append

    async def unless_policy(event: str, /, **fields: Any) -> Any:
        if event == "policy":
            raise PlatformError("no space", code="disk_full")
        return await append(event, **fields)

    monkeypatch.setattr(audit, "append", unless_policy)
    wider = load_config(env=environment(server.config.state_dir, MCP_SECURITY_ALLOWED_TARGETS="loopback,10.0.0.0/8"))
    with pytest.raises(NetworkToolsError):
        await apply(server.pipeline, wider)
    assert server.pipeline.current.value.policy.hash == before
    assert "10.0.0.0/8" not in server.config.security.allowed_targets


async def test_if_the_guard_refuses_a_policy_the_old_one_is_logged_again(
    server: EnhancedMCPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = server.pipeline.current.value.policy.hash

    async def refuse(_: str) -> None:
        raise PlatformError("the guard helper read another policy", code="guard_unavailable")

    monkeypatch.setattr(server.pipeline.guard, "reload", refuse)
    other = load_config(env=environment(server.config.state_dir, MCP_SECURITY_ALLOWED_TARGETS="loopback"))
    with pytest.raises(PlatformError):
        await apply(server.pipeline, other)
    policies = [each["scope_hash"] for each in log_records(tmp_path / "state") if each["event"] == "policy"]
    assert policies == [other.scope_policy().hash, before]
    assert server.pipeline.current.value.policy.hash == before
