"""Rate limits, slots and circuit breakers give the same refusal through every interface, with a time to retry."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.interfaces import environment, http_server, log_records, open_interfaces, rest_client
from tests.support.scans import gone, own_network, slow_scan, started

QUICK = {"target": "127.0.0.1", "mode": "discover"}
OUTSIDE = {"target": "8.8.8.8"}
TOOLS = """
from mcp_server.base_tool import MCPBaseTool
from mcp_server.tools.nmap_tool import NmapTool


class FalseTool(MCPBaseTool):
    command_name = "false"


class SweepTool(NmapTool):
    concurrency = 4
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("admission")
    (made / "admission_test_tools.py").write_text(TOOLS)
    return made


@pytest.fixture
def limited(folder: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a server with default limits: ten calls a minute, one run on an address."""
    free = ("MCP_RATE_LIMIT", "MCP_ADMISSION")
    kept = {key: value for key, value in environment(tmp_path / "state").items() if not key.startswith(free)}
    return kept | {"PYTHONPATH": str(folder), "TOOLS_PACKAGE": "admission_test_tools"}


async def execute(client: httpx2.AsyncClient, tool: str, arguments: dict[str, Any]) -> httpx2.Response:
    return await client.post(f"/tools/{tool}/execute", json=arguments)


async def test_the_eleventh_call_within_a_minute_is_429_and_the_log_counts_repeats(
    limited: dict[str, str], tmp_path: Path
) -> None:
    with http_server(limited) as (base, token, _):
        async with rest_client(base, token) as client:
            answers = [await execute(client, "NmapTool", OUTSIDE) for _ in range(15)]
            assert [answer.status_code for answer in answers] == [400] * 10 + [429] * 5
            body = answers[10].json()
            assert (body["code"], body["retryable"]) == ("rate_limited", True)
            assert 1 <= body["details"]["retry_after"] <= 60
            assert answers[10].headers["retry-after"] == str(body["details"]["retry_after"])
            # Another tool has its own count, and reading is not counted.
            assert (await execute(client, "false", {"target": "127.0.0.1"})).status_code == 502
            assert (await client.get("/runs")).status_code == 200
    denials = [each for each in log_records(tmp_path / "state") if each.get("decision") == "deny"]
    limited_ones = [each for each in denials if each["code"] == "rate_limited"]
    assert [each.get("repeats") for each in limited_ones] == [None, 4]
    assert len(denials) == 10 + 2


@pytest.mark.parametrize("interface", ["stdio", "http", "rest"])
async def test_a_rate_limit_is_the_same_refusal_through_every_interface(interface: str, tmp_path: Path) -> None:
    async with open_interfaces(tmp_path / "state", MCP_RATE_LIMIT_CALLS_PER_MINUTE="2") as interfaces:
        codes = [(await interfaces.call(interface, "nmap", OUTSIDE)).code for _ in range(2)]
        assert codes == ["target_out_of_scope"] * 2
        reply = await interfaces.call(interface, "nmap", OUTSIDE)
        assert reply.code == "rate_limited"
        assert reply.error
        assert reply.error["details"]["retry_after"] >= 1
        assert reply.error["retryable"] is True


async def test_only_one_run_at_a_time_touches_an_address_and_others_are_not_delayed(
    limited: dict[str, str],
) -> None:
    target = own_network()
    with http_server(limited) as (base, token, _):
        async with rest_client(base, token) as client:
            first = asyncio.create_task(execute(client, "sweep", slow_scan(target)))
            await started(target)
            inside = target.split("/")[0]
            second = asyncio.create_task(execute(client, "sweep", {"target": inside, "ports": "1-3"}))
            elsewhere = await execute(client, "sweep", {"target": "127.99.99.99", "ports": "1-3"})
            assert elsewhere.status_code == 200
            assert not second.done()
            page = (await client.get("/metrics")).text
            assert 'mcp_queue_depth{tool="sweep"} 1.0' in page
            assert 'mcp_tool_active{tool="sweep"} 1.0' in page
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            assert await gone(target)
            assert (await second).status_code == 200


async def test_a_waiting_call_is_notified_of_its_position(tmp_path: Path) -> None:
    async with open_interfaces(tmp_path / "state", MCP_ADMISSION_PER_HOST="1") as interfaces:
        target = own_network()
        messages: list[str | None] = []

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            messages.append(message)

        first = asyncio.create_task(interfaces.call("http", "nmap", slow_scan(target)))
        await started(target)
        inside = {"target": target.split("/")[0], "ports": "1-3"}
        second = asyncio.create_task(interfaces.http.call_tool("nmap", inside, progress_callback=on_progress))
        async with asyncio.timeout(10):
            while not messages:
                await asyncio.sleep(0.05)
        assert str(messages[0]).startswith("nmap: position 1 in the queue, about ")
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert not (await second).is_error


async def test_a_tool_that_fails_repeatedly_is_refused_for_a_while_and_then_tried_again(
    limited: dict[str, str], tmp_path: Path
) -> None:
    env = limited | {"MCP_CIRCUIT_BREAKER_FAILURE_THRESHOLD": "3", "MCP_CIRCUIT_BREAKER_RECOVERY_TIMEOUT": "1"}
    with http_server(env) as (base, token, _):
        async with rest_client(base, token) as client:
            refused = [(await execute(client, "false", OUTSIDE)).status_code for _ in range(4)]
            assert refused == [400] * 4, "refusals must not open the breaker"
            codes = [(await execute(client, "false", {"target": "127.0.0.1"})).status_code for _ in range(3)]
            assert codes == [502] * 3
            opened = await execute(client, "false", {"target": "127.0.0.1"})
            assert (opened.status_code, opened.json()["code"]) == (503, "circuit_open")
            assert int(opened.headers["retry-after"]) >= 1
            assert (await execute(client, "nmap", QUICK)).status_code == 200, "each tool has its own breaker"
            page = (await client.get("/metrics")).text
            assert 'circuit_breaker_state{name="false"} 2.0' in page
            assert 'circuit_breaker_transitions_total{from_state="closed",name="false",to_state="open"} 1.0' in page
            await asyncio.sleep(1.3)
            assert (await execute(client, "false", {"target": "127.0.0.1"})).status_code == 502, (
                "expected one trial call"
            )
            assert (await execute(client, "false", {"target": "127.0.0.1"})).json()["code"] == "circuit_open"
    ends = [each for each in log_records(tmp_path / "state") if each["event"] == "end" and each.get("returncode") == 1]
    assert len(ends) == 4, "expected three failed runs and one trial"


async def test_a_timeout_that_the_caller_shortened_does_not_open_the_breaker(limited: dict[str, str]) -> None:
    env = limited | {"MCP_CIRCUIT_BREAKER_FAILURE_THRESHOLD": "1"}
    with http_server(env) as (base, token, _):
        async with rest_client(base, token) as client:
            cut = await execute(client, "nmap", slow_scan(own_network()) | {"timeout_sec": 1})
            assert cut.json()["code"] == "timeout"
            assert (await execute(client, "nmap", QUICK)).status_code == 200


async def test_a_timeout_of_a_call_that_was_too_large_does_not_open_the_breaker(limited: dict[str, str]) -> None:
    env = limited | {"MCP_CIRCUIT_BREAKER_FAILURE_THRESHOLD": "1", "MCP_SECURITY_TIMEOUT_SECONDS": "2"}
    with http_server(env) as (base, token, _):
        async with rest_client(base, token) as client:
            assert (await execute(client, "nmap", slow_scan(own_network()))).json()["code"] == "timeout"
            assert (await execute(client, "nmap", QUICK)).status_code == 200


async def test_lookups_of_the_scope_tool_count_against_the_rate_limit(limited: dict[str, str], tmp_path: Path) -> None:
    with http_server(limited | {"MCP_RATE_LIMIT_CALLS_PER_MINUTE": "3"}) as (base, token, _):
        async with rest_client(base, token) as client:
            names = [(await client.get("/scope", params={"target": f"n{n}.lab.internal"})) for n in range(4)]
            assert [answer.status_code for answer in names] == [200] * 3 + [429]
            assert names[3].json()["code"] == "rate_limited"
            # A query without names is not counted.
            assert (await client.get("/scope", params={"target": "127.0.0.1"})).status_code == 200
            assert (await client.get("/scope")).status_code == 200
    assert sum(each["event"] == "lookup" for each in log_records(tmp_path / "state")) == 3


@pytest.fixture
def rated(folder: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a server whose policy limits the rate of two networks separately."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "version: 1\nallow:\n"
        "  - network: 127.1.0.0/16\n    packets_per_second: 50\n"
        "  - network: 127.2.0.0/16\n    packets_per_second: 50\n"
    )
    policy.chmod(0o600)
    env = environment(tmp_path / "state", MCP_SECURITY_POLICY_FILE=str(policy))
    env |= {"PYTHONPATH": str(folder), "TOOLS_PACKAGE": "admission_test_tools"}
    del env["MCP_SECURITY_ALLOWED_TARGETS"]
    return env


async def test_runs_on_a_policy_entry_with_a_rate_take_turns(rated: dict[str, str]) -> None:
    with http_server(rated) as (base, token, _):
        async with rest_client(base, token) as client:
            calls = [{"target": target, "ports": "1-60"} for target in ("127.1.0.1", "127.1.0.2", "127.2.0.1")]
            answers = await asyncio.gather(*(execute(client, "sweep", call) for call in calls))
            assert [answer.status_code for answer in answers] == [200] * 3
            runs = (await client.get("/runs")).json()["runs"]
    spans = {run["parameters"]["target"]: (run["started"], run["ended"]) for run in runs}
    one, two, other = (spans[call["target"]] for call in calls)
    assert one[1] <= two[0] or two[1] <= one[0], spans
    assert other[0] < max(one[1], two[1]), "each entry has its own rate"
    assert json.dumps(runs[0]["argv"]).count("--max-rate") == 1
