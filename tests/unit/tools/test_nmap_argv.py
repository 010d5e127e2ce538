"""For any parameters, the argv passes a checker that is independent of the code that built it."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_server.base_tool import Command, ToolPolicy
from mcp_server.errors import AccessError, ArgumentError, PlatformError, TargetError
from mcp_server.tools.flags import Flag, emit, read
from mcp_server.tools.flags import Setting as FlagSetting
from mcp_server.tools.flags.values import DurationValue, IntValue
from mcp_server.tools.nmap.flags import FLAGS
from mcp_server.tools.nmap.ports import SERVICE_PORTS, PortSet, PortsValue, TopPortsValue
from mcp_server.tools.nmap.scripts import CATEGORIES, INTRUSIVE_NAMES, SAFE_NAMES, ScriptsValue
from tests.unit.tools.test_nmap_tool import build_command_of

_NUMBER = r"0|[1-9][0-9]{0,4}"
_TIME = r"[1-9][0-9]{0,6}(ms|s)"
_PORT_LIST = r"[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?(,[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?)*"
_NAMES = r"[a-z0-9]+([.-][a-z0-9]+)*(,[a-z0-9]+([.-][a-z0-9]+)*)*"

_SCRIPT_ARG = r'[a-z_]+([.-][a-z]+)*="[A-Za-z0-9/][A-Za-z0-9 ._~/?=:,*+()-]{0,254}"'
_SCRIPT_ARGS = f"{_SCRIPT_ARG}(,{_SCRIPT_ARG})*"

SWITCHES = {"-n", "--noninteractive", "--no-stylesheet", "--privileged", "--unprivileged", "-6"}
SWITCHES |= {"-sn", "-sS", "-sT", "-sU", "-sV", "-O", "-Pn"}
SWITCHES |= {"-r", "--reason", "--osscan-limit", "--osscan-guess", *(f"-T{timing}" for timing in range(6))}
VALUES = {
    "-oX": r"-",
    "--stats-every": r"2s",
    "-p": _PORT_LIST,
    "--script": _NAMES,
    "--script-args": _SCRIPT_ARGS,
    "--max-rate": rf"({_NUMBER})(\.[0-9]{{1,3}})?",
    **dict.fromkeys(("--top-ports", "--max-hostgroup", "--max-retries", "--min-rate", "--max-parallelism"), _NUMBER),
    "--version-intensity": r"[0-9]",
    **dict.fromkeys(("--host-timeout", "--scan-delay", "--max-scan-delay"), _TIME),
    **dict.fromkeys(("--initial-rtt-timeout", "--max-rtt-timeout"), _TIME),
}
TARGETS = [("127.0.0.1",), ("127.0.0.0/24", "127.0.1.9"), ("::1",), ("fd00::/120", "fd01::2"), ("127.0.0.0/22",)]
ALWAYS = ["-n", "-oX", "-", "--noninteractive", "--no-stylesheet", "--stats-every", "2s"]


def check_argv(args: tuple[str, ...], networks: tuple[str, ...]) -> None:
    """Check the rules of an nmap argv: known flags once each, typed values, numeric targets last, no other words."""
    assert list(args[: len(ALWAYS)]) == ALWAYS
    words = list(args[: -len(networks)])
    targets = args[-len(networks) :]
    seen: set[str] = set()
    plain = [word for before, word in pairwise(["", *words]) if before != "--script-args"]
    rest = iter(words)
    for word in rest:
        assert word not in seen
        seen.add(word)
        if word in SWITCHES:
            continue
        assert word in VALUES
        assert re.fullmatch(VALUES[word], next(rest))
    assert not any("/" in word or "@" in word or " " in word for word in plain)
    assert all(word.isascii() and word.isprintable() for word in args)
    for target, network in zip(targets, networks, strict=True):
        assert not target.startswith("-")
        assert ip_network(target) == ip_network(network)
        assert "/" in target or str(ip_address(target)) == target
    assert ("-6" in seen) == (":" in targets[0])
    assert len(seen & {"-sn", "-sS", "-sT"}) <= 1
    assert len([word for word in seen if re.fullmatch("-T[0-5]", word)]) == 1
    assert ("-p" in seen) + ("--top-ports" in seen) == (0 if "-sn" in seen else 1)
    assert ("--privileged" in seen) != ("--unprivileged" in seen)
    if "-sn" in seen:
        assert not seen & {"-sU", "-sV", "-O", "--script", "-Pn"}


def _flag_value(flag: Flag) -> st.SearchStrategy[Any]:
    match flag.value:
        case None:
            return st.none()
        case IntValue(low, high) | DurationValue(low, high):
            return st.integers(low, high)
        case PortsValue():
            return _port_sets
        case TopPortsValue():
            return st.integers(1, 5000).map(lambda top: PortSet(top=top))
        case ScriptsValue():
            return st.lists(_script, min_size=1, max_size=4).map(lambda names: tuple(sorted(set(names))))
    raise AssertionError(flag)


_script = st.sampled_from(sorted(SAFE_NAMES | INTRUSIVE_NAMES))
_port = st.integers(1, 65535)
_port_sets = st.one_of(
    _port.map(lambda port: PortSet(ranges=((port, port),))),
    st.tuples(_port, _port).map(lambda pair: PortSet(ranges=((min(pair), max(pair)),))),
    st.integers(1, 5000).map(lambda top: PortSet(top=top)),
)
_ports_text = st.lists(
    st.one_of(
        _port.map(str),
        st.tuples(_port, _port).map(lambda pair: f"{pair[0]}-{pair[1]}"),
        st.sampled_from(sorted(SERVICE_PORTS)),
        st.sampled_from(["top:10", "all", "0", "70000", "x", "", "-p", "/etc/passwd", "80;id"]),
    ),
    min_size=1,
    max_size=5,
).map(",".join)
_extra = st.lists(
    st.sampled_from(FLAGS).flatmap(lambda flag: st.builds(FlagSetting, st.just(flag), _flag_value(flag))),
    max_size=4,
    unique_by=lambda setting: setting.flag.name,
).map(lambda chosen: " ".join(emit(chosen)))
_parameters = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.sampled_from(["discover", "ports", "services", "os", "scripts"]),
        "template": st.sampled_from(["quick", "standard", "thorough", "discovery", "version", "script"]),
        "transport": st.sampled_from(["tcp", "udp", "both"]),
        "ports": _ports_text.filter(bool),
        "timing": st.integers(0, 5),
        "host_timeout_sec": st.integers(1, 3600),
        "scripts": st.lists(
            st.one_of(_script, st.sampled_from([*CATEGORIES, "http-*", "/x.nse"])), min_size=1, max_size=4
        ),
        "script_args": st.dictionaries(
            st.sampled_from(["http-title.url", "http.useragent", "banner.timeout", "vulns.short", "x"]),
            st.one_of(st.sampled_from(["/", "/a?b=c", "agent 1.0", '"', "-x"]), st.integers(0, 70), st.booleans()),
            max_size=2,
        ),
        "ping": st.booleans(),
        "timeout_sec": st.integers(1, 3600),
        "extra_args": _extra,
    },
)
_policies = st.builds(ToolPolicy, allow_intrusive=st.booleans(), raw_sockets=st.booleans())
_rates = st.one_of(st.none(), st.floats(0.01, 20_000))


def _command(
    policy: ToolPolicy, networks: tuple[str, ...], parameters: dict[str, Any], max_rate: float | None = None
) -> Command | None:
    try:
        return build_command_of(policy, networks, parameters, max_rate=max_rate)
    except (ArgumentError, AccessError, TargetError, PlatformError):
        return None


@pytest.mark.no_cover
@settings(max_examples=400, deadline=None)
@given(_policies, st.sampled_from(TARGETS), _parameters, _rates)
def test_every_argv_passes_the_independent_checker(
    policy: ToolPolicy, networks: tuple[str, ...], parameters: dict[str, Any], max_rate: float | None
) -> None:
    command = _command(policy, networks, parameters, max_rate)
    if command is None:
        return
    check_argv(command.args, networks)
    args = set(command.args)
    if not policy.raw_sockets:
        assert not args & {"-sS", "-sU", "-O", "--privileged"}
    if max_rate is not None:
        rates = dict(pairwise(command.args))
        assert 0 < float(rates["--max-rate"]) <= max_rate
        assert float(rates.get("--min-rate", 0)) <= float(rates["--max-rate"])
    if not policy.allow_intrusive:
        assert "-T5" not in args
        assert not INTRUSIVE_NAMES.intersection(",".join(command.args).split(","))
    tested = {ports.transport for ports in command.ports}
    assert ("udp" in tested) == ("-sU" in args)
    assert ("tcp" in tested) == bool(args & {"-sS", "-sT"})
    assert all(ports.spec in args or ports.spec.removeprefix("top:") in args for ports in command.ports)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FLAGS), st.data())
def test_every_flag_alone_reaches_the_argv_or_is_refused(flag: Flag, data: st.DataObject) -> None:
    setting = FlagSetting(flag, data.draw(_flag_value(flag)))
    text = " ".join(emit([setting]))
    policy = ToolPolicy(allow_intrusive=True, raw_sockets=True)
    parameters = {"extra_args": text, **({"mode": "os"} if flag.name.startswith("--osscan") else {})}
    networks = ("::1",) if flag.name == "-6" else ("127.0.0.1",)
    check_argv(build_command_of(policy, networks, parameters).args, networks)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80))
def test_arbitrary_extra_args_are_refused_or_safe(text: str) -> None:
    policy = ToolPolicy(allow_intrusive=True, raw_sockets=True)
    command = _command(policy, ("127.0.0.1",), {"extra_args": text})
    if command is not None:
        check_argv(command.args, ("127.0.0.1",))


def test_the_checker_refuses_an_argv_with_an_added_word() -> None:
    good = build_command_of(ToolPolicy(), ("127.0.0.1",), {}).args
    check_argv(good, ("127.0.0.1",))
    for position, word in [(7, "-oN"), (7, "/tmp/x"), (7, "-iL"), (7, "10.0.0.1"), (7, "-n"), (0, "-v")]:
        broken = (*good[:position], word, *good[position:])
        with pytest.raises(AssertionError):
            check_argv(broken, ("127.0.0.1",))


def test_every_flag_of_nmap_is_the_same_after_reading_and_writing() -> None:
    table = {flag.name: flag for flag in FLAGS}
    samples = {
        IntValue: "1",
        DurationValue: "2s",
        PortsValue: "22,80-90",
        TopPortsValue: "10",
        ScriptsValue: "banner,ssl-cert",
    }
    for flag in FLAGS:
        value = "" if flag.value is None else samples[type(flag.value)]
        text = f"{flag.name}{'' if flag.joined else ' '}{value}".strip()
        chosen = read(text, table, max_length=100)
        assert emit(chosen) == text.split()
        assert read(" ".join(emit(chosen)), table, max_length=100) == chosen
