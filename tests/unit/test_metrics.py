"""Metrics: what is counted is shown, exactly and parseably, whatever the words are; nothing else can be counted."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from mcp_server import metrics
from mcp_server.config.sections import MetricsConfig
from mcp_server.errors import ERRORS
from mcp_server.metrics import METRICS, PROCESS_METRICS
from mcp_server.metrics.table import AUDIT_CODES, NO_REFUSALS

PAGE = (Path(__file__).resolve().parents[2] / "docs/metrics.md").read_text()
ANY_TEXT = st.text(st.characters(), max_size=300)  # lone surrogates too
CALL = {"tool": "nmap", "status": "completed", "error_type": "none"}


@pytest.fixture(autouse=True)
def as_new() -> Iterator[None]:
    metrics.reset()
    yield
    metrics.reset()


def read() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of the page, as a scraper reads it."""
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(name: str, /, **labels: str) -> float | None:
    return read().get((name, tuple(sorted(labels.items()))))


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_a_line_with_its_kind_and_labels(name: str) -> None:
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` ")]
    _, _, kind, labels, meaning, _ = (cell.strip() for cell in line.split("|"))
    assert kind == METRICS[name].kind
    assert [label for label in METRICS[name].labels if f"`{label}`" not in labels] == []
    assert meaning


def test_the_documentation_names_no_metric_that_is_not_there() -> None:
    documented = {line.split("`")[1] for line in PAGE.splitlines() if line.startswith("| `")}
    assert documented == {*METRICS, *PROCESS_METRICS}


def test_names_follow_the_rules_of_prometheus() -> None:
    for name, metric in METRICS.items():
        assert name.endswith("_total") == (metric.kind == "counter")
        assert (metric.kind == "histogram") == bool(metric.buckets)
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert not name.endswith(("_count", "_sum", "_bucket"))


def test_what_is_counted_is_shown() -> None:
    metrics.count("mcp_tool_execution_total", 3, **CALL)
    metrics.count("mcp_tool_execution_total", **CALL)
    metrics.gauge("mcp_tool_active", 2, tool="nmap")
    metrics.gauge("mcp_tool_active", 1, tool="nmap")
    assert value("mcp_tool_execution_total", **CALL) == 4
    assert value("mcp_tool_active", tool="nmap") == 1


def test_times_fall_under_their_bounds() -> None:
    for seconds in (0.0005, 0.004, 0.004, 99999):
        metrics.observe("mcp_store_seconds", seconds, operation="add")
    found = {
        float(dict(labels)["le"]): number
        for (name, labels), number in read().items()
        if name == "mcp_store_seconds_bucket"
    }
    assert (found[0.0005], found[0.0025], found[0.005], found[10.0], found[math.inf]) == (1, 1, 3, 3, 4)
    assert value("mcp_store_seconds_count", operation="add") == 4
    assert value("mcp_store_seconds_sum", operation="add") == pytest.approx(99999.0085)


def test_the_process_itself_is_on_the_page() -> None:
    samples = {name for name, _ in read()}
    assert set(PROCESS_METRICS) <= samples


def test_what_can_be_alarmed_on_begins_at_zero() -> None:
    metrics.prepare(["nmap"])
    page = read()
    shown = {dict(labels)["code"]: number for (name, labels), number in page.items() if name == "mcp_refusals_total"}
    assert shown == dict.fromkeys(ERRORS.keys() - NO_REFUSALS, 0)
    assert {"target_out_of_scope", "too_many_requests", "rate_limited", "audit_unavailable"} <= shown.keys()
    assert ERRORS.keys() > NO_REFUSALS
    for code in AUDIT_CODES:
        assert page["mcp_audit_failures_total", (("code", code),)] == 0
        assert f"`{code}`" in next(line for line in PAGE.splitlines() if "`mcp_audit_failures_total`" in line)
    assert value("mcp_guard_failures_total") == 0
    assert value("mcp_config_reloads_total", result="kept") == 0
    assert value("mcp_tool_errors_total", tool="nmap", error_type="timeout") == 0
    assert value("circuit_breaker_transitions_total", name="nmap", from_state="closed", to_state="open") == 0
    assert value("mcp_audit_append_seconds_count") == 0
    assert value("mcp_health_status") is None, "a gauge that nobody set says nothing"


@given(name=ANY_TEXT, other=ANY_TEXT, number=st.floats(min_value=0, allow_nan=False, allow_infinity=False))
def test_no_text_and_no_number_breaks_the_page(name: str, other: str, number: float) -> None:
    metrics.reset()
    metrics.count("mcp_http_requests_total", number, method=name, route=other, status="200")
    metrics.observe("mcp_http_request_seconds", number, route=other)
    metrics.gauge("mcp_health_check_status", number, check=name)
    metrics.gauge_function("mcp_queue_depth", lambda: {name: number})
    page = read()
    assert [v for (n, _), v in page.items() if n == "mcp_http_requests_total"] == [number]
    assert [v for (n, _), v in page.items() if n == "mcp_http_request_seconds_sum"] == [number]
    assert [v for (n, _), v in page.items() if n == "mcp_health_check_status"] == [number]
    assert [v for (n, _), v in page.items() if n == "mcp_queue_depth"] == [number]
    lines = metrics.exposition().decode().split("\n")
    assert all(line.isprintable() for line in lines), "nothing in it acts on a terminal"


@given(st.floats())
def test_a_gauge_takes_every_number(number: float) -> None:
    metrics.gauge("mcp_event_loop_lag_seconds", number)
    shown = value("mcp_event_loop_lag_seconds")
    assert shown == number or (shown is not None and math.isnan(shown) and math.isnan(number))


def test_threads_count_exactly() -> None:
    each, threads = 5000, 8

    def work(_: int) -> None:
        for _turn in range(each):
            metrics.count("mcp_tool_execution_total", **CALL)
            metrics.observe("mcp_step_seconds", 0.25, step="plan")

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
    finally:
        sys.setswitchinterval(before)
    assert value("mcp_tool_execution_total", **CALL) == each * threads
    assert value("mcp_step_seconds_count", step="plan") == each * threads
    assert value("mcp_step_seconds_sum", step="plan") == each * threads / 4


def test_the_values_of_a_label_are_bounded() -> None:
    for number in range(metrics.VALUES_LIMIT + 50):
        metrics.count("mcp_guard_drops_total", rule=f"rule-{number}")
    metrics.count("mcp_guard_drops_total", rule="rule-7")
    shown = [labels for name, labels in read() if name == "mcp_guard_drops_total"]
    assert len(shown) == metrics.VALUES_LIMIT + 1
    assert value("mcp_guard_drops_total", rule="other") == 50
    assert value("mcp_guard_drops_total", rule="rule-7") == 2, "one that is known stays what it is"


def test_the_series_of_a_metric_are_bounded() -> None:
    for number in range(metrics.SERIES_LIMIT + 500):
        labels = {"method": f"m{number % 150}", "route": f"r{number // 150}", "status": "200"}
        metrics.count("mcp_http_requests_total", **labels)
    shown = {labels: number for (name, labels), number in read().items() if name == "mcp_http_requests_total"}
    assert len(shown) == metrics.SERIES_LIMIT + 1
    assert sum(shown.values()) == metrics.SERIES_LIMIT + 500
    assert value("mcp_http_requests_total", method="other", route="other", status="other") == 500


def test_only_what_is_in_the_table_can_be_counted() -> None:
    with pytest.raises(KeyError):
        metrics.count("mcp_invented_total")
    with pytest.raises(ValueError, match="labels"):
        metrics.count("mcp_refusals_total", reason="x")
    with pytest.raises(ValueError, match="labels"):
        metrics.count("mcp_refusals_total")
    with pytest.raises(ValueError, match="is a counter"):
        metrics.gauge("mcp_refusals_total", 1, code="x")
    with pytest.raises(ValueError, match="is a gauge"):
        metrics.count("mcp_tool_active", tool="nmap")
    for number in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="0 or more"):
            metrics.count("mcp_refusals_total", number, code="timeout")
        with pytest.raises(ValueError, match="0 or more"):
            metrics.observe("mcp_step_seconds", number, step="plan")
    with pytest.raises(ValueError, match="labels"):
        metrics.gauge_function("mcp_refusals_total", lambda: 1)


def test_a_function_is_asked_when_the_page_is_read() -> None:
    waiting = {"nmap": 1.0, "dig": 2.0}
    metrics.gauge_function("mcp_queue_depth", lambda: waiting)
    metrics.gauge_function("mcp_health_status", lambda: 1)
    metrics.gauge_function("mcp_tool_active", lambda: None, tool="nmap")
    assert value("mcp_queue_depth", tool="dig") == 2
    assert value("mcp_health_status") == 1
    assert value("mcp_tool_active", tool="nmap") is None
    del waiting["dig"]
    assert value("mcp_queue_depth", tool="dig") is None
    assert value("mcp_queue_depth", tool="nmap") == 1


def test_a_function_that_fails_costs_its_own_metric_alone(caplog: pytest.LogCaptureFixture) -> None:
    def failing() -> float:
        raise RuntimeError("gone")

    metrics.gauge_function("mcp_event_subscribers", failing)
    metrics.gauge("mcp_health_status", 2)
    assert value("mcp_event_subscribers") is None
    assert value("mcp_health_status") == 2
    assert "metrics.not_read metric=mcp_event_subscribers" in caplog.text


def test_a_later_function_takes_the_place() -> None:
    metrics.gauge_function("mcp_health_status", lambda: 0)
    metrics.gauge_function("mcp_health_status", lambda: 2)
    assert value("mcp_health_status") == 2


def test_switched_off_nothing_is_counted() -> None:
    metrics.count("mcp_refusals_total", code="timeout")
    metrics.configure(enabled=False)
    metrics.count("mcp_refusals_total", code="timeout")
    metrics.observe("mcp_step_seconds", 1, step="plan")
    metrics.gauge("mcp_health_status", 1)
    metrics.prepare(["nmap"])
    assert not metrics.enabled()
    assert value("mcp_refusals_total", code="timeout") == 1
    assert value("mcp_step_seconds_count", step="plan") == 0
    assert value("mcp_health_status") is None
    assert value("mcp_output_bytes_total", tool="nmap") is None


def test_counting_imports_nothing() -> None:
    script = (
        "import sys; from mcp_server import metrics\n"
        "metrics.prepare(['nmap']); metrics.count('mcp_refusals_total', code='timeout')\n"
        "metrics.observe('mcp_step_seconds', 1, step='plan'); metrics.collect()\n"
        "sys.exit(any(name.startswith('prometheus_client') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


async def test_the_sampler_sees_a_loop_that_comes_late_and_the_disk(tmp_path: Path) -> None:
    settings = MetricsConfig.model_construct(enabled=True, collection_interval=0)
    sampler = metrics.Sampler(lambda: settings, tmp_path, tick_sec=0.01)
    sampler.start()
    sampler.start()
    await asyncio.sleep(0.05)
    time.sleep(0.5)  # the loop is held up: what is to be seen
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        # The tick that came late is told at the end of its interval, which is this very tick.
        while (value("mcp_event_loop_lag_seconds") or 0) < 0.4:
            await asyncio.sleep(0)
    await sampler.stop()
    await sampler.stop()
    assert value("mcp_state_disk_size_bytes") >= value("mcp_state_disk_free_bytes") > 0  # type: ignore[operator]  # both are there


async def test_the_sampler_says_that_it_cannot_read_the_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sampler = metrics.Sampler(MetricsConfig, tmp_path / "gone", tick_sec=0.01)
    sampler.start()
    async with asyncio.timeout(5):
        while "metrics.disk_not_read" not in caplog.text:
            await asyncio.sleep(0.01)
    await sampler.stop()
    assert value("mcp_state_disk_free_bytes") is None


async def test_the_sampler_follows_a_reload(tmp_path: Path) -> None:
    # Rebound below, as a reload does; 0 is every tick.
    settings = MetricsConfig.model_construct(enabled=True, collection_interval=300)
    sampler = metrics.Sampler(lambda: settings, tmp_path, tick_sec=0.01)
    sampler.start()
    await asyncio.sleep(0.05)
    assert value("mcp_event_loop_lag_seconds") is None
    settings = MetricsConfig.model_construct(enabled=True, collection_interval=0)
    async with asyncio.timeout(5):
        while value("mcp_event_loop_lag_seconds") is None:
            await asyncio.sleep(0.01)
    await sampler.stop()


def test_every_metric_is_written_by_something() -> None:
    source = Path(metrics.__file__).resolve().parents[1]
    texts = [path.read_text() for path in source.rglob("*.py") if path.name != "table.py"]
    assert [name for name in METRICS if not any(f'"{name}"' in text for text in texts)] == []
