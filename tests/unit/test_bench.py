"""The verdicts of the benchmarks, and the page on performance, which must list every benchmark."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from bench import (
    audit,
    big_result,
    call_overhead,
    cold_start,
    flat_parse,
    guard,
    memory,
    one_scan,
    policy,
    result_cost,
    spawn,
    tools_list,
)
from bench.__main__ import NAMES
from bench.load import clients, health, mcp_rate
from bench.load.clients import LoadResult, Responses, p99
from bench.load.soak import INTENDED, LEAST_SAMPLES, Sample, grown, unintended, verdict
from bench.memory import ResourceUse
from bench.result import Result

PAGE = Path(__file__).resolve().parents[2] / "docs/performance.md"
FLAT = [Sample(resident_mb=100.0, files=20.0, threads=8.0, tasks=20.0, children=0.0)] * 60
GOOD = dict.fromkeys(INTENDED, 3)
BOUNDS = {
    "cold_start": [f"ratio ≤ {cold_start.RATIO:g}"],
    "tools_list": [f"≤ {tools_list.TOKENS:,} tokens"],
    "call_overhead": [f"ratio ≤ {call_overhead.RATIO:g}"],
    "one_scan": [f"ratio ≤ {one_scan.RATIO:g}, ≤ {one_scan.CHARACTERS} characters"],
    "big_result": [f"ratio ≤ {big_result.RATIO:g}, ≤ {big_result.TOKENS:,} tokens"],
    "memory": [f"ratio ≤ {memory.GROWTH:g}, equal"],
    "flat_parse": [f"< {flat_parse.ABOVE_IDLE_MB:g} MB"],
    "result_cost": [f"ratio ≤ {result_cost.RATIO:g}, none lost", f"≤ {result_cost.TOKENS:,} tokens, none wrong"],
    "spawn": [f"ratio ≤ {spawn.RATIO:g}"],
    "guard": [f"ratio ≤ {guard.START_RATIO:g}, ratio ≤ {guard.SCAN_RATIO:g}"],
    "audit": [f"ratio ≤ {audit.APPEND_RATIO:g}", f"ratio ≤ {audit.VERIFY_RATIO:g}"],
    "policy": [f"ratio ≤ {policy.LOAD_RATIO:g}", f"ratio ≤ {policy.CHECK_RATIO:g}"],
    "load": [
        "only the intended responses, none lost",
        f"ratio ≤ {clients.SLOWER:g}",
        f"ratio ≤ {clients.GROWTH:g}",
        f"ratio ≥ {mcp_rate.SHARE:g}",
        f"ratio ≤ {health.RATIO:g}, all {health.SCANS} still running at the end",
    ],
}
"""The bounds of each benchmark, as the page has to state them."""


def rows_under(head: str) -> list[str]:
    """Return the rows of the table whose first row begins with ``head``, as Markdown sees them."""
    table = PAGE.read_text().partition(f"\n{head}")[2].partition("\n\n")[0]
    return table.splitlines()[2:]


def test_the_page_on_performance_states_the_bounds_of_every_benchmark() -> None:
    stated: dict[str, list[str]] = {}
    last = ""
    for row in rows_under("| benchmark |"):
        name, *_, bound = (cell.strip().strip("`") for cell in row.strip("|").split("|"))
        last = name or last
        stated.setdefault(last, []).append(bound)
    assert sorted(stated) == sorted(NAMES), "the page and bench.__main__ list other benchmarks"
    assert stated == BOUNDS


def test_no_bound_is_an_absolute_time() -> None:
    absolute = [bound for bounds in BOUNDS.values() for bound in bounds if re.search(r"\d (s|ms|µs)\b", bound)]
    assert not absolute, "a bound on time must be a ratio to a floor of the same run"


@pytest.mark.parametrize(("measured", "within"), [([4.0, 100.0, 6.0], True), ([4.1, 100.0, 6.2], False)])
def test_a_ratio_is_the_median_of_the_rounds(measured: list[float], within: bool) -> None:
    result = Result.of_ratio("start", measured, [2.0, 10.0, 3.0], "ms", at_most=2.0)
    assert result.within is within, f"a ratio of {result.ratio} and a bound of 2"


def test_equal_samples_have_not_grown() -> None:
    assert grown(FLAT) == {}


@pytest.mark.parametrize(
    ("name", "early", "allowed", "too_much"),
    [
        ("resident_mb", 100.0, 105.0, 105.1),
        ("files", 20.0, 23.0, 24.0),
        ("threads", 8.0, 10.0, 11.0),
        ("children", 0.0, 1.0, 2.0),
    ],
)
def test_a_value_has_grown_if_it_is_above_its_slack(name: str, early: float, allowed: float, too_much: float) -> None:
    def ending_with(value: float) -> list[Sample]:
        return [*FLAT[:30], *[changed(FLAT[0], name, value)] * 30]

    assert grown(ending_with(allowed)) == {}
    assert grown(ending_with(too_much)) == {name: (early, too_much)}


def test_a_slow_leak_is_seen_and_a_peak_is_not() -> None:
    leak = [changed(FLAT[0], "resident_mb", 100 + 0.2 * turn) for turn in range(60)]
    peak = [changed(FLAT[0], "files", 300.0) if turn in {30, 58} else FLAT[0] for turn in range(60)]
    assert list(grown(leak)) == ["resident_mb"]
    assert grown(peak) == {}


def test_growth_in_the_first_fifth_is_ignored() -> None:
    filling = [changed(FLAT[0], "resident_mb", 50.0 + 50 * min(turn / 12, 1)) for turn in range(60)]
    assert grown(filling) == {}


def test_the_verdict_of_a_soak_has_a_status_and_its_reasons() -> None:
    leak = [changed(FLAT[0], "files", float(turn)) for turn in range(60)]
    assert verdict(FLAT, GOOD) == (0, ["flat"])
    assert verdict(FLAT[: LEAST_SAMPLES - 1], GOOD) == (2, ["too short for a comparison"])
    assert verdict(leak, GOOD) == (1, ["GROWN: files from 17.5 to 53.5", "not flat"])


@pytest.mark.parametrize("what", ["/health 503", "/runs lost", "scan 429", "scan late", "refused 200", "events 401"])
def test_a_soak_names_unintended_responses(what: str) -> None:
    responses = GOOD | {what: 2}
    assert unintended(responses) == {what: 2}
    assert verdict(FLAT, responses) == (1, [f"NOT INTENDED: {what} x2", "flat"])
    assert verdict(FLAT[:2], responses)[0] == 1


def test_a_load_result_names_unintended_responses() -> None:
    used = ResourceUse(1, 1, 0)
    responses = {
        "read": Responses(statuses=Counter({200: 5, 500: 1})),
        "scan": Responses(statuses=Counter({200: 1, 429: 1})),
        "health": Responses(lost=2),
    }
    result = LoadResult(responses, used, used)
    assert result.wrong() == {"read": {500: 1}}
    assert result.lost == 2
    assert result.unanswered() == ["health"]


def test_p99_is_exceeded_by_one_value_in_a_hundred() -> None:
    assert p99([float(each) for each in range(1, 101)]) == 99.0
    assert p99([float(each) for each in range(1, 201)]) == 198.0
    assert p99([7.0]) == 7.0


def changed(sample: Sample, name: str, value: float) -> Sample:
    values = {each: getattr(sample, each) for each in Sample.__slots__} | {name: value}
    return Sample(**values)
