"""What an operator does at run time: tools taken away and given back, breakers held, and all of it on the log."""

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
    answer = await client.post(f"/admin/{path}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def names(client: Client) -> list[str]:
    return [tool.name for tool in (await client.list_tools()).tools]


def acts(folder: Path, *, tools_only: bool = True) -> list[tuple[str, str]]:
    records = [each for each in log_records(folder) if each["event"] == "admin"]
    return [(each["action"], each.get("tool", "")) for each in records if "tool" in each or not tools_only]


async def test_a_disabled_tool_is_refused_at_every_interface_and_running_calls_go_on(
    tmp_path: Path, served: tuple[httpx2.AsyncClient, str, str]
) -> None:
    client, base, token = served
    async with mcp_client(base, token) as mcp:
        assert "probe" in await names(mcp)
        running = asyncio.create_task(client.post("/tools/probe/execute", json=SLEEP))
        async with asyncio.timeout(WAIT_SEC):
            while not (await client.get("/runs")).json()["runs"]:
                await asyncio.sleep(0.05)
        # The class name names the tool too.
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

        answer = await running
        assert answer.status_code == 504, "it ran to its own time limit"
        assert (await client.post("/admin/reload")).status_code == 200
        still = await client.post("/tools/probe/execute", json=NOTHING)
        assert still.json()["code"] == "tool_disabled", "a reload is not a restart"

        assert await post(client, "tools/probe/disable") == {"name": "probe", "enabled": False, "changed": False}
        assert await post(client, "tools/probe/enable") == {"name": "probe", "enabled": True, "changed": True}
        assert (await client.post("/tools/probe/execute", json=NOTHING)).status_code == 200
    state = tmp_path / "state"
    acted = [each for each in log_records(state) if each["event"] == "admin"]
    assert [each["action"] for each in acted] == ["tool.disable", "reload", "tool.enable"]
    assert {(each["actor"], each["interface"]) for each in acted} == {("token", "rest")}
    denied = [each for each in log_records(state) if each.get("decision") == "deny"]
    assert {each["code"] for each in denied} == {"tool_disabled"}


async def test_a_call_that_waits_for_its_turn_is_refused_when_its_tool_goes(
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
    answers = {answer.status_code: answer.json() for answer in await asyncio.gather(first, second)}
    assert sorted(answers) == [409, 504]
    assert answers[409]["code"] == "tool_disabled"


async def test_what_the_owner_does_not_offer_cannot_be_enabled(tmp_path: Path, site: SiteTools) -> None:
    with http_server(environment(tmp_path / "state", **site.env, TOOL_EXCLUDE="nmap")) as (base, token, _):
        async with rest_client(base, token) as client:
            for path in ("tools/nmap/enable", "tools/nmap/disable", "breakers/nmap/open", "tools/..%2fprobe/enable"):
                answer = await client.post(f"/admin/{path}")
                assert answer.status_code == 404, path
            assert (await client.post("/admin/tools/probe/destroy")).json()["code"] == "invalid_arguments"
            left_out = (await client.get("/admin/tools")).json()["left_out"]
            assert any("NmapTool" in item["name"] for item in left_out)
            for path in ("tools/probe/disable", "reload", "breakers/probe/open"):
                assert httpx2.post(f"{base}/admin/{path}").status_code == 401
                elsewhere = {"Authorization": f"Bearer {token}", "Origin": "https://evil.example"}
                assert httpx2.post(f"{base}/admin/{path}", headers=elsewhere).status_code == 403
    assert acts(tmp_path / "state") == []


async def test_breakers_can_be_held_and_let_go(tmp_path: Path, served: tuple[httpx2.AsyncClient, str, str]) -> None:
    client, _, _ = served
    opened = await post(client, "breakers/probe/open")
    assert (opened["name"], opened["state"], opened["forced"]) == ("probe", "open", True)
    refused = await client.post("/tools/probe/execute", json=NOTHING)
    assert (refused.status_code, refused.json()["code"]) == (503, "circuit_open")
    assert int(refused.headers["retry-after"]) >= 1
    assert (await client.post("/tools/single/execute", json=NOTHING)).status_code == 200, "each tool has its own"
    (view,) = [each for each in (await client.get("/admin/breakers")).json()["breakers"] if each["name"] == "probe"]
    assert view["state"] == "open"
    assert (await post(client, "breakers/probe/close"))["state"] == "closed"
    assert (await client.post("/tools/probe/execute", json=NOTHING)).status_code == 200
    assert (await post(client, "breakers/ProbeTool/reset"))["forced"] is False
    assert acts(tmp_path / "state") == [
        ("breaker.open", "probe"),
        ("breaker.close", "probe"),
        ("breaker.reset", "probe"),
    ]
    assert 'circuit_breaker_state{name="probe"} 0' in (await client.get("/metrics")).text


async def test_mcp_clients_of_today_are_told_that_the_list_changed(served: tuple[httpx2.AsyncClient, str, str]) -> None:
    client, base, token = served
    async with mcp_client(base, token) as mcp, asyncio.timeout(WAIT_SEC):
        assert mcp.server_capabilities.tools is not None
        assert mcp.server_capabilities.tools.list_changed
        async with mcp.listen(tools_list_changed=True) as changes:
            await post(client, "tools/probe/disable")
            assert type(await anext(aiter(changes))).__name__ == "ToolsListChanged"
            assert "probe" not in await names(mcp), "the client's cache has forgotten the old list"


async def test_mcp_clients_of_before_are_told_on_their_connection(tmp_path: Path, site: SiteTools) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("tool: {exclude_patterns: []}\n")
    env = environment(tmp_path / "state", **site.env, MCP_CONFIG_FILE=str(config))
    heard = asyncio.Event()

    async def on_message(message: Any) -> None:
        root = getattr(message, "root", message) if isinstance(message, ServerNotification) else message
        if getattr(root, "method", "") == "notifications/tools/list_changed":
            heard.set()

    parameters = StdioServerParameters(command=sys.executable, args=["-m", "mcp_server.server"], env=env, cwd=ROOT)
    async with Client(parameters, mode="legacy", message_handler=on_message) as mcp, asyncio.timeout(WAIT_SEC):
        assert mcp.server_capabilities.tools is not None
        assert mcp.server_capabilities.tools.list_changed
        assert "probe" in await names(mcp)
        config.write_text("tool: {exclude_patterns: [probe]}\n")  # over stdio only the file can say so
        await heard.wait()
        assert "probe" not in await names(mcp)


async def test_the_log_of_all_that_is_whole_and_as_its_schema_says(
    tmp_path: Path, served: tuple[httpx2.AsyncClient, str, str]
) -> None:
    client, _, _ = served
    for path in ("tools/probe/disable", "reload", "tools/probe/enable", "breakers/probe/open", "breakers/probe/reset"):
        await post(client, path)
    schema = json.loads((ROOT / "src/mcp_server/audit/record.schema.json").read_text())
    judge = jsonschema.Draft202012Validator(schema)
    records = log_records(tmp_path / "state")
    assert [error.message for record in records for error in judge.iter_errors(record)] == []
    assert len(acts(tmp_path / "state", tools_only=False)) == 5
