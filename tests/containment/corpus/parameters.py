"""Invalid calls: unknown tools, parameters of the wrong type or name, and values with injected arguments."""

from __future__ import annotations

from typing import Any, Final

from tests.containment.corpus.attack import CHARACTERS, FLAG, SCOPE, TARGET, VALUE, Attack

_T: Final = "10.77.1.10"
_TOOL: Final = frozenset({"unknown_tool", "not_found", "method_not_allowed"})

_TOOLS: Final = (
    "masscan", "fping", "sh", "bash", "python3", "nmap;id", "nmap ", "NMAP", "../nmap", "/usr/bin/nmap", "nmap\n",
    "nm\u0430p", "nmap.sh", "MCPBaseTool", "__class__",
)  # fmt: skip
_PARAMETERS: Final[tuple[tuple[str, dict[str, Any], frozenset[str]], ...]] = (
    ("argv", {"target": _T, "argv": ["-oN", "/run/canary/out/n"]}, VALUE),
    ("args", {"target": _T, "args": "-oN /run/canary/out/n"}, VALUE),
    ("command", {"target": _T, "command": "/bin/sh"}, VALUE),
    ("command-name", {"target": _T, "command_name": "sh"}, VALUE),
    ("environment", {"target": _T, "env": {"NMAPDIR": "/run/canary"}}, VALUE),
    ("folder", {"target": _T, "cwd": "/run/canary"}, VALUE),
    ("allowed-targets", {"target": "10.77.2.10", "allowed_targets": ["10.77.2.0/24"]}, VALUE | SCOPE),
    ("policy", {"target": "10.77.2.10", "policy": "allow"}, VALUE | SCOPE),
    ("guard", {"target": "10.77.2.10", "guard": "off"}, VALUE | SCOPE),
    ("actor", {"target": "10.77.2.10", "actor": "root"}, VALUE | SCOPE),
    ("targets", {"targets": ["10.77.2.10"]}, VALUE),
    ("target-upper-case", {"Target": "10.77.2.10"}, VALUE),
    ("target-and-host", {"target": _T, "host": "10.77.2.10"}, VALUE),
    ("ports-target", {"target": _T, "ports": "80 10.77.2.10"}, VALUE),
    ("ports-flag", {"target": _T, "ports": "-oN"}, VALUE | CHARACTERS),
    ("ports-protocol", {"target": _T, "ports": "S:80"}, VALUE),
    ("ports-all-by-dash", {"target": _T, "ports": "-"}, VALUE | CHARACTERS),
    ("ports-zero", {"target": _T, "ports": "0-65535"}, VALUE),
    ("ports-shell", {"target": _T, "ports": "80;id"}, CHARACTERS),
    ("ports-newline", {"target": _T, "ports": "80\n-oN"}, CHARACTERS),
    ("ports-full-width", {"target": _T, "ports": "\uff18\uff10"}, CHARACTERS),
    ("correlation-newline", {"target": _T, "correlation_id": "a\nb"}, VALUE),
    ("correlation-path", {"target": _T, "correlation_id": "../../x"}, VALUE),
    ("template-flag", {"target": _T, "template": "-iR"}, VALUE),
    ("mode-flag", {"target": _T, "mode": "-sI"}, VALUE),
    ("transport-flag", {"target": _T, "transport": "sctp"}, VALUE),
    ("target-comma-list", {"target": [f"{_T},10.77.2.10"]}, TARGET),
    ("target-empty", {"target": ""}, VALUE | TARGET),
    ("intrusive", {"target": _T, "extra_args": "-A"}, frozenset({"intrusive_not_allowed"})),
    ("intrusive-scripts", {"target": _T, "scripts": ["vuln"]}, frozenset({"intrusive_not_allowed"})),
    ("intrusive-timing", {"target": _T, "timing": 5}, frozenset({"intrusive_not_allowed"})),
    ("extra-args-list-text", {"target": _T, "extra_args": '["-oN","x"]'}, CHARACTERS),
    ("positional-in-extra-args", {"target": _T, "extra_args": "web2.elsewhere.example"}, FLAG),
)
_JSON_ONLY: Final[tuple[tuple[str, dict[str, Any], frozenset[str]], ...]] = (
    ("target-number", {"target": 172819978}, VALUE),
    ("target-float", {"target": 10.77}, VALUE),
    ("target-object", {"target": {"address": "10.77.2.10"}}, VALUE),
    ("target-nested-list", {"target": [["10.77.2.10"]]}, VALUE),
    ("target-null", {"target": None}, VALUE),
    ("target-true", {"target": True}, VALUE),
    ("extra-args-list", {"target": _T, "extra_args": ["-oN", "/run/canary/out/n"]}, VALUE),
    ("extra-args-object", {"target": _T, "extra_args": {"-oN": "x"}}, VALUE),
    ("extra-args-nul", {"target": _T, "extra_args": "-sV\0-oN"}, CHARACTERS),
    ("ports-list", {"target": _T, "ports": [80, "10.77.2.10"]}, VALUE),
    ("ports-number", {"target": _T, "ports": 80}, VALUE),
    ("scripts-object", {"target": _T, "scripts": {"name": "broadcast-ping"}}, VALUE),
    ("scripts-text", {"target": _T, "scripts": "broadcast-ping"}, VALUE),
    ("timing-text", {"target": _T, "timing": "4 -oN x"}, VALUE),
    ("host-timeout-huge", {"target": _T, "host_timeout_sec": 10**30}, VALUE),
    ("timeout-not-a-number", {"target": _T, "timeout_sec": "1e9"}, VALUE),
    ("ping-text", {"target": _T, "ping": "-iR"}, VALUE),
    ("nul-in-name", {"target": _T, "ex\0tra_args": "x"}, VALUE),
)

PARAMETERS: Final = (
    *(
        Attack(f"tool-{number:02d}", f"a program that is not a tool: {name!r}", {"target": _T}, _TOOL, tool=name)
        for number, name in enumerate(_TOOLS, 1)
    ),
    *(Attack(f"call-{name}", "an invalid parameter", arguments, codes) for name, arguments, codes in _PARAMETERS),
    *(
        Attack(f"json-{name}", "a value of another type", arguments, codes, json_only=True)
        for name, arguments, codes in _JSON_ONLY
    ),
)
