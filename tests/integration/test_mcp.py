"""The MCP interface of a real server: tools, calls, runs, progress and cancellation as a client sees them."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest
import pytest_asyncio
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult

from mcp_server.api.mcp.handlers import build_mcp_server
from mcp_server.config import load_config
from mcp_server.server import EnhancedMCPServer
from tests.support.interfaces import Interfaces, environment, in_own_task, open_interfaces
from tests.support.mcp_wire import INITIALIZED, ServedProcess, initialize, modern, request
from tests.support.scans import gone, own_network, scanners, slow_scan, started

SERVER = (sys.executable, "-m", "mcp_server.server")
QUICK = {"target": "127.0.0.1", "mode": "ports", "ports": "1-3"}
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def interfaces(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Interfaces]:
    async with in_own_task(open_interfaces(tmp_path_factory.mktemp("mcp") / "state")) as opened:
        yield opened


@pytest.fixture(params=["stdio", "http"])
def client(interfaces: Interfaces, request: pytest.FixtureRequest) -> Client:
    made: Client = getattr(interfaces, request.param)
    return made


def parts(result: CallToolResult) -> tuple[str, dict[str, Any]]:
    """The one text of a result, and its structure."""
    (block,) = result.content
    assert block.type == "text"
    assert result.structured_content is not None
    return block.text, result.structured_content


async def output_schema(client: Client) -> dict[str, Any]:
    tool, _ = (await client.list_tools()).tools
    assert tool.output_schema is not None
    return tool.output_schema


async def test_two_servers_return_the_same_small_list_of_tools(interfaces: Interfaces) -> None:
    lines = []
    for _ in range(2):
        async with ServedProcess.open(*SERVER, env=interfaces.env) as process:
            await process.send(modern(1, "tools/list"))
            lines.append(await process.reader.readline())
    assert lines[0] == lines[1]
    entry, _ = json.loads(lines[0])["result"]["tools"]
    compact = json.dumps(entry, separators=(",", ":"), ensure_ascii=False)
    assert len(compact) / 4 <= 1200, "tokens, at four characters each"


async def test_the_entry_of_a_tool_says_when_to_use_it(client: Client) -> None:
    tool, _ = (await client.list_tools()).tools
    assert (tool.name, tool.title) == ("nmap", "Nmap scan")
    assert tool.description is not None
    assert "scope" in tool.description
    assert tool.annotations is not None
    hints = tool.annotations
    assert (hints.read_only_hint, hints.destructive_hint) == (True, False)
    assert (hints.idempotent_hint, hints.open_world_hint) == (True, True)
    schema = tool.input_schema
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["target"]
    assert all(field.get("description") for field in schema["properties"].values())
    assert '"title":' not in json.dumps(schema), "generated titles cost an agent tokens and tell it nothing"


async def test_the_argument_schema_matches_what_the_server_accepts(client: Client) -> None:
    tool, _ = (await client.list_tools()).tools
    check = jsonschema.Draft202012Validator(tool.input_schema).is_valid
    for good in (QUICK, {"target": ["10.0.0.1"], "timing": 4, "ping": False, "scripts": ["default"]}):
        assert check(good)
    wrong: list[dict[str, Any]] = [
        {}, {"target": 1}, {"target": []}, {**QUICK, "prots": "1"}, {**QUICK, "timing": 6}, {**QUICK, "mode": "x"},
        {**QUICK, "timeout_sec": 0},
    ]  # fmt: skip
    for bad in wrong:
        assert not check(bad)
        assert (await client.call_tool("nmap", bad)).is_error


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({**QUICK, "prots": "80"}, "unknown parameter 'prots'"),
        ({**QUICK, "timing": "4"}, "parameter 'timing'"),
        ({**QUICK, "ping": "yes"}, "parameter 'ping'"),
        ({**QUICK, "timeout_sec": True}, "parameter 'timeout_sec'"),
        ({"target": ["127.0.0.1", 5]}, "parameter 'target.1'"),
        ({"ports": "80"}, "parameter 'target' is required"),
    ],
)
async def test_a_bad_argument_is_refused_by_name(client: Client, arguments: dict[str, Any], named: str) -> None:
    result = await client.call_tool("nmap", arguments)
    text, body = parts(result)
    assert result.is_error
    assert any(named in problem for problem in body["error"]["details"]["problems"])
    assert body["error"]["code"] == "invalid_arguments"
    assert "timing" in body["error"]["hint"], "the hint lists the parameters there are"
    assert text.startswith("invalid_arguments: nmap: ")


async def test_structured_content_matches_the_schema_and_the_text(client: Client) -> None:
    schema = await output_schema(client)
    jsonschema.Draft202012Validator.check_schema(schema)
    calls: list[dict[str, Any]] = [
        QUICK,
        {"target": own_network(), "mode": "discover"},
        {"target": "127.0.0.0/22", "mode": "discover"},
        {**slow_scan(own_network()), "timeout_sec": 4},
        {**slow_scan(own_network()), "timeout_sec": 1},
        {"target": "8.8.8.8"},
        {"target": "127.0.0.1", "prots": "1"},
        {"target": "127.0.0.1", "extra_args": "-A"},
    ]
    outcomes = []
    for arguments in calls:
        result = await client.call_tool("nmap", arguments)
        text, body = parts(result)
        jsonschema.validate(body, schema)
        assert result.is_error == ("error" in body)
        assert_agree(text, body)
        outcomes.append(body["outcome"])
    assert outcomes == ["completed", "completed", "completed", "partial", "failed", "refused", "refused", "refused"]


SENTENCE = re.compile(
    r"^nmap (?P<outcome>\w+): (?P<up>\d+) up, (?P<open>\d+) open(, (?P<timed_out>\d+) timed out)?; "
    r"looked at (?P<looked_at>\d+) of (?P<planned>\d+)\. run://(?P<run_id>r_[0-9a-f]{24})$",
    re.MULTILINE,
)


def assert_agree(text: str, body: dict[str, Any]) -> None:
    """The text says nothing that the structure does not say, in the same numbers."""
    rest = text
    if "error" in body:
        error = body["error"]
        first, _, rest = text.partition("\n")
        assert first == f"{error['code']}: {error['message']} {error['hint']}"
    if "run_id" not in body:
        assert rest in {"", text}
        return
    said = SENTENCE.search(text)
    assert said is not None, text
    assert said["outcome"] == body["outcome"]
    assert (int(said["up"]), int(said["open"])) == (body["up"], body["open_ports"])
    assert int(said["looked_at"]) == body["coverage"]["looked_at"]
    assert int(said["planned"]) == body["coverage"]["planned"]
    assert said["run_id"] == body["run_id"]
    assert_lines_agree(text[said.end() :].strip("\n"), body)


def assert_lines_agree(lines: str, body: dict[str, Any]) -> None:
    if not lines:
        return
    shown = lines.splitlines()
    if "omitted" in body:
        assert shown.pop() == f"({body['omitted']} more hosts)"
    if "hosts" in body:
        assert shown == [f"{address} {ports}".rstrip() for address, ports in body["hosts"].items()]
    else:
        assert shown == [f"{group['ports']}: {group['addresses']}" for group in body["groups"]]


async def test_what_was_not_looked_at_is_never_left_out(client: Client) -> None:
    result = await client.call_tool("nmap", {**slow_scan(own_network()), "timeout_sec": 4})
    text, body = parts(result)
    assert (result.is_error, body["outcome"], body["error"]["code"]) == (True, "partial", "timeout")
    coverage = body["coverage"]
    assert 0 < coverage["looked_at"] < coverage["planned"] == 16
    assert coverage["not_looked_at"] == 16 - coverage["looked_at"]
    assert coverage["ports"].startswith("tcp 1-4")
    assert body["up"] == coverage["looked_at"], "the hosts found so far are kept"
    assert "timeout" in text


async def test_a_result_of_many_hosts_is_small_and_the_rest_is_a_resource(
    interfaces: Interfaces, client: Client
) -> None:
    result = await client.call_tool("nmap", {"target": "127.0.0.0/22", "mode": "discover"})
    text, body = parts(result)
    assert body["up"] == 1024
    assert len(json.dumps(body, separators=(",", ":"))) / 4 < 3000
    assert len(text) < 600
    (uri,) = re.findall(r"run://\S+", text)
    assert uri == f"run://{body['run_id']}"
    assert json.loads(await read(client, uri))["hosts_total"] == 1024


async def read(client: Client, uri: str) -> str:
    (contents,) = (await client.read_resource(uri)).contents
    assert contents.uri == uri
    text = getattr(contents, "text", None)
    assert isinstance(text, str)
    return text


async def test_a_run_is_read_in_pages(client: Client) -> None:
    _, body = parts(await client.call_tool("nmap", {"target": "127.0.0.0/24", "mode": "discover"}))
    uri: str | None = f"run://{body['run_id']}"
    seen: list[str] = []
    for _ in range(20):
        assert uri is not None
        (contents,) = (await client.read_resource(uri)).contents
        assert contents.mime_type == "application/json"
        page = json.loads(getattr(contents, "text", ""))
        assert page["run"]["id"] == body["run_id"]
        assert page["run"]["outcome"] == "completed"
        assert page["hosts_total"] == 256
        assert len(page["hosts"]) <= 50
        seen += [host["address"] for host in page["hosts"]]
        uri = page.get("next")
        assert (contents.meta or {}).get("next") == uri
        if uri is None:
            break
    assert seen == [f"127.0.0.{number}" for number in range(256)]


async def test_the_pages_of_raw_output_hold_the_exact_bytes(interfaces: Interfaces, client: Client) -> None:
    _, body = parts(await client.call_tool("nmap", {"target": "127.0.0.0/22", "mode": "discover"}))
    exact = (await interfaces.rest.get(f"/runs/{body['run_id']}/raw")).content
    assert len(exact) > 2 * 64 * 1024
    uri: str | None = f"run://{body['run_id']}/raw"
    pages: list[str] = []
    while uri is not None and len(pages) < 20:
        (contents,) = (await client.read_resource(uri)).contents
        assert contents.mime_type == "text/plain"
        pages.append(getattr(contents, "text", ""))
        assert len(pages[-1]) <= 64 * 1024
        uri = (contents.meta or {}).get("next")
    assert "".join(pages).encode() == exact


async def test_the_list_of_resources_names_the_runs_newest_first(client: Client) -> None:
    made = [parts(await client.call_tool("nmap", QUICK))[1]["run_id"] for _ in range(2)]
    listed = (await client.list_resources()).resources
    assert [entry.uri for entry in listed[:2]] == [f"run://{run_id}" for run_id in reversed(made)]
    assert listed[0].title is not None
    assert listed[0].title.startswith("nmap completed 20")
    assert json.loads(await read(client, listed[0].uri))["run"]["id"] == made[1]


async def test_more_runs_than_a_page_are_listed_in_pages(tmp_path: Path) -> None:
    server = EnhancedMCPServer(load_config(env=environment(tmp_path / "state", MCP_DEFAULT_CONCURRENCY="4")))
    async with Client(build_mcp_server(server.pipeline, "stdio")) as client:
        for _ in range(51):
            await client.call_tool("nmap", {"target": "127.0.0.1", "mode": "discover"})
        first = await client.list_resources()
        assert len(first.resources) == 50
        second = await client.list_resources(cursor=first.next_cursor)
        assert len({entry.uri for entry in (*first.resources, *second.resources)}) == 51
        assert second.next_cursor is None
        with pytest.raises(MCPError) as caught:
            await client.list_resources(cursor="not a cursor")
        assert caught.value.error.code == -32602
    await server.cleanup()


async def test_the_templates_name_both_uris(client: Client) -> None:
    templates = (await client.list_resource_templates()).resource_templates
    assert [template.uri_template for template in templates] == [
        "run://{run_id}{?cursor}",
        "run://{run_id}/raw{?offset}",
    ]
    assert all(template.description and template.mime_type for template in templates)


UNREADABLE = ["run://r_0", "run://" + "x" * 300, "run://r_0/other", "run:r_0", "file:///etc/passwd", "run://r_0/raw/../..",
              "run://[", "run://r_0#a", "run://%00", "run://\u202e"]  # fmt: skip
BAD_QUERIES = ["?cursor=abc", "?cursor=", "?offset=1", "?x=1", "/raw?offset=-1", "/raw?offset=x", "/raw?offset=\u0661",
               "/raw?offset=" + "9" * 30, "/raw?cursor=1"]  # fmt: skip


async def test_a_resource_that_cannot_be_read_is_a_protocol_error(client: Client) -> None:
    run_id = parts(await client.call_tool("nmap", QUICK))[1]["run_id"]
    for uri in (*UNREADABLE, *(f"run://{run_id}{query}" for query in BAD_QUERIES)):
        with pytest.raises(MCPError) as caught:
            await client.read_resource(uri)
        error = caught.value.error
        assert error.code == -32602, uri
        assert error.data["code"] in {"unknown_run", "invalid_arguments"}, uri
        assert error.data["hint"]
        assert error.message.isprintable()
        assert len(error.message) < 300


async def test_an_unknown_tool_is_a_protocol_error(client: Client) -> None:
    with pytest.raises(MCPError) as caught:
        await client.call_tool("nmpa", QUICK)
    assert caught.value.error.code == -32602
    assert caught.value.error.data["code"] == "unknown_tool"
    with pytest.raises(MCPError):
        await client.call_tool("", {})


async def test_progress_increases_and_holds_no_text_from_a_target(client: Client) -> None:
    reports: list[tuple[float, float | None, str | None]] = []

    async def take(progress: float, total: float | None, message: str | None) -> None:
        reports.append((progress, total, message))

    arguments = {**slow_scan(own_network()), "timeout_sec": 5}
    await client.call_tool("nmap", arguments, progress_callback=take)
    assert len(reports) >= 3
    shares = [share for share, _, _ in reports]
    assert shares == sorted(set(shares)), "the specification wants every report to be more than the one before"
    assert all(0 < share < 1 and total == 1.0 for share, total, _ in reports)
    assert all(re.fullmatch(r"nmap: \d+ s, \d+ up", message or "") for _, _, message in reports)


async def test_a_call_that_the_client_cancels_ends_nmap_and_is_recorded(interfaces: Interfaces, client: Client) -> None:
    target = own_network()
    call = asyncio.create_task(client.call_tool("nmap", slow_scan(target)))
    await started(target)
    await asyncio.sleep(2.5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await gone(target)
    async with asyncio.timeout(5):
        while (newest := (await interfaces.rest.get("/runs?limit=1")).json()["runs"][0])["outcome"] == "running":
            await asyncio.sleep(0.05)
    assert newest["parameters"]["target"] == target
    assert newest["outcome"] == "cancelled"
    assert newest["coverage"]["looked_at"] > 0
    assert newest["raw"]["size"] > 0
    _, body = parts(await client.call_tool("nmap", QUICK))
    assert body["outcome"] == "completed", "the connection lives on"


@pytest.mark.parametrize(
    ("extra", "version", "full"),
    [({}, "2025-11-25", False), ({}, "2025-06-18", False), ({}, "2025-03-26", True),
     ({"MCP_SERVER_ANSWER_TEXT": "full"}, "2025-11-25", True)],
)  # fmt: skip
async def test_old_clients_get_the_full_text_and_operators_can_ask_for_it(
    tmp_path: Path, extra: dict[str, str], version: str, full: bool
) -> None:
    env = environment(tmp_path / "state", **extra)
    ports = await listening(80)
    arguments = {"target": "127.0.0.1", "mode": "ports", "ports": ",".join(str(port) for port in ports)}
    async with ServedProcess.open(*SERVER, env=env) as process:
        await process.send(initialize(1, version), INITIALIZED)
        assert (await process.receive())["result"]["protocolVersion"] == version
        await process.send(request(2, "tools/call", name="nmap", arguments=arguments))
        result = (await process.receive())["result"]
    text = result["content"][0]["text"]
    first, last = str(min(ports)), str(max(ports))
    assert (first in text and last in text) is full
    if "structuredContent" in result:
        assert_agree(text, result["structuredContent"])
    for server in _SERVERS:
        server.close()
    _SERVERS.clear()


_SERVERS: list[asyncio.Server] = []


async def listening(count: int) -> list[int]:
    """Open that many ports, none beside another, so that a list of them is long."""
    ports: list[int] = []
    while len(ports) < count:
        server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
        _SERVERS.append(server)
        ports.append(server.sockets[0].getsockname()[1])
    return ports


async def test_a_short_result_is_in_the_text_too(client: Client) -> None:
    (port,) = await listening(1)
    text, body = parts(await client.call_tool("nmap", {"target": "127.0.0.1", "mode": "ports", "ports": str(port)}))
    _SERVERS.pop().close()
    assert body["hosts"] == {"127.0.0.1": f"{port}/tcp"}
    assert text.endswith(f"\n127.0.0.1 {port}/tcp")
    assert_agree(text, body)


async def test_a_crash_is_an_internal_error_without_internals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = EnhancedMCPServer(load_config(env=environment(tmp_path / "state")))

    async def broken() -> Any:
        raise RuntimeError("secret internals")

    server.pipeline.open_store = broken
    async with Client(build_mcp_server(server.pipeline, "stdio")) as client:
        schema = await output_schema(client)
        target = own_network()
        result = await client.call_tool("nmap", slow_scan(target))
        text, body = parts(result)
        jsonschema.validate(body, schema)
        assert result.is_error
        assert not scanners(target)
        assert (body["outcome"], body["error"]["code"]) == ("failed", "internal_error")
        assert "secret" not in text + json.dumps(body)
        assert "secret internals" in caplog.text, "the log holds the details"
        for uri in ("run://r_0", "run://r_0/raw"):
            with pytest.raises(MCPError) as caught:
                await client.read_resource(uri)
            assert "secret" not in str(caught.value.error)
    await server.cleanup()
