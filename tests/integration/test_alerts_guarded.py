"""Alerts of a server inside the guard, in a real Prometheus: dropped packets, a lost guard, a start without a guard."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest

from tests.support.dashboard import GUARD_ONLY, check_query
from tests.support.guarded import MACVLAN, TARGET, UNKNOWN_CALLER, Guarded, guarded, wait_for, world
from tests.support.interfaces import free_port
from tests.support.processes import binary
from tests.support.prometheus import Prometheus, prometheus, stage
from tests.support.watched import network_of

MODULE: Final = f"""
from mcp_server.base_tool import Estimate, Command, MCPBaseTool

class StrayTool(MCPBaseTool):
    command_name = "bash"

    def build_command(self, parameters, targets, settings):
        words = ("-c", "echo stray >/dev/udp/{UNKNOWN_CALLER}/9")
        ends = frozenset({{0, 1}})
        return Command(args=words, estimate=Estimate(addresses=1), ok_returncodes=ends)
"""
"""A tool that sends a packet that it was not asked for."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Guarded, Prometheus, str]]:
    """Yield a guarded server, its Prometheus and its address. This thread is in the network of their host."""
    with world() as host:
        package = host.folder / "site" / "stray_tools"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(MODULE)
        settings = MACVLAN | {"TOOLS_PACKAGE": "stray_tools", "PYTHONPATH": "/run/world/site"}
        settings["MCP_HEALTH_CHECK_INTERVAL"] = "5"
        address = f"127.0.0.1:{free_port()}"
        words = ("serve", "--guard", "kernel", "--transport", "http", "--port", address.rpartition(":")[2])
        with guarded(host, *words, settings=settings) as server:
            wait_for(lambda: "Listening on" in host.log, lambda: host.log, 30)
            token = (host.folder / "state/token").read_text().strip()
            folder: Path = tmp_path_factory.mktemp("guarded") / "prometheus"
            with network_of(host.pid), prometheus(stage(folder, address, token, window_sec=12)) as watching:
                assert watching.until_some("up == 1")
                yield server, watching, address


def call(address: str, token: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"}
    answer = httpx2.post(f"http://{address}/tools/stray/execute", json={"target": TARGET}, headers=headers, timeout=30)
    found: dict[str, Any] = answer.json()
    return found


def test_dropped_packets_and_a_lost_guard_raise_alerts(watched: tuple[Guarded, Prometheus, str]) -> None:
    server, found, address = watched
    token = (server.world.folder / "state/token").read_text().strip()
    assert "McpEnforcementWeakened" not in found.firing()
    assert call(address, token)["outcome"] == "completed"
    found.until_fire("McpGuardDrops", severity="critical")
    found.until_fire("McpAlarm", alarm="guard_drops")
    for target in GUARD_ONLY:
        check_query(found, target)
    assert "McpGuardGone" not in found.firing()
    found.until_clear("McpGuardDrops", "McpAlarm")

    enter = (binary("nsenter"), "--target", str(server.server), "--net")
    server.world.run(*enter, binary("nft"), "flush", "ruleset")
    found.until_fire("McpGuardGone", severity="critical")  # found by the health check, because no call was made
    assert call(address, token)["code"] == "guard_unavailable"

    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(15) == 0
    state = server.world.folder / "bare"
    state.mkdir(mode=0o700)
    (state / "token").write_text(token)
    (state / "token").chmod(0o600)
    server.world.env["MCP_STATE_DIR"] = "/run/world/bare"
    words = ("serve", "--guard", "argument", "--transport", "http", "--port", address.rpartition(":")[2])
    bare = server.world.start(*words)
    try:
        found.until_fire("McpEnforcementWeakened", severity="critical")
        found.until_clear("McpEnforcementWeakened", "McpGuardGone")
    finally:
        bare.terminate()
        bare.wait(15)
