"""The installed nmap accepts every argv of this tool. The scans run against a few closed ports of loopback."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mcp_server.base_tool import ToolPolicy
from mcp_server.tools.flags import Setting as FlagSetting
from mcp_server.tools.flags import emit
from mcp_server.tools.nmap.flags import FLAGS
from mcp_server.tools.nmap.ports import TOP_MAX
from tests.unit.tools.test_nmap_tool import build_command_of

CAP_NET_RAW = 13
_CAPABILITIES = re.search(r"CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(encoding="ascii"))
HAS_RAW = bool(_CAPABILITIES and int(_CAPABILITIES[1], 16) >> CAP_NET_RAW & 1)
"""Without the capability there are no cases with raw scans, because the tool would refuse them for the same reason."""

SAMPLE_VALUES = {
    "-p": "1-3,7",
    "--top-ports": "3",
    "-T": "4",
    "--host-timeout": "30s",
    "--max-hostgroup": "4",
    "--max-retries": "1",
    "--min-rate": "100",
    "--max-rate": "1000",
    "--scan-delay": "1ms",
    "--max-scan-delay": "5ms",
    "--initial-rtt-timeout": "100ms",
    "--max-rtt-timeout": "1500ms",
    "--version-intensity": "1",
    "--script": "banner,ssl-cert",
}
PLAIN_CASES: list[tuple[str, dict[str, Any]]] = [
    ("127.0.0.1", {"mode": "discover"}),
    ("127.0.0.1", {"mode": "ports", "ports": "1-3,ssh"}),
    ("127.0.0.0/30", {"mode": "ports", "ports": "1", "timeout_sec": 60}),
    ("127.0.0.1", {"mode": "services", "ports": "1-3", "ping": False}),
    ("127.0.0.1", {"mode": "scripts", "ports": "1", "scripts": ["safe"]}),
    ("127.0.0.1", {"mode": "ports", "ports": "1", "scripts": ["safe", "vuln"], "timing": 5}),
    ("::1", {"mode": "ports", "ports": "1"}),
    ("::1", {"mode": "discover", "extra_args": "-6"}),
]
RAW_CASES: list[tuple[str, dict[str, Any]]] = [
    ("127.0.0.1", {"mode": "os", "ports": "1-2", "extra_args": "--osscan-limit --osscan-guess"}),
    ("127.0.0.1", {"mode": "ports", "ports": "1", "transport": "both"}),
    ("127.0.0.1", {"mode": "ports", "ports": "1", "transport": "udp"}),
    ("127.0.0.1", {"mode": "discover"}),
    ("::1", {"mode": "ports", "ports": "1", "extra_args": "-sS"}),
]
_NEEDS_RAW = {"-sS", "-sU", "-O", "-A", "--osscan-limit", "--osscan-guess"}


def _flag_cases() -> list[tuple[ToolPolicy, str, dict[str, Any]]]:
    cases = []
    for flag in FLAGS:
        value = flag.value.parse(SAMPLE_VALUES[flag.name]) if flag.value else None
        extra = " ".join(emit([FlagSetting(flag, value)]))
        parameters: dict[str, Any] = {"extra_args": extra}
        if flag.field not in {"mode", "services", "version_intensity", "os", "aggressive"}:
            parameters["mode"] = "os" if flag.name.startswith("--osscan") else "ports"
        if flag.field not in {"mode", "ports"}:
            parameters["ports"] = "1"
        needs_raw = flag.name in _NEEDS_RAW
        if HAS_RAW or not needs_raw:
            policy = ToolPolicy(allow_intrusive=True, raw_sockets=needs_raw)
            cases.append((policy, "::1" if flag.name == "-6" else "127.0.0.1", parameters))
    return cases


CASES = [
    *[(ToolPolicy(allow_intrusive=True), target, parameters) for target, parameters in PLAIN_CASES],
    *[(ToolPolicy(raw_sockets=True), target, parameters) for target, parameters in RAW_CASES if HAS_RAW],
    *_flag_cases(),
]


def run_nmap(policy: ToolPolicy, target: str, parameters: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    args = build_command_of(policy, (target,), parameters).args
    return subprocess.run(
        ["/usr/bin/nmap", *args],
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("policy", "target", "parameters"), CASES, ids=[f"{index}-{case[1]}" for index, case in enumerate(CASES)]
)
def test_nmap_accepts_the_argv(policy: ToolPolicy, target: str, parameters: dict[str, Any]) -> None:
    result = run_nmap(policy, target, parameters)
    assert result.returncode == 0, result.stderr
    assert 'exit="success"' in result.stdout
    assert "<nmaprun" in result.stdout
    assert "xml-stylesheet" not in result.stdout
    assert "QUITTING" not in result.stderr


def test_every_flag_has_a_sample() -> None:
    assert {flag.name for flag in FLAGS if flag.value} == set(SAMPLE_VALUES)


@pytest.mark.parametrize("ports", ["top:7", f"top:{TOP_MAX}", "5,1-3,2", "all"])
def test_nmap_tests_exactly_as_many_ports_as_the_command_says(ports: str) -> None:
    parameters = {"mode": "ports", "ports": ports, "extra_args": "-T4"}
    planned = build_command_of(ToolPolicy(), ("127.0.0.1",), parameters).ports
    output = run_nmap(ToolPolicy(), "127.0.0.1", parameters).stdout
    said = re.search(r'<scaninfo type="(\w+)" protocol="(\w+)" numservices="(\d+)"', output)
    assert said is not None
    assert [(each.method, each.transport, each.count) for each in planned] == [(said[1], said[2], int(said[3]))]
