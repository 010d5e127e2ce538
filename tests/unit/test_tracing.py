"""Tracing: spans reach a real collector with the attributes of docs/tracing.md only, and delay no call."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mcp_server.config.sections import TracingConfig
from mcp_server.errors import ConfigError, TargetError
from mcp_server.model.digest import HOST_COUNTS
from mcp_server.observability import tracing
from mcp_server.scope.policy import ScopePolicy
from tests.support.interfaces import ROOT, free_port
from tests.support.otlp import Collector, Span, collector

CALLER = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
LOGGER = "mcp_server.observability.tracing"


@pytest.fixture(autouse=True)
def send_at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Send batches at once, and stop tracing after each test."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    yield
    tracing.shutdown(0)


@pytest.fixture
def receiving() -> Iterator[Collector]:
    with collector() as one:
        yield one


def start(url: str, ratio: float = 1.0, **named: ScopePolicy) -> None:
    tracing.configure(TracingConfig(endpoint=url, sample_ratio=ratio), **named)


def by_name(spans: list[Span]) -> dict[str, Span]:
    return {span.name: span for span in spans}


def traceparent(flags: str = "01") -> dict[str, str]:
    return {"traceparent": f"00-{CALLER}-{PARENT}-{flags}"}


def test_without_an_endpoint_every_span_is_one_object_that_does_nothing() -> None:
    start("")
    with tracing.span("plan") as span, tracing.request("GET", "/runs", traceparent()) as request:
        assert span is request is tracing.current() is tracing.span("run")
        span.set(**{"mcp_network_tools.risk": "discover"})
        span.error("tool_failed")
        assert tracing.trace_id() is None
    assert not tracing.enabled()


def test_without_an_endpoint_opentelemetry_is_not_imported() -> None:
    code = (
        "import sys\n"
        "from mcp_server.observability import tracing\n"
        "from mcp_server.config.sections import TracingConfig\n"
        "tracing.configure(TracingConfig())\n"
        "with tracing.span('plan'), tracing.context_from({}): tracing.trace_id()\n"
        "tracing.shutdown()\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'requests', 'google'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_spans_are_nested_and_share_their_trace(receiving: Collector) -> None:
    start(receiving.url)
    with tracing.span("call"):
        seen = tracing.trace_id()
        with tracing.span("plan", **{"mcp_network_tools.addresses": 4}) as plan:
            plan.set(**{"mcp_network_tools.risk": "discover"})
    with tracing.span("call") as other:
        other.rename("answer")
    spans = by_name(receiving.wait_for("call", "plan", "answer"))
    assert spans["plan"].trace == spans["call"].trace == seen != spans["answer"].trace
    assert (spans["plan"].parent, spans["call"].parent) == (spans["call"].id, "")
    assert spans["plan"].attributes == {"mcp_network_tools.addresses": 4, "mcp_network_tools.risk": "discover"}
    assert spans["call"].start <= spans["plan"].start <= spans["plan"].end <= spans["call"].end
    assert spans["plan"].resource["service.name"] == "mcp-network-tools"
    assert [path for path, _ in receiving.requests][:1] == ["/v1/traces"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TargetError("192.0.2.7 is outside", code="target_out_of_scope"), "target_out_of_scope"),
        (asyncio.CancelledError(), "cancelled"),
        (RuntimeError("192.0.2.7 broke it"), "internal_error"),
    ],
    ids=str,
)
def test_an_error_that_leaves_a_span_is_recorded_by_its_code_only(
    receiving: Collector, error: BaseException, code: str
) -> None:
    start(receiving.url)
    with pytest.raises(type(error)), tracing.span("plan"):
        raise error
    (span,) = receiving.wait_for("plan")
    assert span.failed
    assert span.attributes == {"error.type": code}
    assert not span.texts


def test_an_error_code_set_by_a_step_is_kept(receiving: Collector) -> None:
    start(receiving.url)
    with suppress(RuntimeError), tracing.span("run") as span:
        span.error("timeout")
        raise RuntimeError
    (run,) = receiving.wait_for("run")
    assert run.attributes == {"error.type": "timeout"}


def test_a_request_belongs_to_the_trace_of_its_caller(receiving: Collector) -> None:
    start(receiving.url, ratio=0)
    headers = traceparent() | {"tracestate": "vendor=1"}
    with tracing.request("POST", "/tools/{tool_name}/execute", headers, **{"gen_ai.tool.name": "nmap"}) as server:
        assert tracing.trace_id() == CALLER
        server.set(**{"http.response.status_code": 200})
        with tracing.span("plan"):
            pass
    spans = by_name(receiving.wait_for("POST /tools/{tool_name}/execute", "plan"))
    request = spans["POST /tools/{tool_name}/execute"]
    assert (request.trace, request.parent, request.kind) == (CALLER, PARENT, "SERVER")
    assert (spans["plan"].trace, spans["plan"].parent, spans["plan"].kind) == (CALLER, request.id, "INTERNAL")
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/tools/{tool_name}/execute",
        "http.response.status_code": 200,
        "network.transport": "tcp",
        "gen_ai.tool.name": "nmap",
    }


@pytest.mark.parametrize(
    ("ratio", "headers", "recorded"),
    [
        (1.0, {}, True),
        (0.0, {}, False),
        (0.0, traceparent("01"), True),
        (1.0, traceparent("00"), False),
        (1.0, {"traceparent": "00-xyz-1-01"}, True),
        (0.0, {"traceparent": f"00-{'0' * 32}-{PARENT}-01"}, False),
    ],
)
def test_a_trace_is_recorded_as_the_caller_or_else_the_ratio_decides(
    receiving: Collector, ratio: float, headers: dict[str, str], recorded: bool
) -> None:
    start(receiving.url, ratio)
    with tracing.context_from(headers), tracing.span("asked"):
        assert (tracing.trace_id() is not None) == recorded
    with tracing.context_from(traceparent()), tracing.span("last"):
        pass
    names = {span.name for span in receiving.wait_for("last")}
    assert names == ({"asked", "last"} if recorded else {"last"})


def test_the_share_of_recorded_traces_is_about_the_ratio(receiving: Collector) -> None:
    start(receiving.url, ratio=0.25)
    recorded = 0
    for _ in range(2000):
        with tracing.span("call"):
            recorded += tracing.trace_id() is not None
    assert 400 < recorded < 600  # five standard deviations are 97


def test_only_listed_attributes_are_sent(receiving: Collector) -> None:
    from opentelemetry import trace

    start(receiving.url)
    with suppress(RuntimeError), trace.get_tracer("somebody").start_as_current_span("x" * 500) as foreign:
        foreign.set_attributes({"gen_ai.tool.call.arguments": "192.0.2.7", "jsonrpc.request.id": "7" * 5000})
        foreign.add_event("seen", {"target": "192.0.2.7"})
        raise RuntimeError("192.0.2.7 said no")
    (span,) = receiving.wait(bool)
    assert span.name == "x" * 128
    assert span.attributes == {"jsonrpc.request.id": "7" * 128}
    assert span.failed
    assert not span.texts


def test_an_endpoint_may_have_a_path_and_a_password_that_is_not_logged(
    receiving: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    receiving.status = 401
    start(receiving.url.replace("//", "//operator:hunter2@") + "/otlp/")
    with caplog.at_level(logging.DEBUG, LOGGER):
        with tracing.span("call"):
            pass
        receiving.wait(lambda _: bool(receiving.requests))
        until_logged(caplog, "tracing.export_failed")
    assert receiving.requests[0][0] == "/otlp/v1/traces"
    assert receiving.requests[0][1]["authorization"].startswith("Basic ")
    assert "hunter2" not in caplog.text


def until_logged(caplog: pytest.LogCaptureFixture, event: str) -> None:
    deadline = time.monotonic() + 20
    while event not in caplog.text:
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.01)


def test_the_failure_and_the_return_of_a_collector_are_logged_once_each(
    receiving: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    receiving.status = 500
    start(receiving.url)
    with caplog.at_level(logging.DEBUG):
        for number in range(1, 6):
            with tracing.span("call"):
                pass
            receiving.wait(lambda _, number=number: len(receiving.requests) >= number)  # type: ignore[misc]
        until_logged(caplog, "tracing.export_failed")
        receiving.status = 200
        with tracing.span("later"):
            pass
        receiving.wait_for("later")
        until_logged(caplog, "tracing.export_works_again")
    lines = [record.msg for record in caplog.records if record.name.startswith(("opentelemetry", LOGGER))]
    failed, works = (line for line in lines if isinstance(line, dict))
    assert len(lines) == 2, lines
    assert failed["event"] == "tracing.export_failed"
    assert "500" in failed["message"]
    assert (works["event"], works["lost"]) == ("tracing.export_works_again", 5)


def test_a_full_queue_is_logged_once() -> None:
    from mcp_server.observability.tracing.export import _QUEUE, _SdkLines

    sdk_lines = _SdkLines()
    lines = [logging.LogRecord(_QUEUE, 30, "", 0, text, ("Span",), None) for text in ("Queue full, dropping %s.", "%s")]
    assert [sdk_lines.filter(lines[0]), sdk_lines.filter(lines[0]), sdk_lines.filter(lines[1])] == [True, False, True]


def test_queued_spans_are_sent_at_the_end(receiving: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    start(receiving.url)
    for _ in range(700):  # more than one batch
        with tracing.span("call"):
            pass
    tracing.shutdown(20)
    assert len(receiving.spans) == 700
    assert not tracing.enabled()
    tracing.shutdown()


@pytest.mark.parametrize("dead", ["silent", "refused"])
def test_a_dead_collector_does_not_delay_the_end(
    receiving: Collector, dead: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Longer than the limit below: the wait must be ended by this project, not by the SDK.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    if dead == "silent":
        receiving.silent.set()
    start(receiving.url if dead == "silent" else f"http://127.0.0.1:{free_port()}")
    with tracing.span("call"):
        pass
    begun = time.monotonic()
    tracing.shutdown(0.2)
    assert time.monotonic() - begun < 10
    assert "tracing.not_flushed" in caplog.text


def test_new_settings_replace_the_old_ones(receiving: Collector) -> None:
    start(receiving.url)
    with tracing.span("first"):
        pass
    with collector() as other:
        start(other.url)
        with tracing.span("second"):
            pass
        other.wait_for("second")
        start("")
        with tracing.span("third"):
            pass
        assert [span.name for span in other.spans] == ["second"]
    assert [span.name for span in receiving.spans] == ["first"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:4318", "loopback"),
        ("http://localhost:4318", "loopback"),
        ("http://[::1]:4318", "loopback"),
        ("http://collector.lab.internal:4318", "use its address"),
        ("http://192.0.2.7:4318", "outside the scope"),
    ],
)
def test_inside_the_guard_only_a_collector_in_the_scope_is_used(
    url: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    start(url, inside=ScopePolicy.from_entries(["loopback", "198.51.100.0/24"]))
    assert not tracing.enabled()
    assert reason in caplog.text
    start("http://198.51.100.9:4318", inside=ScopePolicy.from_entries(["198.51.100.0/24"]))
    assert tracing.enabled()


def test_a_missing_extra_is_named_in_the_hint(tmp_path: Path) -> None:
    """Run with the packages of a plain installation, which lacks those of the extra."""
    packages = Path(sysconfig.get_paths()["purelib"])
    for item in packages.iterdir():
        if item.name != "opentelemetry":
            (tmp_path / item.name).symlink_to(item)
    (tmp_path / "opentelemetry").mkdir()
    for item in (packages / "opentelemetry").iterdir():
        if item.name not in {"sdk", "exporter", "proto"}:
            (tmp_path / "opentelemetry" / item.name).symlink_to(item)
    code = (
        "from mcp_server.observability import tracing\n"
        "from mcp_server.config.sections import TracingConfig\n"
        "from mcp_server.errors import ConfigError\n"
        "tracing.configure(TracingConfig())\n"
        "try: tracing.configure(TracingConfig(endpoint='http://127.0.0.1:1'))\n"
        "except ConfigError as error: print(error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": f"{ROOT / 'src'}:{tmp_path}"},
    )
    assert "mcp-network-tools[tracing]" in done.stdout, done.stderr
    assert ConfigError.default_code == "config_invalid"


def test_an_invalid_variable_of_the_sdk_raises_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "0")
    with pytest.raises(ConfigError, match="max_queue_size"):
        start("http://127.0.0.1:4318")
    assert not tracing.enabled()


def test_an_exporter_that_cannot_be_created_is_logged_once(
    receiving: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER", "nobody")
    start(receiving.url)
    for _ in range(3):
        with tracing.span("call"):
            pass
        time.sleep(0.1)  # five times the delay of a batch
    until_logged(caplog, "tracing.export_failed")
    assert "nobody" in caplog.text
    assert [record.name for record in caplog.records] == ["mcp_server.observability.tracing.export"]
    assert not receiving.requests


def test_every_attribute_is_set_somewhere() -> None:
    """Either this project sets it, or the MCP SDK, which makes the first span of an MCP request."""
    import mcp

    ours = [
        path
        for path in Path(ROOT, "src/mcp_server").rglob("*.py")
        if path != Path(ROOT, "src/mcp_server/observability/tracing/__init__.py")
    ]
    assert mcp.__file__
    sources = [path.read_text() for path in (*ours, *Path(mcp.__file__).parent.rglob("*.py"))]
    request = Path(ROOT, "src/mcp_server/observability/tracing/__init__.py").read_text().partition("def request(")[2]
    # The counts of a run are set by the names that its tool gives them.
    counts = {f"mcp_network_tools.{name}" for name in HOST_COUNTS}
    unset = {name for name in tracing.ATTRIBUTES if not any(f'"{name}"' in text for text in (*sources, request))}
    assert unset == counts


def test_the_documentation_has_a_line_for_every_attribute() -> None:
    page = (ROOT / "docs/tracing.md").read_text()
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.+) \|$", page, re.MULTILINE))
    assert {name: rows.get(name) for name in tracing.ATTRIBUTES} == tracing.ATTRIBUTES
