"""`cleanup` releases everything: called twice, after a failed start, during a start, and if a part hangs."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from mcp_server.config import load_config
from mcp_server.errors import ConfigError, NetworkToolsError
from mcp_server.model.access import FULL_ACCESS
from mcp_server.model.run import Actor
from mcp_server.server import EnhancedMCPServer
from mcp_server.server import enhanced as server_module
from mcp_server.server.lifecycle import Phase
from tests.support.interfaces import environment, free_port
from tests.support.scans import gone, own_network, slow_scan, started

ACTOR = Actor("tester", "cli", access=FULL_ACCESS)


def make(tmp_path: Path, **extra: str) -> EnhancedMCPServer:
    return EnhancedMCPServer(load_config(env=environment(tmp_path / "state", **extra)))


def descriptors() -> set[str]:
    """Return the sockets, pipes and files of state folders that this process has open."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} {entry.readlink()}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found


async def test_a_second_cleanup_has_no_effect_and_nothing_stays_open(tmp_path: Path) -> None:
    before = descriptors()
    server = make(tmp_path)
    answer = await server.pipeline.call("nmap", {"target": "127.0.0.1", "mode": "discover"}, ACTOR)
    assert answer.error is None
    await server.cleanup()
    assert server.services.lifecycle.phase is Phase.STOPPED
    await server.cleanup()
    await asyncio.gather(server.cleanup(), server.cleanup())
    assert {each for each in descriptors() - before if str(tmp_path) in each} == set()
    assert not list((tmp_path / "state" / "owners").glob("*.lock"))
    with pytest.raises(NetworkToolsError) as caught:
        await server.pipeline.call("nmap", {"target": "127.0.0.1"}, ACTOR)
    assert caught.value.code == "shutting_down"
    with pytest.raises(NetworkToolsError, match="its store is closed"):
        await server.pipeline.open_store()


async def test_cleanup_before_anything_was_used(tmp_path: Path) -> None:
    server = make(tmp_path)
    await server.cleanup()
    await server.cleanup()
    assert list((tmp_path / "state").iterdir()) == []


async def test_cleanup_after_a_failed_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        server = make(tmp_path, MCP_SERVER_TRANSPORT="http", MCP_SERVER_PORT=port)
        with pytest.raises(ConfigError, match="in use"):
            await server.serve()
    assert server.services.lifecycle.phase is Phase.STOPPED
    await server.cleanup()
    assert list((tmp_path / "state").iterdir()) == []


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.2, 0.6, 1.2])
async def test_cleanup_during_a_start(tmp_path: Path, delay: float) -> None:
    server = make(tmp_path, MCP_SERVER_TRANSPORT="http", MCP_SERVER_PORT=str(free_port()))
    serving = asyncio.create_task(server.serve())
    await asyncio.sleep(delay)
    await server.cleanup()
    await asyncio.wait_for(serving, 5)
    assert server.services.lifecycle.phase is Phase.STOPPED
    assert not list((tmp_path / "state").glob("owners/*.lock"))


async def test_cleanup_during_a_call(tmp_path: Path) -> None:
    server, target = make(tmp_path), own_network()
    call = asyncio.create_task(server.pipeline.call("nmap", slow_scan(target), ACTOR))
    await started(target)
    await server.cleanup()
    assert await gone(target, 0), "nmap still runs after cleanup"
    with pytest.raises(NetworkToolsError) as caught:
        await call
    assert caught.value.code == "shutting_down"


async def test_cleanup_skips_a_part_that_hangs_or_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "RELEASE_SEC", 0.1)
    server = make(tmp_path)
    store = await server.pipeline.open_store()
    released, loop = asyncio.Event(), asyncio.get_running_loop()

    async def hang() -> None:
        await asyncio.sleep(60)

    async def fail() -> None:
        raise OSError("no")

    real = store.close
    monkeypatch.setattr(server.pipeline.audit, "close", fail)
    monkeypatch.setattr(store, "close", hang)
    monkeypatch.setattr(server.pipeline.guard, "close", lambda: loop.call_soon_threadsafe(released.set))
    await asyncio.wait_for(server.cleanup(), 5)
    await asyncio.wait_for(released.wait(), 1)
    assert server.services.lifecycle.phase is Phase.STOPPED
    assert {
        record.msg["part"]
        for record in caplog.records
        if isinstance(record.msg, dict) and "server.not_released" in record.getMessage()
    } == {
        "log",
        "store",
    }
    await real()
