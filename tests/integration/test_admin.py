"""Administration of a running server: tools and circuit breakers, and the audit records of the changes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import jsonschema  # type: ignore[import-untyped]
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp_types import ServerNotification

from tests.support.interfaces import (
    ROOT,
    Reply,
    environment,
    http_server,
    log_records,
    mcp_client,
    over_mcp,
    rest_client,
)
from tests.support.site_tools import SiteTools, make_site_tools

SLEEP = {"target": "127.0.0.1", "extra_args": "--do sleep", "timeout_sec": 3}
NOTHING = {"target": "127.0.0.1"}
WAIT_SEC = 20.0


@pytest.fixture
def site(tmp_path: Path) -> SiteTools:
    return make_site_tools(tmp_path / "site")


@pytest.fixture
async def served(tmp_path: Path, site: SiteTools) -> AsyncIterator[tuple[httpx2.AsyncClient, str, str]]:
    with http_server(environment(tmp_path / "state", **site.env)) as (base, token, _):
        async with rest_client(base, token) as client:
            yield client, base, token


async def post(client: httpx2.AsyncClient, path: str) -> dict[str, Any]:
    response = await client.post(f"/admin/{path}")
    assert response.status_code == 200, response.text
    return dict(response.json())


async def names(client: Client) -> list[str]:
    return [tool.name for tool in (await client.list_tools()).tools]


def admin_actions(folder: Path, *, tools_only: bool = True) -> list[tuple[str, str]]:
    """Return the action and the tool of each admin record on the audit log."""
    records = [each for each in log_records(folder) if each["event"] == "admin"]
    return [(each["action"], each.get("tool", "")) for each in records if "tool" in each or not tools_only]


async def test_a_disabled_tool_is_refused_at_every_interface_and_running_calls_continue(
    tmp_path: Path, served: tuple[httpx2.AsyncClient, str, str]
) -> None:
    client, base, token = served
    async with mcp_client(base, token) as mcp:
        assert "probe" in await names(mcp)
        running = asyncio.create_task(client.post("/tools/probe/execute", json=SLEEP))
        async with asyncio.timeout(WAIT_SEC):
            while not (await client.get("/runs")).json()["runs"]:
                await asyncio.sleep(0.05)
        # The name of the class is a name of the tool too.
        assert await post(client, "tools/ProbeTool/disable") == {"name": "probe", "enabled": False, "changed": True}

        refused = await client.post("/tools/probe/execute", json=NOTHING)
        assert (refused.status_code, refused.json()["code"]) == (409, "tool_disabled")
        over: Reply = await over_mcp(mcp, "probe", dict(NOTHING))
        assert over.code == "tool_disabled"
        assert "probe" not in [tool.name for tool in (await mcp.list_tools(cache_mode="refresh")).tools]
        listed = (await client.get("/tools")).json()["tools"]
        assert [tool["name"] for tool in listed] == ["nmap", "scope", "single"]
        rows = {row["name"]: row for row in (await client.get("/admin/tools")).json()["tools"]}
        assert (rows["probe"]["enabled"], rows["probe"]["running"]) == (False, 1)
        assert rows["nmap"]["enabled"]

        response = await running
        assert response.status_code == 504, "the running call did not continue until its timeout"
        assert (await client.post("/admin/reload")).status_code == 200
        still = await client.post("/tools/probe/execute", json=NOTHING)
        assert still.json()["code"] == "tool_disabled", "a reload enabled the tool"

        assert await post(client, "tools/probe/disable") == {"name": "probe", "enabled": False, "changed": False}
        assert await post(client, "tools/probe/enable") == {"name": "probe", "enabled": True, "changed": True}
        assert (await client.post("/tools/probe/execute", json=NOTHING)).status_code == 200
    state = tmp_path / "state"
    acted = [each for each in log_records(state) if each["event"] == "admin"]
    assert [each["action"] for each in acted] == ["tool.disable", "reload", "tool.enable"]
    assert {(each["actor"], each["interface"]) for each in acted} == {("token", "rest")}
    denied = [each for each in log_records(state) if each.get("decision") == "deny"]
    assert {each["code"] for each in denied} == {"tool_disabled"}


async def test_a_waiting_call_is_refused_when_its_tool_is_disabled(
    served: tuple[httpx2.AsyncClient, str, str],
) -> None:
    client, _, _ = served

    async def until(*wanted: int) -> None:
        found: list[int] = []
        async with asyncio.timeout(WAIT_SEC):
            while found != [*wanted]:
                rows = {row["name"]: row for row in (await client.get("/admin/tools")).json()["tools"]}
                found = [rows["single"]["running"], rows["single"]["waiting"]]

    first = asyncio.create_task(client.post("/tools/single/execute", json=SLEEP | {"timeout_sec": 6}))
    await until(1, 0)
    second = asyncio.create_task(client.post("/tools/single/execute", json=NOTHING))
    await until(1, 1)
    await post(client, "tools/single/disable")
    responses = {response.status_code: response.json() for response in await asyncio.gather(first, second)}
    assert sorted(responses) == [409, 504]
    assert responses[409]["code"] == "tool_disabled"


async def test_a_tool_that_the_configuration_excludes_cannot_be_enabled(tmp_path: Path, site: SiteTools) -> None:
    with http_server(environment(tmp_path / "state", **site.env, TOOL_EXCLUDE="nmap")) as (base, token, _):
        async with rest_client(base, token) as client:
            for path in ("tools/nmap/enable", "tools/nmap/disable", "breakers/nmap/open", "tools/..%2fprobe/enable"):
                response = await client.post(f"/admin/{path}")
                assert response.status_code == 404, path
            assert (await client.post("/admin/tools/probe/destroy")).json()["code"] == "invalid_arguments"
            left_out = (await client.get("/admin/tools")).json()["left_out"]
            assert any("NmapTool" in item["name"] for item in left_out)
            for path in ("tools/probe/disable", "reload", "breakers/probe/open"):
                assert httpx2.post(f"{base}/admin/{path}").status_code == 401
                elsewhere = {"Authorization": f"Bearer {token}", "Origin": "https://evil.example"}
                assert httpx2.post(f"{base}/admin/{path}", headers=elsewhere).status_code == 403
    assert admin_actions(tmp_path / "state") == []


async def test_a_circuit_breaker_can_be_opened_closed_and_reset(
    tmp_path: Path, served: tuple[httpx2.AsyncClient, str, str]
) -> None:
    client, _, _ = served
    opened = await post(client, "breakers/probe/open")
    assert (opened["name"], opened["state"], opened["forced"]) == ("probe", "open", True)
    refused = await client.post("/tools/probe/execute", json=NOTHING)
    assert (refused.status_code, refused.json()["code"]) == (503, "circuit_open")
    assert int(refused.headers["retry-after"]) >= 1
    assert (await client.post("/tools/single/execute", json=NOTHING)).status_code == 200, (
        "the breaker of one tool affected another tool"
    )
    (view,) = [each for each in (await client.get("/admin/breakers")).json()["breakers"] if each["name"] == "probe"]
    assert view["state"] == "open"
    assert (await post(client, "breakers/probe/close"))["state"] == "closed"
    assert (await client.post("/tools/probe/execute", json=NOTHING)).status_code == 200
    assert (await post(client, "breakers/ProbeTool/reset"))["forced"] is False
    assert admin_actions(tmp_path / "state") == [
        ("breaker.open", "probe"),
        ("breaker.close", "probe"),
        ("breaker.reset", "probe"),
    ]
    assert 'circuit_breaker_state{name="probe"} 0' in (await client.get("/metrics")).text


async def test_clients_of_revision_2026_07_28_are_notified_when_the_list_changes(
    served: tuple[httpx2.AsyncClient, str, str],
) -> None:
    client, base, token = served
    async with mcp_client(base, token) as mcp, asyncio.timeout(WAIT_SEC):
        assert mcp.server_capabilities.tools is not None
        assert mcp.server_capabilities.tools.list_changed
        async with mcp.listen(tools_list_changed=True) as changes:
            await post(client, "tools/probe/disable")
            assert type(await anext(aiter(changes))).__name__ == "ToolsListChanged"
            assert "probe" not in await names(mcp), "the client did not read the list again"


async def test_clients_of_older_revisions_are_notified_when_the_list_changes(tmp_path: Path, site: SiteTools) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("tool: {exclude_patterns: []}\n")
    env = environment(tmp_path / "state", **site.env, MCP_CONFIG_FILE=str(config))
    notified = asyncio.Event()

    async def on_message(message: Any) -> None:
        root = getattr(message, "root", message) if isinstance(message, ServerNotification) else message
        if getattr(root, "method", "") == "notifications/tools/list_changed":
            notified.set()

    parameters = StdioServerParameters(command=sys.executable, args=["-m", "mcp_server.server"], env=env, cwd=ROOT)
    async with Client(parameters, mode="legacy", message_handler=on_message) as mcp, asyncio.timeout(WAIT_SEC):
        assert mcp.server_capabilities.tools is not None
        assert mcp.server_capabilities.tools.list_changed
        assert "probe" in await names(mcp)
        config.write_text("tool: {exclude_patterns: [probe]}\n")  # stdio has no admin interface
        await notified.wait()
        assert "probe" not in await names(mcp)


async def test_the_records_of_all_actions_match_the_schema(
    tmp_path: Path, served: tuple[httpx2.AsyncClient, str, str]
) -> None:
    client, _, _ = served
    for path in ("tools/probe/disable", "reload", "tools/probe/enable", "breakers/probe/open", "breakers/probe/reset"):
        await post(client, path)
    schema = json.loads((ROOT / "src/mcp_server/audit/record.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    records = log_records(tmp_path / "state")
    assert [error.message for record in records for error in validator.iter_errors(record)] == []
    assert len(admin_actions(tmp_path / "state", tools_only=False)) == 5
