"""Metrics: the page has exactly the counted values, for any label values, and only metrics of the table."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_server import metrics
from mcp_server.config.sections import MetricsConfig
from mcp_server.errors import ERRORS
from mcp_server.metrics import METRICS, PROCESS_METRICS
from mcp_server.metrics.registry import SERIES_LIMIT, VALUES_LIMIT
from mcp_server.metrics.sampler import Sampler
from mcp_server.metrics.table import AUDIT_CODES, NO_REFUSALS
from tests.support.metrics import counting, sample, samples, series

PAGE = (Path(__file__).resolve().parents[2] / "docs/metrics.md").read_text()
ANY_TEXT = st.text(st.characters(), max_size=300)  # lone surrogates too
CALL = {"tool": "nmap", "status": "completed", "error_type": "none"}


@pytest.fixture(autouse=True)
def counting_from_zero() -> Iterator[None]:
    with counting():
        yield


@pytest.mark.parametrize("name", METRICS)
def test_the_documentation_has_a_line_for_every_metric_with_its_kind_and_labels(name: str) -> None:
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` ")]
    _, _, kind, labels, meaning, _ = (cell.strip() for cell in line.split("|"))
    assert kind == METRICS[name].kind
    missing = [label for label in METRICS[name].labels if f"`{label}`" not in labels]
    assert missing == [], f"docs/metrics.md does not name these labels of {name}"
    assert meaning, f"docs/metrics.md does not say what {name} means"


def test_the_documentation_names_no_other_metric() -> None:
    documented = {line.split("`")[1] for line in PAGE.splitlines() if line.startswith("| `")}
    assert documented == {*METRICS, *PROCESS_METRICS}


def test_metric_names_follow_the_conventions_of_prometheus() -> None:
    for name, metric in METRICS.items():
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert (metric.kind == "histogram") == bool(metric.buckets), name
        assert list(metric.buckets) == sorted(set(metric.buckets)), name
        assert not name.endswith(("_count", "_sum", "_bucket")), name


def test_the_page_has_the_counted_values() -> None:
    metrics.count("mcp_tool_execution_total", 3, **CALL)
    metrics.count("mcp_tool_execution_total", **CALL)
    metrics.gauge("mcp_tool_active", 2, tool="nmap")
    metrics.gauge("mcp_tool_active", 1, tool="nmap")
    assert sample("mcp_tool_execution_total", **CALL) == 4
    assert sample("mcp_tool_active", tool="nmap") == 1


def test_an_observation_is_counted_in_every_bucket_at_or_above_it() -> None:
    for seconds in (0.0005, 0.004, 0.004, 99999):
        metrics.observe("mcp_store_seconds", seconds, operation="add")
    found = {float(bound): number for (bound,), number in series("mcp_store_seconds_bucket", "le").items()}
    assert (found[0.0005], found[0.0025], found[0.005], found[10.0], found[math.inf]) == (1, 1, 3, 3, 4)
    assert sample("mcp_store_seconds_count", operation="add") == 4
    assert sample("mcp_store_seconds_sum", operation="add") == pytest.approx(99999.0085)


def test_the_page_has_the_metrics_of_the_process() -> None:
    missing = set(PROCESS_METRICS) - {name for name, _ in samples()}
    assert missing == set()


def test_the_page_has_no_series_of_creation_times() -> None:
    assert [name for name, _ in samples() if name.endswith("_created")] == []


def test_counters_that_alerts_read_start_at_zero() -> None:
    metrics.prepare(["nmap"])
    refusals = {code: number for (code,), number in series("mcp_refusals_total", "code").items()}
    assert refusals == dict.fromkeys(ERRORS.keys() - NO_REFUSALS, 0)
    assert {"target_out_of_scope", "too_many_requests", "rate_limited", "audit_unavailable"} <= refusals.keys()
    assert ERRORS.keys() > NO_REFUSALS, "NO_REFUSALS names a code that does not exist"
    for code in AUDIT_CODES:
        assert sample("mcp_audit_failures_total", code=code) == 0, code
        assert f"`{code}`" in next(line for line in PAGE.splitlines() if "`mcp_audit_failures_total`" in line)
    assert sample("mcp_guard_failures_total") == 0
    assert sample("mcp_config_reloads_total", result="kept") == 0
    assert sample("mcp_tool_errors_total", tool="nmap", error_type="timeout") == 0
    assert sample("circuit_breaker_transitions_total", name="nmap", from_state="closed", to_state="open") == 0
    assert sample("mcp_audit_append_seconds_count") == 0


def test_a_gauge_that_was_never_set_is_not_on_the_page() -> None:
    assert sample("mcp_health_status") is None, "a gauge of 0 would mean that the server is healthy"


@settings(deadline=None, max_examples=50)
@given(name=ANY_TEXT, other=ANY_TEXT, number=st.floats(min_value=0, allow_nan=False, allow_infinity=False))
def test_no_label_value_and_no_number_makes_the_page_unreadable(name: str, other: str, number: float) -> None:
    with counting():
        metrics.count("mcp_http_requests_total", number, method=name, route=other, status="200")
        metrics.observe("mcp_http_request_seconds", number, route=other)
        metrics.gauge("mcp_health_check_status", number, check=name)
        for found in (
            series("mcp_http_requests_total", "method", "route"),
            series("mcp_http_request_seconds_sum", "route"),
            series("mcp_health_check_status", "check"),
        ):
            assert list(found.values()) == [number]
        lines = metrics.exposition().decode().split("\n")
        assert all(line.isprintable() for line in lines), "the page has characters that act on a terminal"


@settings(deadline=None)
@given(st.floats())
def test_a_gauge_takes_every_number(number: float) -> None:
    metrics.gauge("mcp_event_loop_lag_seconds", number)
    shown = sample("mcp_event_loop_lag_seconds")
    assert shown == number or (shown is not None and math.isnan(shown) and math.isnan(number))


def test_threads_lose_no_count() -> None:
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
    assert sample("mcp_tool_execution_total", **CALL) == each * threads
    assert sample("mcp_step_seconds_count", step="plan") == each * threads
    assert sample("mcp_step_seconds_sum", step="plan") == each * threads / 4


def test_label_values_beyond_the_limit_are_counted_as_other() -> None:
    for number in range(VALUES_LIMIT + 50):
        metrics.count("mcp_guard_drops_total", rule=f"rule-{number}")
    metrics.count("mcp_guard_drops_total", rule="rule-7")
    assert len(series("mcp_guard_drops_total", "rule")) == VALUES_LIMIT + 1
    assert sample("mcp_guard_drops_total", rule="other") == 50
    assert sample("mcp_guard_drops_total", rule="rule-7") == 2, "a known value keeps its own series"


def test_series_beyond_the_limit_are_counted_as_other() -> None:
    for number in range(SERIES_LIMIT + 500):
        labels = {"method": f"m{number % 150}", "route": f"r{number // 150}", "status": "200"}
        metrics.count("mcp_http_requests_total", **labels)
    found = series("mcp_http_requests_total", "method", "route", "status")
    assert len(found) == SERIES_LIMIT + 1
    assert sum(found.values()) == SERIES_LIMIT + 500
    assert found["other", "other", "other"] == 500


def test_only_metrics_and_labels_of_the_table_can_be_used() -> None:
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
    with pytest.raises(ValueError, match="not a gauge"):
        metrics.gauge_function("mcp_refusals_total", lambda: 1)


def test_the_function_of_a_gauge_is_called_for_every_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_functions", {})
    waiting = {"nmap": 1.0, "dig": 2.0}
    metrics.gauge_function("mcp_queue_depth", lambda: waiting)
    metrics.gauge_function("mcp_health_status", lambda: 0)
    metrics.gauge_function("mcp_health_status", lambda: 1)
    assert series("mcp_queue_depth", "tool") == {("nmap",): 1, ("dig",): 2}
    assert sample("mcp_health_status") == 1, "a later function replaces the earlier one"
    waiting["dig"] = 5
    assert sample("mcp_queue_depth", tool="dig") == 5


def test_nothing_is_counted_while_metrics_are_off() -> None:
    metrics.count("mcp_refusals_total", code="rate_limited")
    metrics.configure(enabled=False)
    assert not metrics.enabled()
    metrics.count("mcp_refusals_total", code="timeout")
    metrics.observe("mcp_step_seconds", 1, step="plan")
    metrics.gauge("mcp_health_status", 1)
    metrics.prepare(["nmap"])
    assert metrics.exposition() == b""
    metrics.configure(enabled=True)
    assert sample("mcp_refusals_total", code="rate_limited") == 0, "counters start again at 0, as after a restart"
    assert sample("mcp_health_status") is None
    assert sample("mcp_output_bytes_total", tool="nmap") is None


def test_switching_on_twice_keeps_the_values() -> None:
    metrics.count("mcp_refusals_total", code="timeout")
    metrics.configure(enabled=True)
    assert sample("mcp_refusals_total", code="timeout") == 1


def test_prometheus_client_is_not_imported_while_metrics_are_off() -> None:
    script = (
        "import sys; from mcp_server import metrics\n"
        "metrics.prepare(['nmap']); metrics.count('mcp_refusals_total', code='timeout')\n"
        "sys.exit(any(name.startswith('prometheus_client') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.fixture
def gauges(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """Every value that a gauge is set to, by name. Reading the page would take longer than a tick of the sampler."""
    found: dict[str, list[float]] = defaultdict(list)
    monkeypatch.setattr(metrics, "gauge", lambda name, value: found[name].append(value))
    return found


async def test_the_sampler_measures_the_lag_of_the_event_loop_and_the_disk(
    tmp_path: Path, gauges: dict[str, list[float]]
) -> None:
    settings = MetricsConfig.model_construct(enabled=True, collection_interval=0)
    sampler = Sampler(lambda: settings, tmp_path, tick_sec=0.01)
    sampler.start()
    sampler.start()
    await asyncio.sleep(0.05)
    time.sleep(0.5)  # blocks the event loop, which the sampler must notice
    async with asyncio.timeout(5):
        while max(gauges["mcp_event_loop_lag_seconds"], default=0) < 0.4:
            await asyncio.sleep(0.01)
    await sampler.stop()
    await sampler.stop()
    assert gauges["mcp_state_disk_size_bytes"][-1] >= gauges["mcp_state_disk_free_bytes"][-1] > 0


async def test_the_sampler_logs_that_it_cannot_read_the_disk(
    tmp_path: Path, gauges: dict[str, list[float]], caplog: pytest.LogCaptureFixture
) -> None:
    sampler = Sampler(MetricsConfig, tmp_path / "gone", tick_sec=0.01)
    sampler.start()
    async with asyncio.timeout(5):
        while "metrics.disk_not_read" not in caplog.text:
            await asyncio.sleep(0.01)
    await sampler.stop()
    assert not gauges["mcp_state_disk_free_bytes"]


async def test_the_sampler_uses_the_interval_of_a_reload(tmp_path: Path, gauges: dict[str, list[float]]) -> None:
    # Replaced below, as a reload does; an interval of 0 ends at every tick.
    settings = MetricsConfig.model_construct(enabled=True, collection_interval=300)
    sampler = Sampler(lambda: settings, tmp_path, tick_sec=0.01)
    sampler.start()
    await asyncio.sleep(0.05)
    assert not gauges["mcp_event_loop_lag_seconds"]
    settings = MetricsConfig.model_construct(enabled=True, collection_interval=0)
    async with asyncio.timeout(5):
        while not gauges["mcp_event_loop_lag_seconds"]:
            await asyncio.sleep(0.01)
    await sampler.stop()


def test_every_metric_is_written_somewhere() -> None:
    source = Path(metrics.__file__).resolve().parents[1]
    texts = [path.read_text() for path in source.rglob("*.py") if path.name != "table.py"]
    unused = [name for name in METRICS if not any(f'"{name}"' in text for text in texts)]
    assert unused == []
