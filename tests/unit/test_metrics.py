"""Every figure has a line in the documentation, and what is counted is shown."""

from pathlib import Path

from mcp_server import metrics

PAGE = (Path(__file__).resolve().parents[2] / "docs/metrics.md").read_text()


def test_every_metric_has_a_line() -> None:
    for name, (_, labels) in metrics.COUNTERS.items():
        (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}_total` ")]
        assert all(f"`{label}`" in line for label in labels)


def test_what_is_counted_is_shown() -> None:
    metrics.count("mcp_guard_drops", 3, rule="test-rule")
    metrics.count("mcp_guard_drops", rule="test-rule")
    assert b'mcp_guard_drops_total{rule="test-rule"} 4.0' in metrics.exposition()
