"""Alerts in a real Prometheus that watches a real server: each fires because of its real cause, and clears.

The rules run at a faster clock (`tests.support.prometheus.faster`): each ``for`` is 1 s and each window 6 s. Nothing
else is changed.
"""

from __future__ import annotations

import resource
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.support.watched import Watched, prepare, watched_server


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched_server(tmp_path_factory.mktemp("watched")) as made:
        yield made


def reloads(watched: Watched, result: str) -> float:
    """Return the number of reloads with this result."""
    (found,) = watched.prometheus.query(f'mcp_config_reloads_total{{result="{result}"}}')
    return float(found["value"][1])


def test_refused_calls_and_failing_tools_raise_alerts(watched: Watched) -> None:
    found = watched.prometheus
    before = reloads(watched, "applied")
    watched.configure(rate_limit={"calls_per_minute": 8})
    assert found.until_some(f'mcp_config_reloads_total{{result="applied"}} > {before}', 15)
    refused = ("McpRateLimited", "McpQueueFull", "McpOutOfScope", "McpUnauthorized")
    failed = ("McpToolErrors", "McpToolTimeouts", "McpBreakerOpen")
    with found.firing_meanwhile(*refused, *failed):
        assert watched.calls(35, "polite").count(429) > 20
        assert [watched.call("flaky", "flaky").status_code for _ in range(6)] == [502] * 5 + [503]
        assert watched.calls(4, "slow", "sleep", timeout_sec=1) == [504] * 4
        assert watched.calls(8, "single", "sleep", timeout_sec=1).count(429) == 7
        assert watched.calls(8, "wide", target="8.8.8.8") == [400] * 8
        assert {watched.get("/tools", token="guessed").status_code for _ in range(25)} == {401}
    assert {labels["name"] for labels in found.firing()["McpBreakerOpen"]} == {"flaky"}
    (watched.folder / "shop" / "open").touch()
    assert watched.call("flaky", "flaky").status_code == 200, "one call must be let through after the recovery timeout"
    found.until_clear(*refused, *failed)


def test_a_degraded_server_raises_alerts(watched: Watched) -> None:
    found, pid = watched.prometheus, watched.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    alerts = ("McpServerDegraded", "McpDescriptorsLow", "McpEventLoopLag", "McpReloadRefused")
    with ExitStack() as clients, found.firing_meanwhile(*alerts):
        watched.configure(health={"memory_threshold": 0})
        for _ in range(60):
            clients.enter_context(socket.create_connection(("127.0.0.1", watched.port)))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (90, limits[1]))
        clients.callback(resource.prlimit, pid, resource.RLIMIT_NOFILE, limits)
        watched.process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(2)
        finally:
            watched.process.send_signal(signal.SIGCONT)
        assert found.until_some("mcp_health_status == 1", 15)
        watched.write('{"health": {"check_interval": "often"}}')
    watched.configure()
    found.until_clear(*alerts)


def test_an_audit_log_that_cannot_be_written_raises_alerts(watched: Watched) -> None:
    found, log = watched.prometheus, watched.state / "audit.jsonl"
    aside = log.with_name("aside")
    log.rename(aside)
    log.mkdir()
    try:
        assert watched.call("polite").json()["code"] == "audit_unavailable"
        found.until_fire("McpAuditFailures", code="audit_unavailable")
        found.until_fire("McpServerUnhealthy", severity="critical")
    finally:
        log.rmdir()
        aside.rename(log)
    found.until_clear("McpServerUnhealthy", "McpAuditFailures")


def test_a_server_that_stops_raises_alerts_until_it_runs_again(watched: Watched) -> None:
    found = watched.prometheus
    with ThreadPoolExecutor(1) as background:
        running = background.submit(watched.call, "slow", "sleep", timeout_sec=5)
        assert found.until_some('mcp_tool_active{tool="slow"} == 1')
        watched.process.send_signal(signal.SIGTERM)
        found.until_fire("McpServerNotReady", severity="critical")
        assert running.result().status_code == 504, "a running call must get its time limit"
    assert watched.process.wait(15) == 0
    found.until_fire("McpServerDown", severity="critical")
    with watched.serving():
        found.until_clear("McpServerDown", "McpServerNotReady")
        assert "McpServerRestarts" not in found.firing(), "one restart must not raise the alert"


def test_a_server_that_never_ran_raises_an_alert(tmp_path_factory: pytest.TempPathFactory) -> None:
    absent = prepare(tmp_path_factory.mktemp("absent"))
    with absent.watching():
        absent.prometheus.until_fire("McpServerDown", job="mcp-network-tools")
