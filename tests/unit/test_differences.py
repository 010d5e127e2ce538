"""The page of differences from the specification: every key, range, default, limit and name that differs has a line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from mcp_server import metrics
from mcp_server.config import load_config
from mcp_server.config.base import bounds
from mcp_server.config.keys import Key, keys
from mcp_server.errors import ToolErrorType
from mcp_server.health import HealthCheckPriority, HealthStatus
from mcp_server.scope.reading import MAX_CHARS
from mcp_server.tools.base import CORRELATION_ID_MAX_CHARS
from mcp_server.tools.nmap import ports, scripts
from mcp_server.tools.nmap_tool import MAX_ADDRESSES, NmapTool

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs/differences.md").read_text()
MIB: Final = 1024 * 1024


class Specified(NamedTuple):
    """A key of the specification. A default of ``...`` is not specified."""

    default: Any = ...
    low: float | None = None
    high: float | None = None


KEYS: Final = {
    "server.host": Specified(),
    "server.port": Specified(8080, 1, 65535),
    "server.transport": Specified("stdio"),
    "server.workers": Specified(1, 1, 16),
    "server.max_connections": Specified(100, 1, 10000),
    "server.shutdown_grace_period": Specified(30, 0, 300),
    "security.allowed_targets": Specified(("RFC1918", ".lab.internal")),
    "security.max_args_length": Specified(2048, 1, 10240),
    "security.max_output_size": Specified(1048576, 1024, 10485760),
    "security.timeout_seconds": Specified(300, 1, 3600),
    "security.concurrency_limit": Specified(2, 1, 100),
    "security.allow_intrusive": Specified(default=False),
    "circuit_breaker.failure_threshold": Specified(5, 1, 100),
    "circuit_breaker.recovery_timeout": Specified(60, 1, 600),
    "circuit_breaker.half_open_success_threshold": Specified(1, 1, 10),
    "health.check_interval": Specified(30, 5, 300),
    "health.cpu_threshold": Specified(80, 0, 100),
    "health.memory_threshold": Specified(80, 0, 100),
    "health.disk_threshold": Specified(80, 0, 100),
    "health.timeout": Specified(10, 1, 60),
    "health.dependencies": Specified(()),
    "metrics.enabled": Specified(default=True),
    "metrics.prometheus_enabled": Specified(default=True),
    "metrics.prometheus_port": Specified(9090),
    "metrics.collection_interval": Specified(15, 5, 300),
    "logging.level": Specified("INFO"),
    "logging.format": Specified(),
    "logging.file_path": Specified(),
    "logging.max_file_size": Specified(10 * MIB, 1024, 100 * MIB),
    "logging.backup_count": Specified(5, 0, 100),
    "tool.include_patterns": Specified(("*",)),
    "tool.exclude_patterns": Specified(()),
    "tool.default_timeout": Specified(300, 1, 3600),
    "tool.default_concurrency": Specified(2, 1, 100),
    "database.url": Specified(),
    "database.pool_size": Specified(10, 1, 100),
    "database.max_overflow": Specified(20, 0, 100),
    "database.pool_timeout": Specified(30, 1, 300),
    "database.pool_recycle": Specified(3600, 60, 7200),
}
VARIABLES: Final = {
    "MCP_MAX_ARGS_LEN": 2048,
    "MCP_MAX_STDOUT_BYTES": MIB,
    "MCP_MAX_STDERR_BYTES": 256 * 1024,
    "MCP_DEFAULT_TIMEOUT_SEC": 300,
    "MCP_DEFAULT_CONCURRENCY": 2,
    "MCP_MAX_MEMORY_MB": 512,
    "MCP_MAX_FILE_DESCRIPTORS": 256,
    "TOOLS_PACKAGE": ...,
    "TOOL_INCLUDE": ...,
    "TOOL_EXCLUDE": ...,
    "LOG_LEVEL": ...,
    "LOG_FORMAT": ...,
}
METRICS: Final = {
    "mcp_tool_execution_total": ("tool", "status", "error_type"),
    "mcp_tool_execution_seconds": ("tool",),
    "mcp_tool_active": ("tool",),
    "mcp_tool_errors_total": ("tool", "error_type"),
    "circuit_breaker_state": ("name",),
    "circuit_breaker_calls_total": ("name", "result"),
    "circuit_breaker_transitions_total": ("name", "from_state", "to_state"),
}
TOOLS: Final = ("nmap", "masscan", "gobuster", "dig")


def has_line(name: str) -> bool:
    """Whether a row of a table on the page names ``name``, or all keys of its section."""
    names = {name, f"{name.partition('.')[0]}.*"}
    return any(
        set(re.findall(r"[\w.*]+", row.split("|")[1])) & names for row in PAGE.splitlines() if row.startswith("|")
    )


def by_name() -> dict[str, Key]:
    return {key.dotted: key for key in keys().values()}


@pytest.mark.parametrize("name", KEYS)
def test_a_key_is_as_specified_or_has_a_line(name: str) -> None:
    key, specified = by_name().get(name), KEYS[name]
    if key is None:
        assert has_line(name), f"{name} does not exist here, and the page does not say so"
        return
    default = key.field.get_default(call_default_factory=True)
    differences = [] if specified.default in {..., default} else [f"default {default!r}, not {specified.default!r}"]
    if specified.low is not None and bounds(key.field) != (specified.low, specified.high):
        differences.append(f"range {bounds(key.field)}, not {(specified.low, specified.high)}")
    assert not differences or has_line(name), f"{name} has no line on the page: {differences}"


@pytest.mark.parametrize("name", sorted(set(by_name()) - set(KEYS)))
def test_a_key_that_is_not_specified_has_a_line(name: str) -> None:
    assert has_line(name), f"{name} is not in the specification, and the page does not say so"


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_sets_a_key_with_the_specified_default(name: str) -> None:
    (key,) = [key for key in keys().values() if name in key.env]
    assert VARIABLES[name] in {..., key.field.default} or has_line(name)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_has_the_specified_labels(name: str) -> None:
    assert metrics.METRICS[name].labels == METRICS[name] or has_line(name)


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_is_offered_or_has_a_line(name: str) -> None:
    assert name == NmapTool.tool_name() or has_line(name)


@pytest.mark.parametrize(
    ("name", "specified", "found"),
    [
        ("longest target", 255, MAX_CHARS),
        ("longest extra_args", 2048, load_config(env={}).effective.max_args_length),
        ("longest correlation_id", 64, CORRELATION_ID_MAX_CHARS),
        ("addresses of nmap", 1024, MAX_ADDRESSES),
        ("port ranges of nmap", 100, ports.MAX_RANGES),
        ("scripts of nmap", 21, len(scripts.SAFE)),
        ("seconds of nmap", 600, NmapTool.default_timeout_sec),
        ("concurrency of nmap", 1, NmapTool.concurrency),
        (
            "error types",
            "timeout not_found validation_error execution_error resource_exhausted circuit_breaker_open unknown",
            " ".join(ToolErrorType),
        ),
        ("health states", "healthy degraded unhealthy", " ".join(HealthStatus)),
        (
            "priorities",
            "CRITICAL=0 IMPORTANT=1 INFORMATIONAL=2",
            " ".join(f"{each.name}={each}" for each in HealthCheckPriority),
        ),
    ],
)
def test_a_limit_is_as_specified_or_has_a_line(name: str, specified: object, found: object) -> None:
    assert found == specified or has_line(name), f"{name}: {found!r}, not {specified!r}"


def test_every_difference_has_a_reason() -> None:
    rows = [row.strip("|").split("|") for row in PAGE.splitlines() if row.startswith("| ")]
    empty = [row[0].strip() for row in rows if any(not cell.strip() for cell in row)]
    assert not empty, f"rows with an empty cell: {empty}"
