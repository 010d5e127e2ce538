"""NmapTool refuses bad parameters before it starts a process: each row gives a typed error that names the value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import ValidationError

from mcp_server.base_tool import ToolPolicy
from mcp_server.errors import AccessError, ArgumentError, NetworkToolsError, PlatformError, TargetError
from mcp_server.tools.nmap_tool import NmapInput
from tests.unit.tools.test_nmap_tool import ALL, LOCAL, OPEN, PLAIN, RAW, build_command_of, flags


@dataclass(frozen=True)
class Bad:
    """Parameters that are refused: the class and the code of the error, and a fragment of its message."""

    error: type[NetworkToolsError]
    code: str
    message: str
    parameters: dict[str, Any] = field(default_factory=dict)
    policy: ToolPolicy = PLAIN
    targets: tuple[str, ...] = (LOCAL,)


def clash(message: str, parameters: dict[str, Any], policy: ToolPolicy = RAW) -> Bad:
    return Bad(ArgumentError, "invalid_arguments", f"{message} contradict each other", parameters, policy)


def gated(message: str, parameters: dict[str, Any]) -> Bad:
    return Bad(AccessError, "intrusive_not_allowed", message, parameters, RAW)


def unable(message: str, parameters: dict[str, Any], policy: ToolPolicy = PLAIN) -> Bad:
    return Bad(PlatformError, "permission_denied", f"{message} needs raw sockets", parameters, policy)


def unknown(flag: str) -> Bad:
    return Bad(ArgumentError, "argument_not_allowed", f"'{flag.split(maxsplit=1)[0]}'", flags(flag), ALL)


BAD = [
    Bad(ArgumentError, "forbidden_characters", "forbidden metacharacters: ';'", flags("; rm -rf /")),
    Bad(ArgumentError, "forbidden_characters", "ports holds forbidden metacharacters: ';'", {"ports": "80;id"}),
    Bad(ArgumentError, "forbidden_characters", "ports holds forbidden metacharacters", {"ports": "\uff18\uff10"}),
    Bad(ArgumentError, "forbidden_characters", "U+0000", {"ports": "80\0"}),
    Bad(ArgumentError, "forbidden_characters", "U+000A", {"ports": "80\n"}),
    Bad(ArgumentError, "invalid_arguments", "ports: '70000' is not a port", {"ports": "70000"}),
    Bad(ArgumentError, "invalid_arguments", "ports: '0' is not a port", {"ports": "0"}),
    Bad(ArgumentError, "invalid_arguments", "ports: the range '90-80' is reversed", {"ports": "90-80"}),
    Bad(ArgumentError, "invalid_arguments", "ports: '80' stands twice", {"ports": "80,80"}),
    Bad(ArgumentError, "invalid_arguments", "ports: 'nosuch' is neither", {"ports": "nosuch"}),
    Bad(ArgumentError, "invalid_arguments", "at most 100 ranges", {"ports": ",".join(map(str, range(1, 300, 2)))}),
    Bad(ArgumentError, "invalid_arguments", "-p does not take '70000'", flags("-p 70000")),
    Bad(ArgumentError, "invalid_arguments", "The value of -p begins with '-'", flags("-p -")),
    Bad(ArgumentError, "invalid_arguments", "scripts: 'http-*' is not a script", {"scripts": ["http-*"]}),
    Bad(ArgumentError, "invalid_arguments", "scripts: '/tmp/x.nse' is not a script", {"scripts": ["/tmp/x.nse"]}),
    Bad(ArgumentError, "invalid_arguments", "--script does not take 'all'", flags("--script all")),
    Bad(ArgumentError, "invalid_arguments", "--host-timeout does not take '1ms'", flags("--host-timeout 1ms")),
    Bad(ArgumentError, "invalid_arguments", "--min-rate does not take '5000000'", flags("--min-rate 5000000")),
    Bad(ArgumentError, "argument_not_allowed", "'--rate=5000000'", flags("--rate=5000000")),
    Bad(ArgumentError, "argument_not_allowed", "'10.0.0.1', which is neither", flags("10.0.0.1")),
    *[
        unknown(flag)
        for flag in (
            "-oN /tmp/x",
            "--oN /tmp/x",
            "-oX -",
            "-oA x",
            "-iL x",
            "--iL x",
            "-iR 5",
            "--excludefile x",
            "--excludef x",
            "-exclude x",
            "--resum x",
            "--datadir x",
            "--servicedb x",
            "--versiondb x",
            "--stylesheet x",
            "--script-args x",
            "--script-args-file x",
            "--script-updatedb",
            "-D x",
            "-S x",
            "-sI x",
            "-b x",
            "-e eth0",
            "-g 53",
            "--source-port 53",
            "--proxies x",
            "--dns-servers x",
            "--system-dns",
            "-R",
            "--data 00",
            "--data-string x",
            "--data-length 5",
            "--ip-options x",
            "--spoof-mac 0",
            "--ttl 5",
            "--badsum",
            "-f",
            "--mtu 8",
            "--scanflags SYN",
            "--traceroute",
            "--packet-trace",
            "--open",
            "-d",
            "-v",
            "-h",
            "-V",
            "--iflist",
            "--privileged",
            "--unprivileged",
            "--send-eth",
            "--append-output",
            "-sO",
            "-sN",
            "-sX",
            "-sL",
            "-p-",
            "-p22",
        )
    ],
    clash("mode='ports' and -sn", {"mode": "ports", **flags("-sn")}),
    clash("mode='discover' and ports='80'", {"mode": "discover", "ports": "80"}),
    clash("template='discovery' and ports='80'", {"template": "discovery", "ports": "80"}),
    clash("-sn and -sV", flags("-sn -sV")),
    clash("-sn and -O", flags("-sn -O")),
    clash("-sn and -p 80", flags("-sn -p 80")),
    clash("-sn and -sU", flags("-sn -sU")),
    clash("mode='discover' and transport='tcp'", {"mode": "discover", "transport": "tcp"}),
    clash("mode='discover' and scripts=banner", {"mode": "discover", "scripts": ["banner"]}),
    clash("mode='discover' and ping=False", {"mode": "discover", "ping": False}),
    clash("-sn and -Pn", flags("-sn -Pn")),
    clash("mode='discover' and -A", {"mode": "discover", **flags("-A")}, ALL),
    clash("ports='22' and -p 80", {"ports": "22", **flags("-p 80")}),
    clash("-p 80 and -F", flags("-p 80 -F")),
    clash("-F and --top-ports 10", flags("-F --top-ports 10")),
    clash("timing=2 and -T3", {"timing": 2, **flags("-T3")}),
    clash("ping=True and -Pn", {"ping": True, **flags("-Pn")}),
    clash("-sT and -sS", flags("-sT -sS")),
    clash("transport='tcp' and -sU", {"transport": "tcp", **flags("-sU")}),
    clash("transport='udp' and -sT", {"transport": "udp", **flags("-sT")}),
    clash("host_timeout_sec=30 and --host-timeout 31s", {"host_timeout_sec": 30, **flags("--host-timeout 31s")}),
    clash("scripts=banner and --script ssl-cert", {"scripts": ["banner"], **flags("--script ssl-cert")}),
    clash("--version-light and --version-all", flags("--version-light --version-all")),
    clash("--min-rate 100 and --max-rate 50", flags("--max-rate 50 --min-rate 100")),
    clash("--initial-rtt-timeout 2s and --max-rtt-timeout 1s", flags("--initial-rtt-timeout 2s --max-rtt-timeout 1s")),
    clash("--scan-delay 2s and --max-scan-delay 1s", flags("--scan-delay 2s --max-scan-delay 1s")),
    Bad(
        ArgumentError,
        "invalid_arguments",
        "--version-light has no effect in this call",
        {"mode": "ports", **flags("--version-light")},
    ),
    Bad(ArgumentError, "invalid_arguments", "--osscan-guess has no effect in this call", flags("--osscan-guess")),
    Bad(ArgumentError, "invalid_arguments", "--osscan-limit has no effect in this call", flags("--osscan-limit")),
    gated("-A is intrusive", flags("-A")),
    gated("intrusive (timing 5)", {"timing": 5}),
    gated("intrusive (timing 5)", flags("-T5")),
    gated("intrusive (scripts ssl-heartbleed)", {"scripts": ["ssl-heartbleed"]}),
    gated("scripts http-git, http-trace", {"scripts": ["vuln"]}),
    gated("intrusive (scripts ssl-poodle)", flags("--script ssl-cert,ssl-poodle")),
    gated("intrusive (timing 5 and scripts ssl-poodle)", {"timing": 5, "scripts": ["ssl-poodle"]}),
    unable("mode='os'", {"mode": "os"}),
    unable("-O", flags("-O")),
    unable("-sS", flags("-sS")),
    unable("-sU", flags("-sU")),
    unable("transport='udp'", {"transport": "udp"}),
    unable("transport='both'", {"transport": "both"}),
    unable("-O", {"transport": "tcp", **flags("-O")}),
    unable("-A", flags("-A"), OPEN),
    Bad(TargetError, "too_many_targets", "1025 addresses are too many", targets=("127.0.0.0/22", "127.1.0.1")),
    Bad(TargetError, "too_many_targets", "18446744073709551616 addresses are too many", targets=("fd00::/64",)),
    Bad(TargetError, "invalid_target", "There is no address to scan", {"target": "x"}, targets=()),
    Bad(ArgumentError, "invalid_arguments", "'127.0.0.1' is IPv4 and '::1' is IPv6", targets=("::1", "127.0.0.1")),
    Bad(ArgumentError, "invalid_arguments", "-6 is set, but the targets are IPv4", flags("-6")),
]


@pytest.mark.parametrize("case", BAD, ids=[f"{index}-{case.code}" for index, case in enumerate(BAD)])
def test_bad_parameters_are_refused_with_their_reason(case: Bad) -> None:
    with pytest.raises(NetworkToolsError) as caught:
        build_command_of(case.policy, case.targets, case.parameters)
    error = caught.value
    assert isinstance(error, case.error)
    assert error.code == case.code
    assert case.message in error.message
    assert error.hint
    assert len(error.message) < 250


WRONG_VALUES: list[dict[str, Any]] = [
    {"mode": "all"},
    {"mode": None},
    {"template": "fast"},
    {"transport": "sctp"},
    {"ports": ""},
    {"ports": 80},
    {"ports": ["80"]},
    {"ports": "1" * 2049},
    {"timing": 6},
    {"timing": -1},
    {"timing": "4"},
    {"timing": 4.0},
    {"timing": True},
    {"host_timeout_sec": 0},
    {"host_timeout_sec": 3601},
    {"scripts": []},
    {"scripts": "ssl-cert"},
    {"scripts": [""]},
    {"scripts": ["x" * 65]},
    {"scripts": ["banner"] * 35},
    {"ping": 1},
    {"ping": "false"},
    {"extra_args": ["-sV"]},
    {"extra_args": "x" * 10241},
    {"timeout_sec": 0},
    {"timeout_sec": 3601},
    {"timeout_sec": float("nan")},
    {"port": "80"},
    {"Mode": "ports"},
]
INVALID_SHAPES: list[dict[str, Any]] = [
    {},
    {"target": ""},
    {"target": []},
    {"target": [""]},
    {"target": "x" * 256},
    {"target": "x" * 1_000_000},
    {"target": ["10.0.0.1"] * 257},
    {"target": 1},
    {"target": None},
    *[{"target": LOCAL, **wrong} for wrong in WRONG_VALUES],
]


@pytest.mark.parametrize(
    "parameters", INVALID_SHAPES, ids=[f"{index}-{'-'.join(shape)}" for index, shape in enumerate(INVALID_SHAPES)]
)
def test_the_parameter_model_is_strict(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NmapInput.model_validate(parameters)
