"""Health of a real server over HTTP: the probes and the document, also after something fails."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from mcp.shared.exceptions import MCPError

from tests.support.clock import SOON
from tests.support.interfaces import environment, http_server, mcp_client, rest_client
from tests.support.site_tools import make_site_tools

CHECKS = [
    "tool nmap", "guard", "processes", "state folder", "disk", "store", "audit log", "scope", "cpu", "memory",
    "engine", "process", "breakers", "queue", "rate limit", "identity", "dependencies",
]  # fmt: skip
NO_THRESHOLDS = {f"MCP_HEALTH_{each}_THRESHOLD": "100" for each in ("CPU", "MEMORY", "DISK")}
"""The load of the machine that runs the tests must not change the results."""


@asynccontextmanager
async def serving(state: Path, **extra: str) -> AsyncIterator[httpx2.AsyncClient]:
    with http_server(environment(state, **(NO_THRESHOLDS | extra))) as (base, token, _):
        async with rest_client(base, token) as client:
            yield client


def by_name(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in document["checks"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    with http_server(environment(tmp_path_factory.mktemp("health") / "state", **NO_THRESHOLDS)) as (base, token, _):
        yield base, token


async def test_every_check_is_in_the_document(server: tuple[str, str]) -> None:
    async with rest_client(*server) as client:
        response = await client.get("/health")
    document = response.json()
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    assert [check["name"] for check in document["checks"]] == CHECKS
    assert document["status"] in {"healthy", "degraded"}
    assert document["uptime_sec"] >= 0
    assert "message" not in document
    for check in document["checks"]:
        assert check["detail"]
        assert check["priority"] in {"critical", "important", "informational"}
        assert check["duration_ms"] >= 0
        assert datetime.fromisoformat(check["checked_at"]).tzinfo is not None
    assert "event loop delay" in by_name(document)["process"]["detail"]


async def test_answers_use_the_results_of_the_last_round(server: tuple[str, str]) -> None:
    async with rest_client(*server) as client:
        await client.get("/health")
        first, *others = [
            response.json() for response in await asyncio.gather(*(client.get("/health") for _ in range(20)))
        ]
    times = {check["checked_at"] for check in first["checks"]}
    for other in others:
        assert {check["checked_at"] for check in other["checks"]} == times, "the checks ran again for this request"


async def test_the_history_has_the_changes(server: tuple[str, str]) -> None:
    async with rest_client(*server) as client:
        await client.get("/health")
        (latest, *_) = (await client.get("/health", params={"history": 5})).json()["history"]
        assert set(latest) == {"status", "checked_at", "changed"}
        assert "history" not in (await client.get("/health")).json()
        assert (await client.get("/health", params={"history": 121})).status_code == 422


@pytest.mark.parametrize(("path", "status"), [("/livez", "alive"), ("/readyz", "ready")])
async def test_the_probes_need_no_credential_and_return_one_word(
    server: tuple[str, str], path: str, status: str
) -> None:
    base, token = server
    async with httpx2.AsyncClient(base_url=base) as unknown_caller:
        for headers in ({}, {"Host": "somewhere.example"}, {"Origin": "http://evil.example"}):
            response = await unknown_caller.get(path, headers=headers)
            assert (response.status_code, response.json()) == (200, {"status": status})
        assert (await unknown_caller.post(path)).status_code in {401, 403, 405}
        assert (await unknown_caller.get("/health")).status_code == 401
        assert (await unknown_caller.get(f"{path}/x", headers={"Authorization": f"Bearer {token}"})).status_code == 404


async def test_thresholds_degrade_and_do_not_change_the_probes(tmp_path: Path) -> None:
    extra = {f"MCP_HEALTH_{each}_THRESHOLD": "0" for each in ("MEMORY", "DISK")}
    extra["MCP_HEALTH_DEPENDENCIES"] = "json,not_there_at_all"
    async with serving(tmp_path / "state", **extra) as client:
        health, ready = await client.get("/health"), await client.get("/readyz")
    document = health.json()
    assert (health.status_code, document["status"], ready.status_code) == (200, "degraded", 200)
    checks = by_name(document)
    assert checks["memory"]["state"] == checks["disk"]["state"] == "degraded"
    assert "health.memory_threshold is 0 %" in checks["memory"]["detail"]
    assert checks["dependency not_there_at_all"]["state"] == "failed"
    assert checks["dependency not_there_at_all"]["priority"] == "informational"


async def test_a_failed_call_invalidates_the_results(tmp_path: Path) -> None:
    """A healthy result from before the failure must not be returned after it."""
    site = make_site_tools(tmp_path / "site")
    extra = site.env | {"TOOL_INCLUDE": "probe", "MCP_HEALTH_CHECK_INTERVAL": "300"}
    async with serving(tmp_path / "state", **extra) as client:
        assert by_name((await client.get("/health")).json())["tool probe"]["state"] == "ok"
        assert (await client.get("/readyz")).status_code == 200
        (site.folder / "bin/site-probe").rename(site.folder / "bin/away")
        call = await client.post("/tools/probe/execute", json={"target": "127.0.0.1"})
        assert call.json()["code"] == "binary_not_found"
        health, ready = await client.get("/health"), await client.get("/readyz")
        assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
        assert by_name(health.json())["tool probe"]["priority"] == "critical", "the only tool must be critical"
        assert (ready.status_code, ready.json()) == (503, {"status": "not ready"})
        assert (await client.get("/livez")).status_code == 200
        (site.folder / "bin/away").rename(site.folder / "bin/site-probe")
        call = await client.post("/tools/probe/execute", json={"target": "127.0.0.1"})
        assert call.status_code == 200, call.text


@pytest.mark.parametrize("interface", ["rest", "mcp"])
async def test_a_failed_read_invalidates_the_results(tmp_path: Path, interface: str) -> None:
    """A read of a broken store invalidates the results, as a call does."""
    env = environment(tmp_path / "state", **NO_THRESHOLDS, MCP_HEALTH_CHECK_INTERVAL="300")
    with http_server(env) as (base, token, _):
        async with rest_client(base, token) as client, mcp_client(base, token) as mcp:
            assert by_name((await client.get("/health")).json())["store"]["state"] == "ok"
            (tmp_path / "state" / "store.db").rename(tmp_path / "away")
            if interface == "rest":
                failed = await client.get("/runs")
                assert (failed.status_code, failed.json()["code"]) == (503, "store_unavailable")
            else:
                with pytest.raises(MCPError) as raised:
                    await mcp.list_resources()
                assert raised.value.error.data["code"] == "store_unavailable"
            health = await client.get("/health")
            assert (health.status_code, by_name(health.json())["store"]["state"]) == (503, "failed")


async def test_a_hanging_runner_is_reported_and_a_killed_one_is_replaced(tmp_path: Path) -> None:
    extra = {"MCP_HEALTH_CHECK_INTERVAL": "5", "MCP_HEALTH_TIMEOUT": "1"}
    with http_server(environment(tmp_path / "state", **(NO_THRESHOLDS | extra))) as (base, token, process):
        async with rest_client(base, token) as client:

            async def engine_is(*states: str) -> dict[str, Any]:
                async with asyncio.timeout(4 * SOON):
                    while (found := by_name((await client.get("/health")).json()).get("engine", {})).get(
                        "state"
                    ) not in states:
                        await asyncio.sleep(0.2)
                return found

            await engine_is("ok")
            (runner,) = psutil.Process(process.pid).children()
            runner.suspend()
            try:
                assert (await engine_is("degraded", "failed"))["detail"] == "no answer within 1 s"
                await engine_is("failed")
                assert (await client.get("/readyz")).status_code == 503
            finally:
                runner.kill()
            assert "(here)" in (await engine_is("ok"))["detail"]
            assert (await client.get("/readyz")).status_code == 200


async def test_the_metrics_have_the_status_of_every_check(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", MCP_HEALTH_DISK_THRESHOLD="0") as client:
        await client.get("/health")
        async with asyncio.timeout(SOON):
            while "mcp_health_status 1.0" not in (page := (await client.get("/metrics")).text):
                await asyncio.sleep(0.05)
    assert 'mcp_health_check_status{check="disk"} 1.0' in page
    assert 'mcp_health_check_status{check="store"} 0.0' in page
    assert 'check="tools"' in page


@contextmanager
def silent_database() -> Iterator[int]:
    """Yield a port that accepts connections and never answers, like a database on a dead host."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    taken.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        for connection in taken:
            connection.close()


async def test_a_database_that_never_answers_delays_no_other_check(tmp_path: Path) -> None:
    with silent_database() as port:
        extra = {"MCP_DATABASE_URL": f"postgresql://u@127.0.0.1:{port}/x", "MCP_HEALTH_TIMEOUT": "1"}
        extra["MCP_HEALTH_CHECK_INTERVAL"] = "5"
        async with serving(tmp_path / "state", **extra) as client:
            assert (await client.get("/livez")).status_code == 200
            first = (await client.get("/health")).json()
            assert first["status"] in {"degraded", "unhealthy"}
            store = by_name(first).get("store", {"detail": "no answer within 1 s"})
            assert store["detail"] == "no answer within 1 s"
            assert by_name(first)["disk"]["state"] == "ok", "the other checks must have run"
            async with asyncio.timeout(3 * SOON):
                while (health := await client.get("/health")).status_code != 503:
                    await asyncio.sleep(0.2)
            assert by_name(health.json())["store"]["state"] == "failed", "two rounds without an answer must fail"
            assert (await client.get("/readyz")).status_code == 503
            assert (await client.get("/livez")).status_code == 200


async def test_not_ready_while_stopping(tmp_path: Path) -> None:
    site = make_site_tools(tmp_path / "site")
    env = environment(tmp_path / "state", **site.env, **NO_THRESHOLDS, MCP_SERVER_SHUTDOWN_GRACE_PERIOD="60")
    with http_server(env) as (base, token, process):
        async with rest_client(base, token) as client, mcp_client(base, token) as mcp:
            assert (await client.get("/readyz")).status_code == 200
            call = asyncio.create_task(mcp.call_tool("probe", {"target": "127.0.0.1", "extra_args": "--do wait"}))
            async with asyncio.timeout(2 * SOON):
                while not by_name((await client.get("/health")).json())["store"]["detail"].endswith("1 runs"):
                    os.kill(process.pid, signal.SIGHUP)  # a reload invalidates the results
                    await asyncio.sleep(0.1)
            process.terminate()
            async with asyncio.timeout(SOON):
                while (ready := await client.get("/readyz")).status_code == 200:
                    await asyncio.sleep(0.05)
            assert (ready.status_code, ready.json()) == (503, {"status": "not ready"})
            assert (await client.get("/livez")).status_code == 200
            site.end_waiting()
            assert not (await call).is_error
        assert process.wait(15) == 0
