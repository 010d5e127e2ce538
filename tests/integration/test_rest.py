"""The REST interface of a real server: every route, paging, and a problem body for every error."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import httpx2
import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest

from mcp_server.config import load_config
from mcp_server.errors import ERRORS
from mcp_server.metrics import METRICS
from mcp_server.server import EnhancedMCPServer
from mcp_server.server.services import rest_services
from tests.support.clock import SOON
from tests.support.interfaces import ROOT, environment, http_server, log_records, owned, rest_client
from tests.support.scans import gone, own_network, scanners, slow_scan, started

TOOLS = """
from mcp_server.base_tool import MCPBaseTool

class FalseTool(MCPBaseTool):
    command_name = "false"

class NowhereTool(MCPBaseTool):
    command_name = "a-program-that-is-not-there"
"""
QUICK = {"target": "127.0.0.1", "mode": "ports", "ports": "1-3"}


class Server:
    """A running HTTP server, its token, and its state folder."""

    def __init__(self, base: str, token: str, state: Path) -> None:
        self.base, self.token, self.state = base, token, state


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("rest")
    (folder / "rest_test_tools.py").write_text(TOOLS)
    env = environment(
        folder / "state",
        PYTHONPATH=str(folder),
        TOOLS_PACKAGE="rest_test_tools",
    )
    with http_server(env) as (base, token, _):
        yield Server(base, token, folder / "state")


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx2.AsyncClient]:
    async with rest_client(server.base, server.token) as made:
        yield made


def problem(response: httpx2.Response, code: str) -> dict[str, Any]:
    """Check that a response is the problem of this code in every respect, and return its body."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    body: dict[str, Any] = response.json()
    spec = ERRORS[code]
    assert (body["code"], body["status"], response.status_code) == (code, spec.http, spec.http), body
    assert body["retryable"] is spec.retryable
    for key in ("type", "title", "message", "hint"):
        assert body[key]
    return body


async def execute(client: httpx2.AsyncClient, tool: str = "nmap", **arguments: Any) -> httpx2.Response:
    return await client.post(f"/tools/{tool}/execute", json=arguments)


async def test_the_root_lists_paths_that_exist(client: httpx2.AsyncClient) -> None:
    body = (await client.get("/")).json()
    assert body["name"] == "mcp-network-tools"
    for key in ("tools", "runs", "health", "documentation"):
        assert (await client.get(body[key])).status_code == 200
    assert (await client.post(body["mcp"], json={})).status_code == 400


async def test_the_tools_with_their_schemas_and_flags(client: httpx2.AsyncClient) -> None:
    tools = {tool["name"]: tool for tool in (await client.get("/tools")).json()["tools"]}
    assert set(tools) == {"false", "nmap", "nowhere", "scope"}
    nmap = tools["nmap"]
    assert (nmap["class"], nmap["command"]) == ("NmapTool", "nmap")
    assert {"-sV", "-p", "--script"} <= set(nmap["flags"])
    for tool in tools.values():
        jsonschema.Draft202012Validator.check_schema(tool["inputSchema"])
        jsonschema.Draft202012Validator.check_schema(tool["outputSchema"])
        assert tool["inputSchema"]["additionalProperties"] is False
        assert tool["description"]


@pytest.mark.parametrize("name", ["nmap", "NmapTool"])
async def test_both_names_run_the_tool(client: httpx2.AsyncClient, name: str) -> None:
    response = await execute(client, name, **QUICK, correlation_id="my-id-1")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    output = response.json()
    assert (output["outcome"], output["returncode"], output["timed_out"]) == ("completed", 0, False)
    assert output["correlation_id"] == "my-id-1"
    assert output["coverage"]["looked_at"] == output["coverage"]["planned"] == 1
    assert output["coverage"]["ports"] == [{"transport": "tcp", "spec": "1-3", "count": 3, "method": "connect"}]
    assert [host["address"] for host in output["hosts"]] == ["127.0.0.1"]
    assert output["metadata"]["enforcement"] == "argument"
    assert output["execution_time"] > 0
    assert "error" not in output
    assert "error_type" not in output
    shown = (await client.get(f"/runs/{output['run_id']}")).json()
    assert shown["run"]["tool"] == "nmap"
    assert shown["run"]["actor"] == {"name": "token", "interface": "rest", "client": client.headers["user-agent"]}
    assert shown["run"]["coverage"] == output["coverage"]
    assert shown["hosts"] == output["hosts"]


async def test_an_open_port_is_found(client: httpx2.AsyncClient) -> None:
    listening = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening:
        output = (await execute(client, target="127.0.0.1", mode="ports", ports=f"{port}")).json()
    (found,) = output["hosts"][0]["ports"]
    assert (found["number"], found["transport"], found["state"]) == (port, "tcp", "open")


async def test_the_raw_output_is_what_nmap_wrote(server: Server, client: httpx2.AsyncClient) -> None:
    run_id = (await execute(client, **QUICK)).json()["run_id"]
    response = await client.get(f"/runs/{run_id}/raw")
    assert response.status_code == 200
    written = response.content
    assert written.startswith(b"<?xml")
    assert written.rstrip().endswith(b"</nmaprun>")
    run = ET.fromstring(written)  # noqa: S314 - local nmap's output
    assert run.get("args", "").endswith(" 127.0.0.1")
    end = next(each for each in log_records(server.state) if each["event"] == "end" and each["run_id"] == run_id)
    assert end["bytes"] == len(written), "every byte that the process wrote is kept"
    headers = response.headers
    digest = hashlib.sha256(written).hexdigest()
    assert headers["x-content-sha256"] == digest
    assert (await client.get(f"/runs/{run_id}")).json()["run"]["raw"]["sha256"] == digest
    assert headers["content-length"] == str(len(written))
    assert headers["content-type"] == "application/octet-stream"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-disposition"] == f'attachment; filename="{run_id}.raw"'


async def test_runs_come_in_pages_newest_first(client: httpx2.AsyncClient) -> None:
    made = [(await execute(client, target="127.0.0.1", mode="discover")).json()["run_id"] for _ in range(3)]
    seen: list[str] = []
    cursor: str | None = None
    for _ in range(100):
        query = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = (await client.get("/runs", params=query)).json()
        assert len(page["runs"]) <= 2
        seen += [run["id"] for run in page["runs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == page["total"]
    assert seen[:3] == made[::-1]
    only = (await client.get("/runs", params={"outcome": "failed", "tool": "nmap"})).json()
    assert all(run["outcome"] == "failed" and run["tool"] == "nmap" for run in only["runs"])
    assert only["total"] < page["total"]


async def test_the_hosts_of_a_run_come_in_pages(client: httpx2.AsyncClient) -> None:
    run_id = (await execute(client, target="127.0.0.0/28", mode="discover")).json()["run_id"]
    seen: list[str] = []
    cursor: str | None = None
    for _ in range(10):
        query = {"limit": "7"} | ({"cursor": cursor} if cursor else {})
        page = (await client.get(f"/runs/{run_id}", params=query)).json()
        assert page["hosts_total"] == 16
        seen += [host["address"] for host in page["hosts"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == [f"127.0.0.{number}" for number in range(16)]


async def test_a_result_of_many_hosts_holds_one_page_and_the_total(client: httpx2.AsyncClient) -> None:
    output = (await execute(client, target="127.0.0.0/24", mode="discover")).json()
    assert (len(output["hosts"]), output["hosts_total"]) == (100, 256)


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "cursor=%F0%9F%92%A9", "cursor=abc", "outcome=fine"],
)
@pytest.mark.parametrize("path", ["/runs", "/runs/{}"])
async def test_invalid_paging_is_refused(client: httpx2.AsyncClient, path: str, query: str) -> None:
    run_id = (await execute(client, **QUICK)).json()["run_id"]
    if "outcome" in query and path != "/runs":
        path = "/runs"
    problem(await client.get(f"{path.format(run_id)}?{query}"), "invalid_arguments")


async def test_a_target_out_of_scope_is_400_and_names_the_scope(client: httpx2.AsyncClient) -> None:
    for name in ("nmap", "NmapTool"):
        body = problem(await execute(client, name, target="8.8.8.8"), "target_out_of_scope")
        assert "RFC1918" in body["message"]
        assert "8.8.8.8" in body["message"]
    assert "forbidden metacharacters" in (await execute(client, target="127.0.0.1", extra_args="; rm -rf /")).text


async def test_an_intrusive_call_is_403(client: httpx2.AsyncClient) -> None:
    problem(await execute(client, target="127.0.0.1", extra_args="-A"), "intrusive_not_allowed")


async def test_a_foreign_host_or_origin_is_403(client: httpx2.AsyncClient) -> None:
    for headers in ({"Host": "attacker.example"}, {"Origin": "https://attacker.example"}):
        response = await client.get("/tools", headers=headers)
        assert (response.status_code, response.json()["code"]) == (403, "forbidden_origin")


@pytest.mark.parametrize("run_id", ["r_0", "r_" + "0" * 24, "%2e%2e", "a%00b", "%F0%9F%92%A9", "x" * 5000])
@pytest.mark.parametrize("tail", ["", "/raw"])
async def test_an_unknown_run_is_404(client: httpx2.AsyncClient, run_id: str, tail: str) -> None:
    response = await client.get(f"/runs/{run_id}{tail}")
    assert response.status_code == 404
    assert response.json()["code"] in {"unknown_run", "not_found"}
    assert len(response.content) < 2000


async def test_an_unknown_path_is_404_and_a_wrong_method_405(client: httpx2.AsyncClient) -> None:
    problem(await client.get("/no/such/path"), "not_found")
    for response in (await client.get("/tools/nmap/execute"), await client.delete("/runs"), await client.post("/")):
        assert response.status_code == response.json()["status"] == 405
        assert response.json()["code"] == "method_not_allowed"
        assert response.json()["hint"]
        assert response.headers["allow"]


async def test_a_body_over_4_mib_is_413(client: httpx2.AsyncClient) -> None:
    response = await client.post("/tools/nmap/execute", content=b" " * (4 * 1024 * 1024 + 1))
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


async def test_a_tool_that_fails_is_502_with_its_result(client: httpx2.AsyncClient) -> None:
    body = problem(await execute(client, "false", target="127.0.0.1"), "tool_failed")
    assert (body["result"]["returncode"], body["result"]["outcome"]) == (1, "failed")
    assert body["result"]["error_type"] == "execution_error"
    run = (await client.get(f"/runs/{body['result']['run_id']}")).json()["run"]
    assert (run["outcome"], run["error_code"], run["returncode"]) == ("failed", "tool_failed", 1)


async def test_a_missing_program_is_503(client: httpx2.AsyncClient) -> None:
    body = problem(await execute(client, "nowhere", target="127.0.0.1"), "binary_not_found")
    assert "a-program-that-is-not-there" in body["message"]


async def test_a_timeout_is_504_with_the_partial_result(client: httpx2.AsyncClient) -> None:
    target = own_network()
    body = problem(await execute(client, **slow_scan(target), timeout_sec=4), "timeout")
    result = body["result"]
    assert (result["timed_out"], result["error_type"], result["returncode"]) == (True, "timeout", 124)
    assert result["outcome"] == "partial"
    assert 0 < result["coverage"]["looked_at"] == len(result["hosts"]) < 16
    assert result["coverage"]["not_looked_at_count"] == 16 - result["coverage"]["looked_at"]
    assert not scanners(target)


async def test_a_timeout_before_the_first_host_is_a_failure(client: httpx2.AsyncClient) -> None:
    body = problem(await execute(client, **slow_scan(own_network()), timeout_sec=1), "timeout")
    assert (body["result"]["outcome"], body["result"]["timed_out"]) == ("failed", True)


async def test_a_client_that_disconnects_ends_its_scan(server: Server, client: httpx2.AsyncClient) -> None:
    target = own_network()
    async with rest_client(server.base, server.token) as leaving:
        call = asyncio.create_task(execute(leaving, **slow_scan(target)))
        await started(target)
        running = (await client.get("/runs", params={"outcome": "running"})).json()["runs"][0]
        assert running["parameters"]["target"] == target
        body = problem(await client.get(f"/runs/{running['id']}/raw"), "run_not_finished")
        assert running["id"] in body["message"]
        await asyncio.sleep(2.5)  # so that there is a host to keep
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    assert await gone(target)
    async with asyncio.timeout(5):
        while (shown := (await client.get(f"/runs/{running['id']}")).json())["run"]["outcome"] == "running":
            await asyncio.sleep(0.05)
    assert (shown["run"]["outcome"], shown["run"]["error_code"]) == ("cancelled", "cancelled")
    assert 0 < shown["hosts_total"] == shown["run"]["coverage"]["looked_at"] < 16
    assert (await client.get(f"/runs/{running['id']}/raw")).content.startswith(b"<?xml")


async def test_calls_beyond_the_queue_are_429(server: Server, client: httpx2.AsyncClient) -> None:
    target = own_network()
    async with rest_client(server.base, server.token) as crowd:
        calls = [asyncio.create_task(execute(crowd, **slow_scan(target))) for _ in range(67)]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED, timeout=20)
        refused = problem(done.pop().result(), "too_many_requests")
        assert refused["details"]["waiting"] == 48  # of 64 places to wait, one caller may have three quarters
        assert refused["details"]["retry_after"] >= 1
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    assert await gone(target)
    assert (await execute(client, **QUICK)).status_code == 200, "the queue is empty again"


async def test_lost_raw_output_is_an_error(server: Server, client: httpx2.AsyncClient) -> None:
    output = (await execute(client, target="127.0.0.1", mode="ports", ports="77")).json()
    digest = (await client.get(f"/runs/{output['run_id']}")).json()["run"]["raw"]["sha256"]
    (server.state / "raw" / digest[:2] / f"{digest[2:]}.gz").unlink()
    problem(await client.get(f"/runs/{output['run_id']}/raw"), "store_unavailable")


async def test_answers_match_the_openapi_page(client: httpx2.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.status_code == 200
    assert "text/html" in page.headers["content-type"]
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {
        "/", "/health", "/config", "/metrics", "/scope", "/tools", "/tools/{tool_name}/execute", "/runs",
        "/runs/{run_id}", "/runs/{run_id}/raw", "/livez", "/readyz", "/events", "/admin/reload", "/admin/tools",
        "/admin/tools/{tool_name}/{action}", "/admin/breakers", "/admin/breakers/{tool_name}/{action}",
    }  # fmt: skip
    for reference in references(document):
        assert resolve(document, reference), reference
    operation = document["paths"]["/tools/{tool_name}/execute"]["post"]
    expected = {"200", "400", "401", "403", "404", "413", "422", "429", "500", "502", "503", "504", "507"}
    assert expected <= set(operation["responses"])
    check = jsonschema.Draft202012Validator({"$ref": "#/components/schemas/ToolOutput", **document}).validate
    check((await execute(client, **QUICK)).json())
    check_problem = jsonschema.Draft202012Validator({"$ref": "#/components/schemas/Problem", **document}).validate
    for response in (
        await execute(client, target="8.8.8.8"),
        await execute(client, "false", target="127.0.0.1"),
        await client.get("/tools", headers={"Authorization": "Bearer no"}),
        await client.get("/nothing"),
    ):
        check_problem(response.json())
    with pytest.raises(jsonschema.ValidationError):
        check_problem({"detail": "Not Found"})


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from ([node["$ref"]] if "$ref" in node else [])
        for value in node.values():
            yield from references(value)
    if isinstance(node, list):
        for value in node:
            yield from references(value)


def resolve(document: dict[str, Any], reference: str) -> Any:
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        node = node.get(part, {})
    return node


PATHS = [
    "/",
    "/tools",
    "/health",
    "/config",
    "/metrics",
    "/scope",
    "/events",
    "/admin/tools",
    "/admin/breakers",
    "/runs",
    "/runs/x",
    "/runs/x/raw",
    "/docs",
    "/openapi.json",
    "/no",
]


@pytest.mark.parametrize("path", PATHS)
async def test_every_path_needs_the_token(server: Server, path: str) -> None:
    async with httpx2.AsyncClient(base_url=server.base) as unknown_caller:
        for headers in ({}, {"Authorization": "Bearer " + "x" * 43}, {"Authorization": server.token}):
            response = await unknown_caller.get(path, headers=headers)
            problem(response, "unauthorized")
            assert response.headers["www-authenticate"].startswith("Bearer")
        query = await unknown_caller.get(path, params={"token": server.token, "access_token": server.token})
        assert query.status_code == 401
        for post in ("/tools/nmap/execute", "/mcp"):
            assert (await unknown_caller.post(post, json={"target": "127.0.0.1"})).status_code == 401


async def test_a_degraded_server_answers_200_to_health(client: httpx2.AsyncClient) -> None:
    response = await client.get("/health")
    body = response.json()
    # One of the three tools of this server has no program.
    assert (response.status_code, body["status"]) == (200, "degraded")
    checks = {check["name"]: check for check in body["checks"]}
    assert checks["tool nowhere"]["state"] == "degraded"
    assert "nmap" in checks["tool nowhere"]["works"]
    assert checks["tool nmap"]["state"] == checks["store"]["state"] == checks["state folder"]["state"] == "ok"
    assert body["uptime_sec"] >= 0


async def test_an_unreachable_store_is_503_without_secrets(tmp_path: Path) -> None:
    env = environment(tmp_path / "state", MCP_DATABASE_URL="postgresql://scott:tiger@127.0.0.1:1/inventory")
    with http_server(env) as (base, token, _):
        async with rest_client(base, token) as client:
            config = await client.get("/config")
            assert config.json()["config"]["database"]["url"] == "postgresql://scott:***@127.0.0.1:1/inventory"
            health = await client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
            runs = await client.get("/runs")
            problem(runs, "store_unavailable")
            call = await execute(client, target="127.0.0.1", mode="discover")
            problem(call, "store_unavailable")
            for response in (config, health, runs, call):
                assert "tiger" not in response.text
                assert token not in response.text
    audit = [json.loads(line) for line in (tmp_path / "state" / "audit.jsonl").read_text().splitlines()]
    assert [each["decision"] for each in audit if each["event"] == "decision"] == ["accept"]


async def test_an_unexpected_exception_is_500_without_internals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mcp_server.api.rest.app import build_rest

    def broken(*_: Any) -> Any:
        raise RuntimeError("secret internals")

    server = EnhancedMCPServer(load_config(env=environment(tmp_path / "state")))
    monkeypatch.setattr(server.pipeline, "open_store", broken)
    monkeypatch.setattr(server.pipeline, "registry_for", broken)
    services = replace(rest_services(server.services), health=broken, last_reload=broken)
    transport = httpx2.ASGITransport(owned(build_rest(services)), raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        for path in ("/runs", "/tools", "/config", "/health", "/runs/x/raw"):
            response = await client.get(path)
            problem(response, "internal_error")
            assert "secret" not in response.text


def log_of(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("server-*.log")))


def test_the_token_is_shown_at_the_first_start_only(tmp_path: Path) -> None:
    env = environment(tmp_path / "state")
    with http_server(env) as (_, token, _):
        assert len(token) >= 32
        assert log_of(tmp_path).count(token) == 1
        assert (tmp_path / "state" / "token").stat().st_mode & 0o777 == 0o600
    with http_server(env) as (_, again, _):
        assert again == token
    assert log_of(tmp_path).count(token) == 1


def test_without_authentication_the_server_warns_and_listens_on_loopback(tmp_path: Path) -> None:
    env = environment(tmp_path / "state", MCP_SERVER_AUTH="none")
    with http_server(env) as (base, token, _):
        assert token == ""
        assert httpx2.get(f"{base}/tools").status_code == 200
        assert httpx2.get(f"{base}/tools", headers={"Host": "attacker.example"}).status_code == 403
        warning = next(line for line in log_of(tmp_path).splitlines() if "server.auth" in line)
        assert '"level": "warning"' in warning


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.10"])
def test_without_authentication_another_address_is_refused(tmp_path: Path, host: str) -> None:
    for words, extra in ((["--host", host], {}), ([], {"MCP_SERVER_HOST": host})):
        done = subprocess.run(
            [sys.executable, "-m", "mcp_server", "serve", "--transport", "http", *words],
            env=environment(tmp_path / "state", MCP_SERVER_AUTH="none", **extra),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 8
        assert "not a loopback address" in done.stderr


async def test_an_unknown_query_parameter_is_refused_by_name(client: httpx2.AsyncClient) -> None:
    body = problem(await client.get("/runs?outcom=failed"), "invalid_arguments")
    assert "'outcom'" in body["message"]
    assert "outcome" in body["hint"]
    assert (await client.get("/runs?outcome=failed&limit=5")).status_code == 200


async def test_metrics_are_in_the_format_of_prometheus(client: httpx2.AsyncClient) -> None:
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    # The lag is first measured after metrics.collection_interval, which may not be over yet.
    missing = [
        name
        for name, metric in METRICS.items()
        if f"# TYPE {name} {metric.kind}" not in response.text and name != "mcp_event_loop_lag_seconds"
    ]
    assert not missing, f"metrics without a TYPE line: {missing}"


async def test_sighup_reloads_policy_and_configuration(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nallow: [127.0.0.1]\n")
    policy.chmod(0o600)
    env = environment(tmp_path / "state", MCP_SECURITY_POLICY_FILE=str(policy))
    del env["MCP_SECURITY_ALLOWED_TARGETS"]

    async def allowed(client: httpx2.AsyncClient, address: str) -> bool:
        answer = (await client.get("/scope", params={"target": address})).json()
        return bool(answer["targets"][0]["allowed"])

    with http_server(env) as (base, token, process):
        async with rest_client(base, token) as client:
            assert (await allowed(client, "127.0.0.1"), await allowed(client, "127.0.0.2")) == (True, False)
            policy.write_text("version: 1\nallow: [127.0.0.2]\n")
            process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(SOON):
                while not await allowed(client, "127.0.0.2"):
                    await asyncio.sleep(0.05)
            assert not await allowed(client, "127.0.0.1")
            policy.write_text("version: 1\nallow: [127.0.0.3/8]\n")
            process.send_signal(signal.SIGHUP)
            log = tmp_path / f"server-{base.rpartition(':')[2]}.log"
            async with asyncio.timeout(SOON):
                while "config.not_reloaded" not in log.read_text():
                    await asyncio.sleep(0.05)
            assert await allowed(client, "127.0.0.2"), "a bad file leaves the old in force"
    hashes = [record["scope_hash"] for record in log_records(tmp_path / "state") if record["event"] == "policy"]
    assert len(hashes) == len(set(hashes)) == 2
