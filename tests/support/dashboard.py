"""The shipped Grafana dashboard: its queries, as Grafana sends them, and what each must find."""

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
"""What only a server inside a guard can show."""


def substituted(expression: str, interval: str = "1m") -> str:
    """A query as Grafana sends it with every variable at All."""
    for name, variable in VARIABLES.items():
        expression = expression.replace(f"${name}", variable.get("allValue", name))
    expression = expression.replace("$__rate_interval", interval)
    assert "$" not in expression
    return expression


def check_query(found: Prometheus, target: dict[str, Any]) -> None:
    """Run a panel's query: no error, at least one series, and every label of the legend there."""
    expression = substituted(target["expr"])
    series = found.until_some(expression)
    assert series, f"nothing is found by {expression}"
    for each in series:
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= each["metric"].keys(), expression
