"""The shipped alerts read existing metrics and labels, are documented, and each has a test in which it fires."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from mcp_server.errors import ERRORS, ToolErrorType
from mcp_server.metrics import METRICS
from mcp_server.model.run import Outcome
from tests.support.prometheus import FOLDER, faster, promtool, stage
from tests.support.promql import RULES, groupings, labels_of, selectors

ROOT: Final = Path(__file__).resolve().parents[2]
ALERTS: Final = {rule["alert"]: rule for rule in RULES if "alert" in rule}
TESTS: Final[list[dict[str, Any]]] = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
VALUES: Final = {
    "code": set(ERRORS),
    "error_type": {*map(str, ToolErrorType), "none"},
    "result": {"applied", "kept", "success", "failure", "refused"},
    "enforcement": {"argument", "rootless", "kernel"},
    "job": {"mcp-network-tools"},
    "to_state": {"closed", "half_open", "open"},
}
OUTCOMES: Final = set(map(str, Outcome))
SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_every_metric_and_label_that_a_rule_reads_exists(rule: dict[str, Any]) -> None:
    read = selectors(rule["expr"])
    assert read
    grouped = groupings(rule["expr"])
    for selector in read:
        labels = labels_of(selector.metric)
        assert grouped <= labels, selector
        for label, sign, value in selector.matchers:
            assert label in labels, selector
            known = OUTCOMES if (label, "http" in selector.metric) == ("status", False) else VALUES.get(label)
            if known is not None:
                assert set(value.split("|")) <= known, selector
            else:
                assert (label, sign) == ("status", "="), f"add the values of the label {label} to VALUES"
                assert re.fullmatch(r"\d{3}", value)
    shown = set(re.findall(r"\$labels\.(\w+)", rule.get("annotations", {}).get("summary", "")))
    # The labels that an aggregation keeps, or all labels of the metric.
    assert shown <= (grouped or labels_of(read[0].metric))


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_is_documented(name: str) -> None:
    page = (ROOT / "docs/alerts.md").read_text()
    section = re.search(rf"(?ms)^## {name}\n(.*?)(?=^## |\Z)", page)
    assert section, f"docs/alerts.md has no section {name}"
    assert re.findall(r"(?m)^(\w+):", section[1])[:3] == ["Meaning", "Look", "Do"]
    assert ALERTS[name]["annotations"]["runbook"] == f"docs/alerts.md#{name.lower()}"
    assert ALERTS[name]["labels"] == {"severity": ALERTS[name]["labels"]["severity"]}
    assert ALERTS[name]["labels"]["severity"] in {"critical", "warning"}


def test_no_other_alert_is_documented() -> None:
    sections = re.findall(r"(?m)^## (Mcp\w+)$", (ROOT / "docs/alerts.md").read_text())
    assert sections == list(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_test_in_which_it_fires_alone_and_clears(name: str) -> None:
    (test,) = (each for each in TESTS if each["name"] == name)
    fires, clears = test["alert_rule_test"]
    assert fires["alertname"] == clears["alertname"] == name
    assert len(fires["exp_alerts"]) == 1
    assert "exp_alerts" not in clears
    assert seconds(clears["eval_time"]) > seconds(fires["eval_time"])
    alone, silence = test["promql_expr_test"]
    assert alone["expr"] == 'count by (alertname) (ALERTS{alertstate="firing"})'
    assert alone["exp_samples"] == [{"labels": f'{{alertname="{name}"}}', "value": 1}]
    assert alone["eval_time"] == fires["eval_time"]
    assert silence == {"expr": 'count(ALERTS{alertstate="firing"})', "eval_time": clears["eval_time"]}


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_also_fires_in_a_real_prometheus(name: str) -> None:
    live = [path.read_text() for path in Path(__file__).parent.glob("test_alerts_*.py")]
    assert any(f'"{name}"' in text for text in live), f"no test with a real Prometheus names {name}"


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test["name"])
def test_the_series_of_the_alert_tests_exist_on_a_server(test: dict[str, Any]) -> None:
    for series in test["input_series"]:
        (selector,) = selectors(series["series"])
        given = {label: value for label, _, value in selector.matchers}
        assert set(given) == labels_of(selector.metric)
        if "le" in given:
            buckets = METRICS[selector.metric.removesuffix("_bucket")].buckets
            assert given["le"] in {*map(str, buckets), "+Inf"}
        if "status" in given and "http" not in selector.metric:
            assert given["status"] in OUTCOMES


def test_promtool_accepts_the_rules_and_the_alert_tests_pass() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "rules", FOLDER / "alerts.yml")
    promtool("test", "rules", FOLDER / "alerts_test.yml")


def test_promtool_accepts_the_scrape_configuration(tmp_path: Path) -> None:
    output = promtool("check", "config", stage(tmp_path / "prometheus", "127.0.0.1:8080", "token"))
    assert "1 rule files found" in output
    shipped = (FOLDER / "prometheus.yml").read_text()
    promtool("check", "config", "--syntax-only", FOLDER / "prometheus.yml")
    assert yaml.safe_load(shipped)["scrape_configs"][0]["job_name"] == "mcp-network-tools"


def test_the_faster_clock_changes_only_durations(tmp_path: Path) -> None:
    text = (FOLDER / "alerts.yml").read_text()
    quick = faster(text, 8)
    assert (quick.count("for: 1s"), quick.count("[8s]"), quick.count("offset 8s")) == (
        len([rule for rule in RULES if "for" in rule]), text.count("]"), text.count("offset ")
    )  # fmt: skip
    any_duration = r"\b\d+[smhd]\b"
    assert re.sub(any_duration, "D", quick) == re.sub(any_duration, "D", text)
    (tmp_path / "quick.yml").write_text(quick)
    promtool("check", "rules", tmp_path / "quick.yml")


def seconds(duration: str) -> int:
    return int(duration[:-1]) * SECONDS[duration[-1]]
