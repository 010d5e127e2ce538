"""The tool scope through every interface: one structure, no run, one lookup per name, and no wider scope."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import pytest_asyncio
from mcp import Client
from mcp.client.stdio import StdioServerParameters

from mcp_server.api.mcp.descriptions import describe
from mcp_server.api.views import compact
from mcp_server.config import load_config
from mcp_server.model.access import FULL_ACCESS
from mcp_server.model.run import Actor
from mcp_server.scope.resolver import SystemResolver
from mcp_server.server import EnhancedMCPServer
from mcp_server.tools.scope_tool import ScopeTool
from tests.support.cli import batch
from tests.support.interfaces import (
    ROOT,
    Interfaces,
    environment,
    http_server,
    in_own_task,
    log_records,
    mcp_client,
    rest_client,
)
from tests.support.resolvers import use_resolver
from tests.unit.scope.loopback_dns import serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

POLICY = """
version: 1
name: interfaces
windows:
  minute: {days: mon, from: "00:00", to: "00:01", timezone: Pacific/Kiritimati}
allow:
  - {network: 127.0.0.0/8, max_risk: probe, packets_per_second: 100}
  - {network: 127.0.9.0/24, max_risk: scan}
  - 10.0.0.0/8
  - {network: 10.9.0.0/16, windows: [minute]}
  - .lab.internal
exclude: [127.0.0.13, printer.lab.internal]
limits: {addresses_x_ports: 500, packets_per_hour: 5000004}
"""
INTERFACES = ("stdio", "http", "rest", "cli")


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Interfaces]:
    """The interfaces of a server whose scope is a policy file."""
    file = folder / "policy.yaml"
    file.write_text(POLICY)
    file.chmod(0o600)
    env = environment(folder / "state", MCP_SECURITY_POLICY_FILE=str(file))
    del env["MCP_SECURITY_ALLOWED_TARGETS"]
    parameters = StdioServerParameters(command=sys.executable, args=["-m", "mcp_server.server"], env=env, cwd=ROOT)
    with http_server(env) as (base, token, _):
        async with rest_client(base, token) as rest, Client(parameters) as stdio, mcp_client(base, token) as http:
            yield Interfaces(env, stdio, http, rest, token, base)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def interfaces(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Interfaces]:
    async with in_own_task(opened(tmp_path_factory.mktemp("scope"))) as made:
        yield made


async def ask(interfaces: Interfaces, interface: str, **query: Any) -> dict[str, Any]:
    """Ask one question through one interface. Empty values are removed, because MCP leaves them out."""
    if interface in {"stdio", "http"}:
        client: Client = getattr(interfaces, interface)
        result = await client.call_tool("scope", query)
        assert result.structured_content is not None
        assert result.is_error == ("error" in result.structured_content)
        return dict(result.structured_content)
    if interface == "rest":
        words = dict(query)
        if "parameters" in words:
            words["parameters"] = json.dumps(words["parameters"])
        response = await interfaces.rest.get("/scope", params=words)
        body = response.json()
        return dict(compact(body)) if response.status_code == 200 else {"error": body}
    targets = query.get("target", [])
    options = [word for key in ("risk", "tool") if key in query for word in (f"--{key}", query[key])]
    for key, value in query.get("parameters", {}).items():
        options += ["--parameter", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    words_ = ["check", *([targets] if isinstance(targets, str) else targets), *options] if targets else ["show"]
    ((status, out, _),) = await batch(interfaces.env, ["scope", *words_, "--json"])
    body = json.loads(out)
    if "error" not in body:
        parts = [*body.get("targets", []), *([body["plan"]] if "plan" in body else [])]
        assert status == (0 if all(each["allowed"] for each in parts) else 3)
    return dict(compact(body))


async def everywhere(interfaces: Interfaces, **query: Any) -> dict[str, Any]:
    """Ask through every interface, and return the answer, which must be the same for all."""
    answers = [await ask(interfaces, interface, **query) for interface in INTERFACES]
    for other in answers[1:]:
        assert other == answers[0]
    return answers[0]


async def test_every_interface_gives_the_same_explanation(interfaces: Interfaces) -> None:
    targets = ["127.0.9.1", "127.0.0.8/29", "10.9.0.1", "8.8.8.8", "012.0.0.1", "printer.lab.internal", "a\x1b[31mb"]
    body = await everywhere(interfaces, target=targets)
    found = dict(zip(targets, body["targets"], strict=True))
    assert (found["127.0.9.1"]["allowed"], found["127.0.9.1"]["max_risk"]) == (True, "scan")
    assert found["127.0.9.1"]["policy_entries"] == [{"entry": "127.0.9.0/24", "line": 8, "max_risk": "scan"}]
    assert "127.0.0.13, which the policy excludes in line 12" in found["127.0.0.8/29"]["reason"]
    assert found["127.0.0.8/29"]["hint"] == "Allowed part: 127.0.0.8/30, 127.0.0.12, 127.0.0.14/31."
    closed = found["10.9.0.1"]
    (window,) = closed["windows"]
    if not window["open"]:  # it is open for one minute a week
        assert (closed["allowed"], closed["code"]) == (False, "outside_time_window")
        assert window["next_opening"].endswith("T00:00+14:00")
    assert found["8.8.8.8"]["code"] == found["printer.lab.internal"]["code"] == "target_out_of_scope"
    assert found["012.0.0.1"]["code"] == "invalid_target"
    assert found["a\x1b[31mb"]["code"] == "forbidden_characters"
    assert "\x1b" not in json.dumps(body, ensure_ascii=False)


async def test_a_query_may_ask_for_a_risk(interfaces: Interfaces) -> None:
    (each,) = (await everywhere(interfaces, target="127.0.0.1", risk="scan"))["targets"]
    assert (each["allowed"], each["code"], each["max_risk"]) == (False, "risk_not_allowed", "probe")
    assert each["packets_per_second"] == 100
    (each,) = (await everywhere(interfaces, target="127.0.0.1", risk="probe"))["targets"]
    assert each["allowed"] is True


async def test_an_intrusive_risk_is_refused_unless_the_operator_allows_it(interfaces: Interfaces) -> None:
    (each,) = (await everywhere(interfaces, target="10.0.0.1", risk="intrusive"))["targets"]
    assert (each["allowed"], each["code"], each["max_risk"]) == (False, "intrusive_not_allowed", "scan")
    assert "security.allow_intrusive" in each["hint"]


async def test_a_plan_has_a_cost_and_a_decision_and_is_not_run(interfaces: Interfaces) -> None:
    body = await everywhere(
        interfaces, target="127.0.9.0/30", tool="nmap", parameters={"ports": "1-100", "mode": "ports"}
    )
    plan = body["plan"]
    assert (plan["tool"], plan["allowed"], plan["risk"]) == ("nmap", True, "scan")
    assert (plan["addresses"], plan["ports"]) == (4, 100)
    assert plan["probes"] >= 400
    assert plan["seconds"] > 0
    refused = (await everywhere(interfaces, target="127.0.9.0/28", tool="nmap", parameters={"ports": "1-100"}))["plan"]
    assert (refused["allowed"], refused["code"]) == (False, "budget_exceeded")
    assert "16 addresses x 100 ports are 1600; the policy allows 500 per call" in refused["reason"]
    tier = (await everywhere(interfaces, target="127.0.0.1", tool="nmap", parameters={"ports": "1"}))["plan"]
    assert (tier["allowed"], tier["code"]) == (False, "risk_not_allowed")
    both = await everywhere(interfaces, target=["127.0.9.1", "8.8.8.8"], tool="nmap")
    assert both["plan"]["code"] == "target_out_of_scope"
    assert [each["allowed"] for each in both["targets"]] == [True, False]


async def test_nothing_was_run_and_no_budget_was_spent(interfaces: Interfaces) -> None:
    runs = (await interfaces.rest.get("/runs")).json()
    assert (runs["total"], runs["runs"]) == (0, [])
    state = Path(interfaces.env["MCP_STATE_DIR"])
    assert not [line for log in state.glob("*.jsonl") for line in log.read_text().splitlines() if '"accept"' in line]


async def test_without_a_target_the_policy_is_described(interfaces: Interfaces) -> None:
    body = await everywhere(interfaces)
    policy = body["policy"]
    assert policy["name"] == "interfaces"
    assert [line["entry"] for line in policy["allow"]] == [
        "127.0.0.0/8", "127.0.9.0/24", "10.0.0.0/8", "10.9.0.0/16", ".lab.internal",
    ]  # fmt: skip
    assert policy["exclude"] == ["127.0.0.13", "printer.lab.internal"]
    assert policy["limits"] == {"addresses_x_ports": 500, "packets_per_hour": 5000004}
    assert policy["windows"][0]["when"] == "mon 00:00-00:01 Pacific/Kiritimati"


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"target": "127.0.0.1", "risk": "high"}, "invalid_arguments"),
        ({"target": "127.0.0.1", "parameters": {"ports": "1"}}, "invalid_arguments"),
        ({"target": "127.0.0.1", "tool": "nope"}, "unknown_tool"),
        ({"target": "127.0.0.1", "tool": "nmap", "parameters": {"prots": "1"}}, "invalid_arguments"),
        ({"target": ["127.0.0.1"] * 65}, "invalid_arguments"),
        ({"target": "1" * 2000}, "invalid_arguments"),
    ],
)
async def test_a_bad_query_gives_a_typed_error(
    interfaces: Interfaces, interface: str, query: dict[str, Any], code: str
) -> None:
    error = (await ask(interfaces, interface, **query))["error"]
    assert error["code"] == code
    assert error["hint"]


@pytest.mark.parametrize(
    "arguments", [{"targets": "127.0.0.1"}, {"target": 1}, {"target": []}, {"allow": ["0.0.0.0/0"]}]
)
async def test_unknown_and_mistyped_arguments_are_refused(interfaces: Interfaces, arguments: dict[str, Any]) -> None:
    result = await interfaces.stdio.call_tool("scope", arguments)
    assert result.is_error
    assert result.structured_content is not None
    assert result.structured_content["error"]["code"] == "invalid_arguments"
    response = await interfaces.rest.get("/scope", params={"allow": "0.0.0.0/0"})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_arguments")
    response = await interfaces.rest.get("/scope", params={"target": "127.0.0.1", "tool": "nmap", "parameters": "{"})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_arguments")


async def test_the_tool_is_listed_as_read_only_and_its_description_is_small(interfaces: Interfaces) -> None:
    for client in (interfaces.stdio, interfaces.http):
        (entry,) = [tool for tool in (await client.list_tools()).tools if tool.name == "scope"]
        assert entry.annotations is not None
        assert entry.annotations.read_only_hint is True
        jsonschema.Draft202012Validator.check_schema(entry.input_schema)
        valid = jsonschema.Draft202012Validator(entry.input_schema).is_valid
        assert valid({"target": "10.0.0.1"})
        assert valid({})
        assert not valid({"target": "10.0.0.1", "allow": "8.8.8.8"})
    compact_entry = describe(ScopeTool()).model_dump(by_alias=True, mode="json", exclude_none=True)
    assert len(json.dumps(compact_entry, separators=(",", ":"))) / 4 < 350, "tokens, at four characters each"


async def test_the_text_has_the_same_content_as_the_structure(interfaces: Interfaces) -> None:
    result = await interfaces.stdio.call_tool("scope", {"target": ["127.0.9.1", "8.8.8.8"], "tool": "nmap"})
    (block,) = result.content
    assert block.type == "text"
    lines = block.text.splitlines()
    assert lines[0] == "allowed: 127.0.9.1: 127.0.9.1 is allowed by 127.0.9.0/24; up to scan; line 8"
    assert lines[1].startswith("refused: 8.8.8.8: 8.8.8.8 is outside the scope. Allowed: 127.0.0.0/8,")
    assert lines[2].startswith("plan nmap: refused: ")
    assert result.structured_content is not None
    jsonschema.validate(result.structured_content, describe(ScopeTool()).output_schema or {})


async def test_the_command_line_prints_the_same_content(interfaces: Interfaces) -> None:
    ((status, out, _), (shown_status, shown, _)) = await batch(
        interfaces.env, ["scope", "check", "127.0.0.1", "8.8.8.8"], ["scope", "show"]
    )
    assert (status, shown_status) == (3, 0)
    assert out.splitlines()[0].endswith("127.0.0.0/8; up to probe, 100 packets/s; line 7")
    assert "allow 127.0.0.0/8: up to probe, 100 packets/s" in shown
    assert "exclude 127.0.0.13, printer.lab.internal" in shown
    assert "limit packets_per_hour: 5000004\n" in shown


async def test_config_check_also_reads_the_policy_file(interfaces: Interfaces, tmp_path: Path) -> None:
    ((status, out, _),) = await batch(interfaces.env, ["config", "check", "--json"])
    assert (status, json.loads(out)["scope"][0]) == (0, "127.0.0.0/8")
    bad = tmp_path / "bad.yaml"
    bad.write_text("version: 1\nalow: []\n")
    both = interfaces.env | {"MCP_SECURITY_ALLOWED_TARGETS": "RFC1918"}
    for env, words in (
        (interfaces.env | {"MCP_SECURITY_POLICY_FILE": str(bad)}, "bad.yaml, line 2: a policy has no key 'alow'"),
        (both, "security.policy_file and security.allowed_targets are both set"),
    ):
        ((status, _, err),) = await batch(env, ["config", "check"])
        assert status == 8
        assert words in err


async def test_a_name_is_looked_up_once_even_if_a_call_is_planned(tmp_path: Path) -> None:
    server = EnhancedMCPServer(load_config(env=environment(tmp_path / "state")))
    async with serve() as zone:
        zone.records["host.lab.internal"] = []
        zone.changing["host.lab.internal.", "A"] = [["A 127.0.9.1"], ["A 8.8.8.8"]]
        use_resolver(server.pipeline, SystemResolver(["127.0.0.1"], port=zone.port, hosts_file=None))
        query = {"target": "host.lab.internal", "tool": "nmap", "parameters": {"ports": "1"}}
        body = (await server.pipeline.answer("scope", query, Actor("me", "test", access=FULL_ACCESS))).body
        assert sorted(zone.questions) == [("host.lab.internal.", "A"), ("host.lab.internal.", "AAAA")]
    (target,) = body["targets"]
    assert (target["allowed"], target["addresses"], target["resolved"]["ttl"]) == (True, ["127.0.9.1"], 60)
    assert (body["plan"]["allowed"], body["plan"]["addresses"]) == (True, 1)
    assert body["scope_hash"] == server.pipeline.current.value.policy.hash
    await server.cleanup()


async def test_every_lookup_is_on_the_log(tmp_path: Path) -> None:
    server = EnhancedMCPServer(load_config(env=environment(tmp_path / "state")))
    try:
        query = {"target": ["nowhere.lab.internal", "127.0.0.1"]}
        use_resolver(server.pipeline, SystemResolver([]))
        await server.pipeline.answer("scope", query, Actor("tester", "test", access=FULL_ACCESS))
    finally:
        await server.cleanup()
    asked = [each for each in log_records(tmp_path / "state") if each["event"] == "lookup"]
    assert [(each["name"], each["actor"]) for each in asked] == [("nowhere.lab.internal", "tester")]
