"""The metrics page on its own port: who may read it, when it is served, and how it stops."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from prometheus_client.parser import text_string_to_metric_families

from mcp_server.api.http.metrics_page import MetricsPage
from mcp_server.config import Config
from mcp_server.identity.authenticator import Authenticator
from mcp_server.metrics import METRICS
from tests.support.clock import SOON
from tests.support.interfaces import ROOT, environment, free_port, http_server, over_mcp, rest_client
from tests.support.metrics import counting

DEADLINE = 4 * SOON


@pytest.fixture(autouse=True)
def counting_from_zero() -> Iterator[None]:
    with counting():
        yield


def configured(state: Path, port: int | None) -> Config:
    config = Config(state_dir=state)
    if port is not None:
        config.metrics.prometheus_port = port
    return config


@asynccontextmanager
async def page_of(config: Config, *, guarded: bool = False) -> AsyncIterator[MetricsPage]:
    page = MetricsPage(lambda: config, lambda: Authenticator(lambda: config), guarded=guarded)
    page.follow()
    try:
        yield page
    finally:
        await page.stop()
        await page.stop()


async def until(there: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not there():
            await asyncio.sleep(0.02)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def client_of(port: int, state: Path | None = None) -> httpx2.AsyncClient:
    headers = {"Authorization": f"Bearer {(state / 'token').read_text().strip()}"} if state else {}
    return httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=DEADLINE)


async def test_the_page_needs_the_token_and_a_local_host_name(tmp_path: Path) -> None:
    port = free_port()
    async with page_of(configured(tmp_path, port)):
        await until(lambda: listens(port))
        async with client_of(port) as unknown_caller, client_of(port, tmp_path) as operator:
            assert (await unknown_caller.get("/metrics")).status_code == 401
            answer = await operator.get("/metrics")
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            kinds = {family.name for family in text_string_to_metric_families(answer.text)}
            named = {name.removesuffix("_total") for name, metric in METRICS.items() if metric.labels}
            assert named - kinds == set(), "the page lacks these metrics"
            assert (await operator.get("/metrics", headers={"Host": "evil.example"})).status_code == 403
            assert (await operator.get("/metrics", headers={"Origin": f"http://127.0.0.1:{port}"})).status_code == 403
            assert (await operator.get("/other")).status_code == 404
            assert (await operator.post("/metrics")).status_code == 405
            head = await operator.head("/metrics")
            assert (head.status_code, head.content) == (200, b"")


async def test_the_page_follows_the_configuration(tmp_path: Path) -> None:
    first, second = free_port(), free_port()
    config = configured(tmp_path, first)
    config.server.auth = "none"
    async with page_of(config) as page:
        await until(lambda: listens(first))
        page.follow()
        config.metrics.prometheus_port = second
        page.follow()
        await until(lambda: listens(second) and not listens(first))
        async with client_of(second) as client:
            assert (await client.get("/metrics")).status_code == 200
            config.metrics.prometheus_enabled = False
            refused = await client.get("/metrics")
            assert refused.status_code == 404
            assert "metrics.prometheus_enabled" in refused.json()["message"]
        page.follow()
        await until(lambda: not listens(second))
        config.metrics.prometheus_enabled = True
        page.follow()
        await until(lambda: listens(second))
    assert not listens(second)


async def test_a_port_in_use_is_logged_and_a_reload_tries_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = configured(tmp_path, port)
        async with page_of(config) as page:
            await until(lambda: "metrics.page_not_served" in caplog.text)
            assert str(port) in caplog.text
            taken.close()
            assert not listens(port)
            page.follow()
            await until(lambda: listens(port))


@pytest.mark.parametrize("case", ["not set", "off", "not offered", "the port of the interfaces"])
async def test_the_page_is_not_served_unless_it_is_configured(tmp_path: Path, case: str) -> None:
    port = free_port()
    config = configured(tmp_path, None if case == "not set" else port)
    if case == "off":
        config.metrics.enabled = False
    if case == "not offered":
        config.metrics.prometheus_enabled = False
    if case == "the port of the interfaces":
        config.server.transport, config.server.port = "http", port
    async with page_of(config):
        await asyncio.sleep(0.2)
        assert not listens(port)
        assert not (tmp_path / "token").exists(), "no token may be created"


async def test_inside_a_guard_the_page_is_not_served_and_that_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    async with page_of(configured(tmp_path, port), guarded=True):
        await asyncio.sleep(0.2)
        assert not listens(port)
    assert "metrics.page_unreachable" in caplog.text
    assert str(port) in caplog.text


async def test_an_open_connection_does_not_delay_the_stop(tmp_path: Path) -> None:
    port = free_port()
    async with page_of(configured(tmp_path, port)):
        await until(lambda: listens(port))
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1")
        await writer.drain()
    assert not listens(port)
    writer.close()


async def test_a_second_stdio_server_with_the_same_port_works_without_a_page(tmp_path: Path) -> None:
    port = free_port()
    env = environment(tmp_path / "state", MCP_METRICS_PROMETHEUS_PORT=str(port), MCP_METRICS_COLLECTION_INTERVAL="5")
    server = StdioServerParameters(command=str(ROOT / ".venv/bin/python"), args=["-m", "mcp_server.server"], env=env)
    with (tmp_path / "stderr").open("w") as log:
        from mcp.client.stdio import stdio_client

        async with Client(stdio_client(server, errlog=log)) as one:
            await until(lambda: listens(port))
            async with Client(stdio_client(server, errlog=log)) as two:
                await until(lambda: "metrics.page_not_served" in (tmp_path / "stderr").read_text())
                for client in (one, two):
                    refused = await over_mcp(client, "nmap", {"target": "8.8.8.8"})
                    assert refused.code == "target_out_of_scope"
            async with client_of(port, tmp_path / "state") as reader:
                text = (await reader.get("/metrics")).text
    assert 'mcp_refusals_total{code="target_out_of_scope"} 1.0' in text
    assert "mcp_server_ready 1.0" in text
    lines = [json.loads(line) for line in (tmp_path / "stderr").read_text().splitlines() if line.startswith("{")]
    (logged,) = [line for line in lines if line["event"] == "metrics.page_not_served"]
    assert logged["port"] == port


async def test_a_reload_of_a_stdio_server_can_open_the_page_with_its_health(tmp_path: Path) -> None:
    from mcp.client.stdio import stdio_client

    port, file = free_port(), tmp_path / "config.yaml"
    file.write_text("metrics: {enabled: true}\n")
    env = environment(tmp_path / "state", MCP_CONFIG_FILE=str(file))
    server = StdioServerParameters(command=str(ROOT / ".venv/bin/python"), args=["-m", "mcp_server.server"], env=env)
    with (tmp_path / "stderr").open("w") as log:
        async with Client(stdio_client(server, errlog=log)) as client:
            await client.list_tools()
            await asyncio.sleep(
                2.5
            )  # longer than `background.STDIO_DELAY_SEC`, after which the first configuration is used
            file.write_text(f"metrics: {{enabled: true, prometheus_port: {port}}}\n")
            await until(lambda: listens(port))
            async with client_of(port, tmp_path / "state") as reader:
                async with asyncio.timeout(DEADLINE):
                    while "\nmcp_health_status " not in (text := (await reader.get("/metrics")).text):
                        await asyncio.sleep(0.1)
    assert 'mcp_health_check_status{check="guard"}' in text


async def test_a_stdio_server_opens_no_port_by_default(tmp_path: Path) -> None:
    from mcp.client.stdio import stdio_client

    env = environment(tmp_path / "state")
    server = StdioServerParameters(command=str(ROOT / ".venv/bin/python"), args=["-m", "mcp_server.server"], env=env)
    with (tmp_path / "stderr").open("w") as log:
        async with Client(stdio_client(server, errlog=log)) as client:
            await client.list_tools()
            # Longer than the delay after which background tasks start (`background.STDIO_DELAY_SEC`).
            await asyncio.sleep(2.5)
            assert not (tmp_path / "state/token").exists()
            assert not listens(9090)
    assert "metrics.page" not in (tmp_path / "stderr").read_text()


async def test_over_http_the_page_is_on_the_port_of_the_server_and_on_its_own(tmp_path: Path) -> None:
    port = free_port()
    env = environment(tmp_path / "state", MCP_METRICS_PROMETHEUS_PORT=str(port))
    with http_server(env) as (base, token, _):
        await until(lambda: listens(port))
        async with rest_client(base, token) as rest, client_of(port, tmp_path / "state") as own:
            await rest.get("/runs/unknown")
            await rest.get("/nowhere/" + "x" * 50)
            await rest.request("BREW", "/tools")
            await rest.get("/tools", headers={"Authorization": "Bearer wrong"})
            for client in (rest, own):
                text = (await client.get("/metrics")).text
                samples = {
                    (s.labels["method"], s.labels["route"], s.labels["status"]): s.value
                    for family in text_string_to_metric_families(text)
                    for s in family.samples
                    if s.name == "mcp_http_requests_total"
                }
                assert samples["GET", "/runs/{run_id}", "404"] == 1
                assert samples["GET", "other", "404"] == 1
                assert samples["other", "/tools", "405"] == 1
                assert samples["GET", "/tools", "401"] == 1


@pytest.mark.parametrize("key", ["enabled", "prometheus_enabled"])
async def test_a_page_that_is_switched_off_names_the_key(tmp_path: Path, key: str) -> None:
    env = environment(tmp_path / "state", **{f"MCP_METRICS_{key.upper()}": "false"})
    with http_server(env) as (base, token, _):
        async with rest_client(base, token) as rest:
            answer = await rest.get("/metrics")
    assert answer.status_code == 404
    assert f"metrics.{key}" in answer.json()["message"]
    assert f"metrics.{key}" in answer.json()["hint"]
