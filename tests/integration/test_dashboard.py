"""The shipped Grafana dashboard: every query runs on the metrics of a real server and returns a result."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, Final

import pytest

from mcp_server.metrics import METRICS
from tests.support.dashboard import DASHBOARD, GUARD_ONLY, PANELS, TARGETS, VARIABLES, check_query, substituted
from tests.support.promql import groupings, labels_of, selectors
from tests.support.watched import Watched, watched_server

NAMED: Final = {f"{title} {target['refId']}": target for title, target in TARGETS}
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize("name", NAMED)
def test_every_metric_and_label_that_a_panel_reads_exists(name: str) -> None:
    expression = substituted(NAMED[name]["expr"])
    read = [each for each in selectors(expression) if each.metric not in {"time", "ALERTS"}]
    assert bool(read) == ("ALERTS" not in expression)
    for selector in read:
        assert {label for label, _, _ in selector.matchers} | groupings(expression) <= labels_of(selector.metric)


def test_grafana_can_import_the_dashboard() -> None:
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(identifiers) == len(set(identifiers))
    assert DASHBOARD["id"] is None, "the import must create the id"
    assert DASHBOARD["uid"] == "mcp-network-tools"
    assert VARIABLES["datasource"]["type"] == "datasource"
    assert all(panel["datasource"] == SOURCE for panel in PANELS)
    assert all(target["datasource"] == SOURCE for _, target in TARGETS)
    assert all(panel["description"] for panel in PANELS)
    used = set(re.findall(r"\$(\w+)", json.dumps(DASHBOARD["panels"]))) - {"__rate_interval"}
    assert used | {"datasource"} == set(VARIABLES)
    for one, other in itertools.combinations(DASHBOARD["panels"], 2):
        assert not overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])
        assert one["gridPos"]["x"] + one["gridPos"]["w"] <= 24


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {selector.metric for _, target in TARGETS for selector in selectors(substituted(target["expr"]))}
    missing = {name for name in METRICS if not shown & {name, *(f"{name}_{part}" for part in ("bucket", "count"))}}
    assert not missing


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Yield a server after every kind of event that the dashboard shows."""
    with watched_server(tmp_path_factory.mktemp("dashboard")) as made:
        assert made.call("polite").status_code == 200
        assert made.call("polite", target="8.8.8.8").status_code == 400
        assert made.get("/runs", token="wrong").status_code == 401
        assert [made.call("flaky", "flaky").status_code for _ in range(6)] == [502] * 5 + [503]
        assert made.call("slow", "sleep", timeout_sec=1).status_code == 504
        assert made.prometheus.until_some("mcp_event_loop_lag_seconds and mcp_health_status", 20)
        yield made


@pytest.mark.parametrize(
    "target", [pytest.param(each, id=name) for name, each in NAMED.items() if each not in GUARD_ONLY]
)
def test_every_query_returns_a_result_on_a_running_server(watched: Watched, target: dict[str, Any]) -> None:
    check_query(watched.prometheus, target)


@pytest.mark.parametrize("name", ["instance", "tool"])
def test_the_variables_return_their_values(watched: Watched, name: str) -> None:
    asked = re.fullmatch(r"label_values\((.+), (\w+)\)", VARIABLES[name]["definition"])
    assert asked
    values = {each["metric"][asked[2]] for each in watched.prometheus.query(asked[1])}
    assert values >= ({f"127.0.0.1:{watched.port}"} if name == "instance" else {"polite", "flaky", "slow", "nmap"})


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(one[at] < other[at] + other[size] and other[at] < one[at] + one[size] for at, size in ("xw", "yh"))
