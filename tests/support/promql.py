"""Parses the shipped rules and queries: the metrics and labels that they read, and which of them exist."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import yaml

from mcp_server.metrics import METRICS, PROCESS_METRICS
from tests.support.prometheus import FOLDER

RULES: Final[list[dict[str, Any]]] = [
    rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
"""Every rule of the shipped file: recording rules and alerts."""
SCRAPED: Final = {"job", "instance"}
"""Labels that Prometheus adds to every series."""
# Keywords of PromQL. A name before a bracket is a function.
_WORDS: Final = frozenset(
    {"and", "or", "unless", "by", "on", "without", "ignoring", "group_left", "group_right", "offset"}
)


@dataclass(frozen=True, slots=True)
class Selector:
    """One metric in an expression, with its label matchers: ``(label, operator, value)``."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]


def selectors(expression: str) -> list[Selector]:
    """Return the metrics that an expression reads."""
    bare = re.sub(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", " ", expression)
    texts = re.findall(r'"(?:[^"\\]|\\.)*"', bare)
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', bare)
    bare = re.sub(r"\[[^\]]*\]", "", bare)
    found = []
    values = iter(texts)
    for name, inside in re.findall(r"(?<![\w:])([a-zA-Z_:][\w:]*)(?!\s*\()(?![\w:])(\{[^}]*\})?", bare):
        if name in _WORDS:
            continue
        matchers = [(label, sign, next(values)[1:-1]) for label, sign in re.findall(r'(\w+)\s*(=~|!~|!=|=)""', inside)]
        found.append(Selector(name, tuple(matchers)))
    return found


def groupings(expression: str) -> set[str]:
    """Return the labels that an expression groups or joins by."""
    lists = re.findall(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)", expression)
    return {label.strip() for each in lists for label in each.split(",") if label.strip()}


RECORDED: Final = {rule["record"]: groupings(rule["expr"]) for rule in RULES if "record" in rule}
"""Maps each recording rule to its labels."""


def labels_of(metric: str) -> set[str]:
    """Return the labels of a metric in Prometheus."""
    if metric in RECORDED:
        return RECORDED[metric]
    if metric in PROCESS_METRICS or metric == "up":
        return SCRAPED
    if metric in METRICS:
        assert METRICS[metric].kind != "histogram", f"read {metric} by its _bucket, _sum or _count"
        return {*METRICS[metric].labels} | SCRAPED
    base, _, part = metric.rpartition("_")
    assert part in {"bucket", "sum", "count"}, f"there is no metric {metric}"
    assert METRICS[base].kind == "histogram", f"{metric}: {base} is a {METRICS[base].kind}, not a histogram"
    return {*METRICS[base].labels} | SCRAPED | ({"le"} if part == "bucket" else set())
