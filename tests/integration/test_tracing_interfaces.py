"""Traces of real servers: one trace from the request of a caller through every step, over every interface."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.interfaces import environment, free_port, http_server, log_records, rest_client
from tests.support.mcp_wire import INITIALIZED, MODERN_META, ServedProcess, initialize, request
from tests.support.otlp import Collector, Span, collector
from tests.support.site_tools import make_site_tools

SERVER = (sys.executable, "-m", "mcp_server.server")
STEPS = {"validate", "plan", "authorize", "admit", "execute", "parse", "record", "respond"}
REVISIONS = ("2026", "2025")
SECRET, PORTS, OUTSIDE = "hunter2-in-an-argument", "47101-47103", "192.0.2.7"
SCAN = {
    "target": "127.0.0.1",
    "mode": "ports",
    "ports": PORTS,
    "scripts": ["http-title"],
    "script_args": {"http-title.url": f"/{SECRET}"},
}


@dataclass(frozen=True)
class Caller:
    """The span of a client, which must be the parent of the spans of the server."""

    trace: str
    span: str

    @classmethod
    def make(cls) -> Caller:
        return cls(secrets.token_hex(16), secrets.token_hex(8))

    @property
    def headers(self) -> dict[str, str]:
        return {"traceparent": f"00-{self.trace}-{self.span}-01"}


@pytest.fixture(scope="module")
def receiving() -> Iterator[Collector]:
    with collector() as one:
        yield one


def env_of(state: Path, endpoint: str, **extra: str) -> dict[str, str]:
    # The ratio is 0, so only traces of callers are recorded.
    own = {"MCP_TRACING_ENDPOINT": endpoint, "MCP_TRACING_SAMPLE_RATIO": "0", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    return environment(state, **(own | extra))


@pytest.fixture(scope="module")
def env(receiving: Collector, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return env_of(tmp_path_factory.mktemp("tracing") / "state", receiving.url)


@pytest.fixture(scope="module")
def served(env: dict[str, str]) -> Iterator[tuple[str, str]]:
    with http_server(env) as (base, token, _):
        yield base, token


def message(revision: str, method: str, meta: dict[str, Any], **params: Any) -> dict[str, Any]:
    """Return a request of a revision, with ``meta`` in its `_meta`."""
    return request(7, method, _meta=(MODERN_META if revision == "2026" else {}) | meta, **params)


async def over_stdio(revision: str, env: dict[str, str], *messages: dict[str, Any]) -> dict[str, Any]:
    """Send the messages to a new server and return the response to the last one."""
    async with ServedProcess.open(*SERVER, env=env) as client:
        if revision == "2025":
            await client.send(initialize(1))
            await client.receive()
            await client.send(INITIALIZED)
        answer: dict[str, Any] = {}
        for each in messages:
            await client.send(each)
            answer = await client.receive()
        client.close_input()
        # The server exits by itself after it has sent its spans.
        assert await asyncio.wait_for(client.process.wait(), 20) == 0
        return answer


@asynccontextmanager
async def http_session(revision: str, served: tuple[str, str]) -> AsyncIterator[httpx2.AsyncClient]:
    """Yield a client of /mcp, with an open session in the revision of 2025."""
    base, token = served
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient(base_url=base, headers=headers, timeout=60) as client:
        if revision == "2025":
            opened = await client.post("/mcp", json=initialize(1))
            client.headers["Mcp-Session-Id"] = opened.headers["mcp-session-id"]
            client.headers["MCP-Protocol-Version"] = "2025-06-18"
            assert (await client.post("/mcp", json=INITIALIZED)).status_code == 202
        yield client


async def over_http(
    revision: str, served: tuple[str, str], asked: dict[str, Any], headers: dict[str, str] | None = None
) -> dict[str, Any]:
    async with http_session(revision, served) as client:
        own = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": asked["method"]} if revision == "2026" else {}
        if revision == "2026" and "name" in asked["params"]:
            own["Mcp-Name"] = asked["params"]["name"]
        answer = await client.post("/mcp", json=asked, headers=own | (headers or {}))
        text = answer.text
        lines = [line.removeprefix("data:") for line in text.splitlines() if line.startswith("data:")] or [text]
        found: dict[str, Any] = json.loads(lines[-1])
        return found


def trace_of(receiving: Collector, caller: Caller, top: str, *names: str) -> dict[str, Span]:
    """Wait for these spans in the trace of the caller, check it, and return its spans by name.

    Every span must be a descendant of the span of the request.
    """
    spans = receiving.wait_for(top, *names, trace=caller.trace)
    by_id = {span.id: span for span in spans}
    first = next(span for span in spans if span.name == top)
    assert (first.parent, first.kind) == (caller.span, "SERVER")
    for span in spans:
        above = span
        while above is not first:
            assert above.parent in by_id, (span.name, above.name)
            above = by_id[above.parent]
        assert first.start <= span.start <= span.end <= first.end, span.name
        assert not span.texts
    # No request to the collector, of any test so far, may hold an argument or an address.
    for word in (SECRET, PORTS, "127.0.0.1", OUTSIDE):
        assert not any(word.encode() in body for body in receiving.bodies), word
    return {span.name: span for span in spans}


def check_whole(spans: dict[str, Span], top: str, env: dict[str, str], caller: Caller) -> None:
    """Check the trace of a completed scan: every step, no error, the numbers, and the trace id in the audit log."""
    assert not any(span.failed for span in spans.values())
    first = spans[top].attributes
    assert first["gen_ai.operation.name"] == "execute_tool"
    assert first["gen_ai.tool.name"] == "nmap"
    assert first["mcp_network_tools.outcome"] == "completed"
    assert spans["plan"].attributes["mcp_network_tools.addresses"] == 1
    assert 0 <= spans["admit"].attributes["mcp_network_tools.waited_sec"] < 5
    assert spans["execute"].attributes["mcp_network_tools.bytes"] > 0
    assert spans["parse"].parent == spans["execute"].id
    records = [
        record
        for record in log_records(Path(env["MCP_STATE_DIR"]))
        if record.get("run_id") == first["mcp_network_tools.run_id"]
    ]
    assert {(record["event"], record["trace_id"]) for record in records} == {
        ("decision", caller.trace),
        ("end", caller.trace),
    }


@pytest.mark.parametrize("revision", REVISIONS)
async def test_a_call_over_stdio_is_one_trace(receiving: Collector, env: dict[str, str], revision: str) -> None:
    caller = Caller.make()
    answer = await over_stdio(
        revision, env, message(revision, "tools/call", caller.headers, name="nmap", arguments=SCAN)
    )
    assert not answer["result"].get("isError"), answer
    spans = trace_of(receiving, caller, "tools/call nmap", *STEPS)
    check_whole(spans, "tools/call nmap", env, caller)
    first = spans["tools/call nmap"].attributes
    assert first["mcp.method.name"] == "tools/call"
    assert first["jsonrpc.request.id"] == "7"
    assert first["network.transport"] == "pipe"
    assert first["mcp.protocol.version"].startswith(revision)
    assert "mcp.session.id" not in first


@pytest.mark.parametrize("revision", REVISIONS)
async def test_a_call_over_http_is_one_trace(
    receiving: Collector, served: tuple[str, str], env: dict[str, str], revision: str
) -> None:
    caller = Caller.make()
    answer = await over_http(
        revision, served, message(revision, "tools/call", caller.headers, name="nmap", arguments=SCAN)
    )
    assert not answer["result"].get("isError"), answer
    spans = trace_of(receiving, caller, "tools/call nmap", *STEPS)
    check_whole(spans, "tools/call nmap", env, caller)
    first = spans["tools/call nmap"].attributes
    assert (first["network.transport"], first["network.protocol.name"]) == ("tcp", "http")
    assert first["network.protocol.version"] == "1.1"
    assert ("mcp.session.id" in first) == (revision == "2025")


async def test_a_call_over_rest_is_one_trace(
    receiving: Collector, served: tuple[str, str], env: dict[str, str]
) -> None:
    caller = Caller.make()
    async with rest_client(*served) as client:
        answer = await client.post("/tools/NmapTool/execute", json=SCAN, headers=caller.headers)
    assert answer.status_code == 200, answer.text
    top = "POST /tools/{tool_name}/execute"
    spans = trace_of(receiving, caller, top, *STEPS)
    check_whole(spans, top, env, caller)
    first = spans[top].attributes
    assert (first["http.request.method"], first["http.route"]) == ("POST", "/tools/{tool_name}/execute")
    assert first["http.response.status_code"] == 200


@pytest.mark.parametrize("revision", REVISIONS)
async def test_the_http_header_is_used_if_the_message_names_no_trace(
    receiving: Collector, served: tuple[str, str], revision: str
) -> None:
    caller, inner = Caller.make(), Caller.make()
    await over_http(revision, served, message(revision, "tools/list", {}), caller.headers)
    assert set(trace_of(receiving, caller, "tools/list")) == {"tools/list"}
    await over_http(revision, served, message(revision, "tools/list", inner.headers), Caller.make().headers)
    trace_of(receiving, inner, "tools/list")


@pytest.mark.parametrize("interface", ["stdio", "http", "rest"])
async def test_a_refusal_marks_the_step_that_refused(
    receiving: Collector, served: tuple[str, str], env: dict[str, str], interface: str
) -> None:
    caller, arguments = Caller.make(), {"target": OUTSIDE}
    asked = message("2026", "tools/call", caller.headers, name="nmap", arguments=arguments)
    if interface == "rest":
        async with rest_client(*served) as client:
            await client.post("/tools/nmap/execute", json=arguments, headers=caller.headers)
    else:
        await (over_stdio("2026", env, asked) if interface == "stdio" else over_http("2026", served, asked))
    top = "POST /tools/{tool_name}/execute" if interface == "rest" else "tools/call nmap"
    spans = trace_of(receiving, caller, top, "validate", "plan")
    assert spans["plan"].failed
    assert spans["plan"].attributes["error.type"] == "target_out_of_scope"
    first = spans[top]
    assert first.failed
    if interface == "rest":
        assert first.attributes["http.response.status_code"] == 400
        assert first.attributes["error.type"] == "target_out_of_scope"
    else:
        # As the conventions for MCP say, with our code in a second attribute.
        assert first.attributes["error.type"] == "tool_error"
        assert first.attributes["mcp_network_tools.error_code"] == "target_out_of_scope"
    assert not {"execute", "record", "respond"} & set(spans)


async def test_unknown_tools_and_methods_do_not_name_a_span(receiving: Collector, env: dict[str, str]) -> None:
    tool, method = Caller.make(), Caller.make()
    word = "hostile-word"
    await over_stdio(
        "2026",
        env,
        message("2026", "tools/call", tool.headers, name=word, arguments={}),
        message("2026", f"{word}/{word}", method.headers),
    )
    unknown = trace_of(receiving, tool, "tools/call unknown")["tools/call unknown"]
    assert unknown.attributes["gen_ai.tool.name"] == "unknown"
    assert unknown.attributes["error.type"] == "-32602"
    assert unknown.attributes["mcp_network_tools.error_code"] == "unknown_tool"
    other = trace_of(receiving, method, "_OTHER")["_OTHER"]
    assert other.attributes["mcp.method.name"] == "_OTHER"
    assert not any(word.encode() in body for body in receiving.bodies)


async def test_programs_get_no_variable_of_tracing(receiving: Collector, tmp_path: Path) -> None:
    tools = make_site_tools(tmp_path / "site")
    (tools.folder / "bin" / "site-probe").write_text("#!/bin/sh\nexec env\n")
    own = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=hunter2", "OTEL_RESOURCE_ATTRIBUTES": "deployment=test"}
    env = env_of(tmp_path / "state", receiving.url, **tools.env, **own)
    with http_server(env) as served:
        async with rest_client(*served[:2]) as client:
            caller = Caller.make()
            path = "/tools/ProbeTool/execute"
            answer = await client.post(path, json={"target": "127.0.0.1"}, headers=caller.headers)
    words = answer.json()["stdout"]
    assert "LC_ALL" in words, answer.text
    assert not [word for word in ("OTEL", "TRACEPARENT", "TRACING", "hunter2") if word in words.upper()]


async def refused_call(served: tuple[str, str]) -> Caller:
    """Make a call that is refused at once, and return its caller."""
    caller = Caller.make()
    async with rest_client(*served) as client:
        answer = await client.post("/tools/nmap/execute", json={"target": OUTSIDE}, headers=caller.headers)
    assert answer.status_code == 400
    return caller


async def stopped(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 10) == 0


async def test_a_stopping_server_sends_its_queued_spans(tmp_path: Path, receiving: Collector) -> None:
    # Spans are sent every two seconds, and the server stops before that.
    with http_server(env_of(tmp_path / "state", receiving.url, OTEL_BSP_SCHEDULE_DELAY="2000")) as (*served, process):
        first = await refused_call((served[0], served[1]))
        await asyncio.to_thread(receiving.wait_for, "plan", trace=first.trace)
        last = await refused_call((served[0], served[1]))
        await stopped(process)
    assert {"validate", "plan"} <= {span.name for span in receiving.spans if span.trace == last.trace}
    assert "tracing." not in next(tmp_path.glob("server-*.log")).read_text()


@pytest.mark.parametrize("dead", ["silent", "refused"])
async def test_a_dead_collector_does_not_delay_a_stopping_server(tmp_path: Path, dead: str) -> None:
    with collector() as receiving:
        receiving.silent.set()
        url = receiving.url if dead == "silent" else f"http://127.0.0.1:{free_port()}"
        # The exporter sends nothing before the server stops, and would itself wait for the collector for a minute.
        waits = {"OTEL_BSP_SCHEDULE_DELAY": "600000", "OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
        env = env_of(tmp_path / "state", url, MCP_SERVER_SHUTDOWN_GRACE_PERIOD="1", **waits)
        with http_server(env) as (base, token, process):
            await refused_call((base, token))
            assert not receiving.requests
            await stopped(process)
    log = next(tmp_path.glob("server-*.log")).read_text()
    assert log.count("tracing.not_flushed") == 1, log
    assert "opentelemetry" not in log
