"""The shipped Grafana dashboard: its queries as Grafana sends them, and a check of their results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from tests.support.prometheus import Prometheus

DASHBOARD: Final[dict[str, Any]] = json.loads(
    (Path(__file__).resolve().parents[2] / "deploy/grafana/dashboard.json").read_text()
)
PANELS: Final[list[dict[str, Any]]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS: Final = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]
VARIABLES: Final = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
GUARD_ONLY: Final = [target for _, target in TARGETS if "mcp_guard_drops_total" in target["expr"]]
"""Queries that return a result only for a server inside a guard."""


def substituted(expression: str, interval: str = "1m") -> str:
    """Return a query as Grafana sends it if every variable is set to All."""
    for name, variable in VARIABLES.items():
        expression = expression.replace(f"${name}", variable.get("allValue", name))
    expression = expression.replace("$__rate_interval", interval)
    assert "$" not in expression, f"a variable without a value in {expression}"
    return expression


def check_query(found: Prometheus, target: dict[str, Any]) -> None:
    """Run the query of a panel. It must return at least one series, with every label of the legend."""
    expression = substituted(target["expr"])
    series = found.until_some(expression)
    assert series, f"the query {expression} returns no series"
    for each in series:
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= each["metric"].keys(), expression
