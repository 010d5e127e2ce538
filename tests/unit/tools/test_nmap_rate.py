"""The operator's limit on packets a second: it applies to every scan, and no parameter of a call raises it."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_server.base_tool import ToolPolicy
from mcp_server.errors import ArgumentError
from mcp_server.tools.nmap_tool import NmapTool
from tests.unit.tools.test_nmap_tool import build_command_of


def bounded(limit: float | None, **parameters: Any) -> tuple[str, ...]:
    policy = ToolPolicy(raw_sockets=True, allow_intrusive=True)
    return build_command_of(policy, ("10.0.0.0/24",), parameters, max_rate=limit).args


def value(args: tuple[str, ...], flag: str) -> str | None:
    return args[args.index(flag) + 1] if flag in args else None


@pytest.mark.parametrize(
    ("limit", "extra_args", "expected"),
    [
        (None, "", None),
        (None, "--max-rate 10000", "10000"),
        (200.0, "", "200"),
        (0.5, "", "0.5"),
        (33.3333, "", "33.333"),
        (200.0, "--max-rate 100", "100"),
        (200.0, "--max-rate 200", "200"),
        (200.0, "--max-rate 201", "200"),
        (200.0, "--max-rate 10000 --min-rate 200", "200"),
        (1e-9, "", "0.001"),
    ],
)
def test_the_lower_rate_applies(limit: float | None, extra_args: str, expected: str | None) -> None:
    args = bounded(limit, extra_args=extra_args, mode="ports")
    assert value(args, "--max-rate") == expected
    assert args.count("--max-rate") == (expected is not None)


def test_a_minimum_rate_above_the_limit_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"--min-rate 300 is more than the 200 packets") as caught:
        bounded(200.0, extra_args="--min-rate 300")
    assert caught.value.details["limit"] == 200.0


def test_the_limit_applies_in_every_mode_and_template_and_to_connections_if_nmap_has_its_own_rate() -> None:
    for mode in ("discover", "ports", "services", "os", "scripts"):
        args = bounded(50.0, mode=mode)
        assert value(args, "--max-rate") == "50"
        assert value(args, "--max-parallelism") == (None if mode in {"discover", "ports"} else "5")
    for template in ("quick", "standard", "thorough", "discovery", "version", "script"):
        assert value(bounded(50.0, template=template), "--max-rate") == "50"
    assert value(bounded(3.0), "--max-parallelism") == "1"
    assert value(bounded(100_000.0), "--max-parallelism") == "100"


def test_the_estimate_follows_the_limit() -> None:
    def seconds(limit: float | None) -> float:
        parameters = {"mode": "ports", "ports": "1-1000"}
        return build_command_of(ToolPolicy(), ("10.0.0.0/24",), parameters, max_rate=limit).estimate.seconds

    assert seconds(100.0) >= 256 * 1000 / 100
    assert seconds(None) < seconds(100.0) < seconds(1.0)


def test_the_tool_declares_that_it_obeys_the_limit_and_which_files_it_reads() -> None:
    assert NmapTool.limits_rate
    assert all(path.startswith("/") for path in NmapTool.reads)
    assert "/usr/share/nmap" in NmapTool.reads
