"""NmapTool: the exact argv for good parameters, the ports and the estimated cost, and the size of the schema."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

import pytest

from mcp_server.api.mcp.descriptions import describe
from mcp_server.base_tool import Command, RunConditions, ToolPolicy
from mcp_server.errors import AccessError, ArgumentError
from mcp_server.model.run import PortsTested, Risk
from mcp_server.model.target import Target, Targets
from mcp_server.tools.flags import Flag, Setting, read
from mcp_server.tools.nmap.scripts import CATEGORIES, SAFE_NAMES
from mcp_server.tools.nmap_tool import NmapInput, NmapTool, PreparedScan

LOCAL = "127.0.0.1"
PLAIN = ToolPolicy()
RAW = ToolPolicy(raw_sockets=True)
ALL = ToolPolicy(raw_sockets=True, allow_intrusive=True)
OPEN = ToolPolicy(allow_intrusive=True)
START = "-n -oX - --noninteractive --no-stylesheet --stats-every 2s"
DEFAULT_SCRIPTS = ",".join(sorted(CATEGORIES["default"]))
SAFE_SCRIPTS = ",".join(sorted(SAFE_NAMES))
VULN_SCRIPTS = ",".join(sorted(CATEGORIES["vuln"]))


def pin(*networks: str) -> Targets:
    return Targets(tuple(Target(text, (ip_network(text),)) for text in networks))


def prepare(policy: ToolPolicy, networks: tuple[str, ...], parameters: dict[str, Any]) -> PreparedScan:
    """Prepare a call as the validate step does: parameters validated, flags read, the scan resolved."""
    tool = NmapTool(policy)
    typed = NmapInput.model_validate({"target": list(networks), **parameters})
    return tool.prepare(typed, read(typed.extra_args, tool.flags(), max_length=2048))


def build_command_of(
    policy: ToolPolicy, networks: tuple[str, ...], parameters: dict[str, Any], *, max_rate: float | None = None
) -> Command:
    """Build the command of a call as the plan step does, with raw sockets if the policy has them."""
    prepared = prepare(policy, networks, parameters)
    timeout = parameters.get("timeout_sec", NmapTool.default_timeout_sec)
    conditions = RunConditions(timeout_sec=timeout, raw_sockets=policy.raw_sockets, max_rate=max_rate)
    return NmapTool(policy).build_command(prepared, pin(*networks), conditions)


@dataclass(frozen=True)
class Good:
    """Parameters, and the argv between the fixed beginning and the targets."""

    expected: str
    parameters: dict[str, Any] = field(default_factory=dict)
    policy: ToolPolicy = PLAIN
    targets: tuple[str, ...] = (LOCAL,)
    risk: Risk = Risk.SCAN

    @property
    def argv(self) -> list[str]:
        privilege = "--privileged" if self.policy.raw_sockets else "--unprivileged"
        plain = [text.removesuffix("/32") for text in self.targets]
        return [*START.split(), privilege, *self.expected.split(), *plain]


def flags(text: str) -> dict[str, Any]:
    return {"extra_args": text}


GOOD = [
    # modes
    Good("-T3 -sT --top-ports 1000 -sV --max-hostgroup 16"),
    Good("-T3 -sS --top-ports 1000 -sV --max-hostgroup 16", policy=RAW),
    Good("-T3 -sT --top-ports 1000 -sV --max-hostgroup 16", {"mode": "services"}),
    Good("-T3 -sn", {"mode": "discover"}, risk=Risk.PROBE),
    Good("-T3 -sn", {"mode": "discover"}, policy=RAW, risk=Risk.PROBE),
    Good("-T3 -sT --top-ports 1000 --max-hostgroup 64", {"mode": "ports"}),
    Good("-T3 -sS --top-ports 1000 -O --max-hostgroup 16", {"mode": "os"}, policy=RAW),
    Good(f"-T3 -sT --top-ports 1000 -sV --script {DEFAULT_SCRIPTS} --max-hostgroup 16", {"mode": "scripts"}),
    # templates
    Good("-T4 -sT --top-ports 100 --max-hostgroup 64", {"template": "quick"}),
    Good("-T3 -sT --top-ports 1000 -sV --max-hostgroup 16", {"template": "standard"}),
    Good("-T4 -sT -p 1-65535 -sV --version-intensity 9 --max-hostgroup 16", {"template": "thorough"}),
    Good("-T4 -sn", {"template": "discovery"}, risk=Risk.PROBE),
    Good("-T4 -sT --top-ports 100 -sV --version-intensity 9 --max-hostgroup 16", {"template": "version"}),
    Good(f"-T4 -sT --top-ports 1000 -sV --script {DEFAULT_SCRIPTS} --max-hostgroup 16", {"template": "script"}),
    # a parameter overrides the template, and a value of the template that does not apply is ignored
    Good(
        "-T2 -sT -p 22 -sV --max-hostgroup 16",
        {"template": "quick", "mode": "services", "ports": "22", "timing": 2},
    ),
    Good("-T4 -sT --top-ports 100 --max-hostgroup 64", {"template": "version", "mode": "ports"}),
    Good("-T4 -sT -p 80 --max-hostgroup 64", {"template": "discovery", "mode": "ports", "ports": "80"}),
    Good("-T1 -sT --top-ports 100 --max-hostgroup 64", {"template": "quick", **flags("-T1")}),
    Good("-T4 -sT --top-ports 100 -sV --max-hostgroup 16", {"template": "quick", **flags("-sV")}),
    # transport
    Good("-T3 -sU --top-ports 100 --max-hostgroup 64", {"mode": "ports", "transport": "udp"}, policy=RAW),
    Good("-T3 -sS -sU --top-ports 100 --max-hostgroup 64", {"mode": "ports", "transport": "both"}, policy=RAW),
    Good("-T3 -sT -sU -p 53 -sV --max-hostgroup 16", {"ports": "53", **flags("-sT -sU")}, policy=RAW),
    Good("-T3 -sU -p 53 -sV --max-hostgroup 16", {"ports": "53", **flags("-sU")}, policy=RAW),
    Good("-T3 -sS -sU -p 53 -sV --max-hostgroup 16", {"ports": "dns", "transport": "both", **flags("-sU")}, policy=RAW),
    Good("-T3 -sT -p 53 -sV --max-hostgroup 16", {"ports": "53", "transport": "tcp", **flags("-sT")}, policy=RAW),
    # single parameters
    Good("-T3 -sT -p 22,80-90,443 -sV --max-hostgroup 16", {"ports": "https,80-90,ssh,85"}),
    Good("-T0 -sT --top-ports 7 -sV --max-hostgroup 16", {"ports": "top:7", "timing": 0}),
    Good("-T3 -sT --top-ports 1000 -sV --max-hostgroup 64 -Pn", {"ping": False}),
    Good("-T3 -sT --top-ports 1000 -sV --max-hostgroup 16", {"ping": True}),
    Good("-T3 -sT --top-ports 1000 -sV --max-hostgroup 16 --host-timeout 90s", {"host_timeout_sec": 90}),
    Good(
        "-T3 -sT --top-ports 1000 -sV --script banner,ssl-cert --max-hostgroup 16", {"scripts": ["ssl-cert", "banner"]}
    ),
    Good(
        f"-T3 -sT -p 80 --script {SAFE_SCRIPTS} --max-hostgroup 16",
        {"mode": "ports", "ports": "80", "scripts": ["safe"]},
    ),
    # extra flags, one for each field
    Good("-T3 -sn", flags("-sn"), risk=Risk.PROBE),
    Good("-T3 -sT -p 1-10 -sV --max-hostgroup 16", flags("-sT -p 1-10 -sV")),
    Good("-T3 -sS -p 1-65535 -sV --max-hostgroup 16", flags("-sS -p all"), policy=RAW),
    Good("-T3 -sT --top-ports 10 -sV --max-hostgroup 16", flags("--top-ports 10")),
    Good("-T3 -sT --top-ports 100 -sV --max-hostgroup 16", flags("-F")),
    Good("-T3 -sT --top-ports 100 -sV --max-hostgroup 16", flags("-F --top-ports 100 -p top:100")),
    Good("-T4 -sT --top-ports 1000 -sV --max-hostgroup 64 -Pn", flags("-T4 -Pn")),
    Good("-T3 -sT --top-ports 1000 -sV --version-intensity 2 --max-hostgroup 16", flags("--version-light")),
    Good("-T3 -sT --top-ports 1000 -sV --version-intensity 9 --max-hostgroup 16", flags("--version-all")),
    Good("-T3 -sT --top-ports 1000 -sV --version-intensity 0 --max-hostgroup 16", flags("--version-intensity 0")),
    Good("-T3 -sS --top-ports 1000 -sV -O --max-hostgroup 16 --osscan-limit", flags("-O --osscan-limit"), policy=RAW),
    Good(
        "-T3 -sS -p 80 -O --max-hostgroup 16 --osscan-guess",
        {"mode": "os", "ports": "80", **flags("--osscan-guess")},
        policy=RAW,
    ),
    Good(f"-T3 -sT --top-ports 1000 -sV --script {DEFAULT_SCRIPTS} --max-hostgroup 16", flags("-sC")),
    Good(
        "-T3 -sT --top-ports 1000 -sV --script http-title,ssl-cert --max-hostgroup 16",
        flags("--script ssl-cert,http-title"),
    ),
    Good("-T3 -sT --top-ports 1000 -sV --max-hostgroup 4", flags("--max-hostgroup 4")),
    Good("-T3 -sT --top-ports 1000 -sV --max-hostgroup 16 --host-timeout 1500ms", flags("--host-timeout 1500ms")),
    Good(
        "-T3 -sT --top-ports 1000 -sV --max-hostgroup 16 -r --max-retries 2 --min-rate 10 --max-rate 100 "
        "--scan-delay 5ms --max-scan-delay 10ms --initial-rtt-timeout 100ms --max-rtt-timeout 1s --reason",
        flags(
            "--reason --max-rtt-timeout 1s --initial-rtt-timeout 100ms --max-scan-delay 10ms --scan-delay 5ms "
            "--max-rate 100 --min-rate 10 --max-retries 2 -r"
        ),
    ),
    Good("-T3 -sT --top-ports 1000 -sV --max-hostgroup 16 --max-retries 0", flags("--max-retries 0")),
    # the same value written in two ways
    Good("-T3 -sT -p 80 --max-hostgroup 64", {"mode": "ports", "ports": "80", **flags("-p http")}),
    Good(
        "-T4 -sT --top-ports 1000 -sV --max-hostgroup 16 --host-timeout 30s",
        {"timing": 4, "host_timeout_sec": 30, **flags("-T4 --host-timeout 30s")},
    ),
    # parameters that the operator must allow
    Good(
        f"-T3 -sS --top-ports 1000 -sV -O --script {DEFAULT_SCRIPTS} --max-hostgroup 16",
        flags("-A"),
        policy=ALL,
        risk=Risk.INTRUSIVE,
    ),
    Good("-T5 -sT --top-ports 1000 -sV --max-hostgroup 16", {"timing": 5}, policy=OPEN, risk=Risk.INTRUSIVE),
    Good(
        f"-T3 -sT --top-ports 1000 -sV --script {VULN_SCRIPTS} --max-hostgroup 16",
        {"scripts": ["vuln"]},
        policy=OPEN,
        risk=Risk.INTRUSIVE,
    ),
    Good(
        "-T3 -sT --top-ports 1000 -sV --script ssl-cert,ssl-heartbleed --max-hostgroup 16",
        flags("--script ssl-heartbleed,ssl-cert"),
        policy=OPEN,
        risk=Risk.INTRUSIVE,
    ),
    # targets
    Good("-T3 -6 -sT --top-ports 1000 -sV --max-hostgroup 16", targets=("::1",)),
    Good("-T3 -6 -sn", flags("-6 -sn"), targets=("::1",), risk=Risk.PROBE),
    Good(
        "-T3 -sT --top-ports 1000 -sV --max-hostgroup 16 --host-timeout 300s",
        targets=("127.0.0.0/24", "127.0.1.1/32"),
    ),
    Good(
        "-T3 -sn --host-timeout 30s",
        {"mode": "discover", "timeout_sec": 60},
        targets=("127.0.0.0/22",),
        risk=Risk.PROBE,
    ),
    Good("-T3 -sn", {"mode": "discover", "timeout_sec": 19}, targets=("127.0.0.0/22",), risk=Risk.PROBE),
    Good(
        "-T3 -sn --host-timeout 2s",
        {"mode": "discover", "host_timeout_sec": 2},
        targets=("127.0.0.0/30",),
        risk=Risk.PROBE,
    ),
]


@pytest.mark.parametrize("case", GOOD, ids=[f"{index}-{'-'.join(case.parameters)}" for index, case in enumerate(GOOD)])
def test_good_parameters_give_exactly_this_argv(case: Good) -> None:
    command = build_command_of(case.policy, case.targets, case.parameters)
    assert list(command.args) == case.argv
    assert prepare(case.policy, case.targets, case.parameters).risk is case.risk
    assert command.needs_raw_sockets == bool({"-sS", "-sU", "-O"}.intersection(command.args))


def test_a_parameter_that_is_null_means_the_same_as_one_left_out() -> None:
    nulls = {"template": None, "ports": None, "timing": None, "host_timeout_sec": None, "scripts": None}
    assert build_command_of(PLAIN, (LOCAL,), nulls) == build_command_of(PLAIN, (LOCAL,), {})


def test_targets_may_be_a_string_or_a_list() -> None:
    tool = NmapTool()
    assert tool.targets_of(NmapInput(target="10.0.0.1")) == ("10.0.0.1",)
    assert tool.targets_of(NmapInput(target=["10.0.0.1", "fd00::/120"])) == ("10.0.0.1", "fd00::/120")


@pytest.mark.parametrize(
    ("parameters", "ports"),
    [
        ({"mode": "discover"}, ()),
        ({}, (PortsTested("tcp", "top:1000", 1000, "syn"),)),
        ({"ports": "80,22,81", **flags("-sT")}, (PortsTested("tcp", "22,80-81", 3, "connect"),)),
        ({"transport": "udp"}, (PortsTested("udp", "top:100", 100, "udp"),)),
        (
            {"transport": "both", "ports": "53"},
            (PortsTested("tcp", "53", 1, "syn"), PortsTested("udp", "53", 1, "udp")),
        ),
    ],
)
def test_the_command_states_the_tested_ports_exactly(
    parameters: dict[str, Any], ports: tuple[PortsTested, ...]
) -> None:
    assert build_command_of(RAW, (LOCAL,), parameters).ports == ports


def test_the_estimate_grows_with_addresses_ports_and_detail() -> None:
    one = build_command_of(PLAIN, (LOCAL,), {"mode": "ports", "ports": "1-100"}).estimate
    assert (one.addresses, one.ports, one.probes) == (1, 100, 104)
    silent = build_command_of(PLAIN, (LOCAL,), {"mode": "ports", "ports": "1-100", "ping": False}).estimate
    assert silent.probes == 100
    many = build_command_of(RAW, ("127.0.0.0/24",), {"transport": "both", "ports": "1-100"}).estimate
    assert (many.addresses, many.ports, many.probes) == (256, 200, 256 * 204)
    assert build_command_of(PLAIN, ("127.0.0.0/24",), {"mode": "discover"}).estimate.probes == 1024
    seconds = [
        build_command_of(PLAIN, (LOCAL,), {"mode": "ports", "ports": "1-100", "timing": timing}).estimate.seconds
        for timing in range(5)
    ]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] > 3600
    slow = build_command_of(PLAIN, (LOCAL,), {"mode": "ports", "ports": "1-100", **flags("--max-rate 1")}).estimate
    assert slow.seconds == pytest.approx(104.1)
    assert build_command_of(PLAIN, (LOCAL,), {}).estimate.seconds > one.seconds


def test_the_table_is_built_for_each_policy_from_the_same_flags() -> None:
    before = tuple(NmapTool.allowed_flags)
    names = [flag.name for flag in before]
    for policy in (PLAIN, ALL, PLAIN, ALL, PLAIN):
        table = NmapTool(policy).flags()
        assert list(table) == names
        assert table["-A"].locked is not policy.allow_intrusive
    assert tuple(NmapTool.allowed_flags) == before
    with pytest.raises(AccessError):
        build_command_of(PLAIN, (LOCAL,), {"scripts": ["vuln"]})


def test_a_flag_without_a_field_is_refused() -> None:
    stray = (Setting(Flag("-x")),)
    with pytest.raises(ArgumentError, match="-x sets no field of a scan"):
        NmapTool().prepare(NmapInput(target=LOCAL), stray)


def test_every_run_gets_a_new_parser() -> None:
    tool = NmapTool()
    prepared, command = prepare(PLAIN, (LOCAL,), {}), build_command_of(PLAIN, (LOCAL,), {})
    first, second = (tool.parser(prepared, pin(LOCAL), command) for _ in range(2))
    assert first is not second
    assert not first.close().complete


def test_the_tool_is_called_nmap_and_has_its_documented_limits() -> None:
    assert NmapTool.tool_name() == NmapTool.command_name == "nmap"
    assert (NmapTool.max_addresses, NmapTool.concurrency, NmapTool.default_timeout_sec) == (1024, 1, 600.0)


def test_the_description_for_an_agent_is_short_and_complete() -> None:
    entry = describe(NmapTool()).model_dump(mode="json", by_alias=True, exclude_none=True)
    assert len(json.dumps(entry)) <= 4 * 1200
    assert entry["title"] == "Nmap scan"
    schema = entry["inputSchema"]
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["target"]
    assert set(schema["properties"]) == set(NmapInput.model_fields)
    assert [name for name, part in schema["properties"].items() if not part["description"]] == []
    assert schema["properties"]["timing"]["maximum"] == 5
    assert schema["properties"]["mode"]["default"] == "services"
    assert "hosts" in entry["outputSchema"]["properties"]
