"""The server over stdio with a real nmap that runs when the client disconnects."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.clock import SOON, within_a_second
from tests.support.mcp_wire import INITIALIZED, ServedProcess, call, initialize, modern

PRODUCT = str(Path(sys.executable).with_name("mcp-network-tools"))
LONG_SCAN = {"target": "127.0.0.0/24", "mode": "ports", "ports": "1-65535"}


def environment(state: Path) -> dict[str, str]:
    return {
        "MCP_STATE_DIR": str(state),
        "MCP_SECURITY_ALLOWED_TARGETS": "loopback,RFC1918,.lab.internal",
        # What a call under way may get is a matter of tests/chaos/test_stopping.py.
        "MCP_SERVER_SHUTDOWN_GRACE_PERIOD": "0",
    }


async def nmap_of(server: psutil.Process) -> list[psutil.Process]:
    """The nmap that the server has started, with what it started; the runner it was forked from goes on."""
    async with asyncio.timeout(20):
        while True:
            found = [child for child in server.children(recursive=True) if name_of(child) == "nmap"]
            if found:
                return found
            await asyncio.sleep(0.02)


def name_of(process: psutil.Process) -> str | None:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return None


@pytest.mark.parametrize("end", ["input", signal.SIGTERM, signal.SIGINT], ids=str)
async def test_end_of_input_ends_nmap_within_a_second(tmp_path: Path, end: str | signal.Signals) -> None:
    async def attempt() -> float:
        async with ServedProcess.open(PRODUCT, "serve", env=environment(tmp_path), stderr=subprocess.PIPE) as client:
            await client.send(call(1, "nmap", **LONG_SCAN))
            children = await nmap_of(psutil.Process(client.process.pid))
            started = time.monotonic()
            if isinstance(end, signal.Signals):
                client.process.send_signal(end)
            else:
                client.close_input()
            assert await asyncio.wait_for(client.process.wait(), 2 * SOON) == 0
            took = time.monotonic() - started
            _, left = psutil.wait_procs(children, timeout=0)
            assert left == []
            assert client.process.stderr is not None
            assert b"Traceback" not in await client.process.stderr.read()
            return took

    await within_a_second(attempt)


async def test_a_cancelled_scan_ends_nmap_and_the_server_goes_on(tmp_path: Path) -> None:
    async with ServedProcess.open(PRODUCT, "serve", env=environment(tmp_path)) as client:
        await client.send(call(1, "nmap", **LONG_SCAN))
        children = await nmap_of(psutil.Process(client.process.pid))
        cancelled: dict[str, Any] = {"requestId": 1}
        await client.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": cancelled})
        async with asyncio.timeout(5):
            while any(child.is_running() for child in children):
                await asyncio.sleep(0.02)
        await client.send(modern(2, "tools/list"))
        answer = await client.receive()
    assert answer["id"] == 2


async def test_a_client_that_probes_and_then_initializes_can_list_and_call(tmp_path: Path) -> None:
    async with ServedProcess.open(PRODUCT, "serve", env=environment(tmp_path)) as client:
        await client.send(modern(0, "server/discover"), initialize(1), INITIALIZED)
        answers = await client.answers(2)
        assert answers[1]["result"]["protocolVersion"] == "2025-06-18"
        arguments = {"target": "127.0.0.1", "mode": "ports", "ports": "9"}
        params = {"name": "nmap", "arguments": arguments}
        await client.send({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params})
        answer = await client.receive()
    assert answer["id"] == 2
    assert not answer["result"].get("isError")
