"""Port specifications become canonical ranges, or are refused with the part that is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.tools.nmap.ports import (
    ALL_PORTS,
    PORT_MAX,
    SERVICE_PORTS,
    TOP_MAX,
    PortSet,
    PortsValue,
    TopPortsValue,
    parse_ports,
)

GOOD = [
    ("22", "22", 1, ["-p", "22"]),
    ("1", "1", 1, ["-p", "1"]),
    ("65535", "65535", 1, ["-p", "65535"]),
    ("80,22", "22,80", 2, ["-p", "22,80"]),
    ("1-1024", "1-1024", 1024, ["-p", "1-1024"]),
    ("5-5", "5", 1, ["-p", "5"]),
    ("80,81,82", "80-82", 3, ["-p", "80-82"]),
    ("1-100,50-200", "1-200", 200, ["-p", "1-200"]),
    ("1-100,50", "1-100", 100, ["-p", "1-100"]),
    ("10-20,22,21", "10-22", 13, ["-p", "10-22"]),
    ("10-20,22", "10-20,22", 12, ["-p", "10-20,22"]),
    ("http,https,22", "22,80,443", 3, ["-p", "22,80,443"]),
    ("ms-wbt-server", "3389", 1, ["-p", "3389"]),
    ("all", "1-65535", 65535, ["-p", "1-65535"]),
    ("1-65535", "1-65535", 65535, ["-p", "1-65535"]),
    ("top:1", "top:1", 1, ["--top-ports", "1"]),
    ("top:5000", "top:5000", 5000, ["--top-ports", "5000"]),
    (",".join(str(port) for port in range(1, 200, 2)), None, 100, None),
]

BAD = [
    ("", "a port is missing beside a comma"),
    (",", "a port is missing beside a comma"),
    ("22,", "a port is missing beside a comma"),
    ("0", "'0' is not a port; ports are 1 to 65535"),
    ("0-10", "'0' is not a port"),
    ("65536", "'65536' is not a port"),
    ("70000", "'70000' is not a port"),
    ("1-70000", "'70000' is not a port"),
    ("999999999", "'999999999' is not a port"),
    ("022", "'022' is not a port"),
    ("90-80", "the range '90-80' is reversed"),
    ("80,80", "'80' stands twice"),
    ("80,http", "'http' stands twice"),
    ("1-5,1-5", "'1-5' stands twice"),
    ("80-", "'80-' is neither a port, a range nor a known service name"),
    ("-80", "'-80' is neither"),
    ("-", "'-' is neither"),
    ("1-2-3", "'1-2-3' is neither"),
    ("80 ", "'80 ' is neither"),
    ("22, 80", "' 80' is neither"),
    ("T:80", "'T:80' is neither"),
    ("*", "'*' is neither"),
    ("[1-5]", "'[1-5]' is neither"),
    ("HTTP", "'HTTP' is neither"),
    ("htpp", "(the nearest is 'http')"),
    ("\u0661\u0662", "is neither"),
    ("22,all", "'all' cannot be part"),
    ("22,top:5", "'top:5' cannot be part"),
    ("top:", "top:N takes an N from 1 to 5000, not ''"),
    ("top:0", "not '0'"),
    ("top:5001", "not '5001'"),
    ("top:x", "not 'x'"),
    ("top:1,2", "not '1,2'"),
    (",".join(str(port) for port in range(1, 203, 2)), "at most 100 ranges, not 101"),
    ("1" * 1_000_000, "at most 2048 characters, not 1000000"),
    ("9" * 2000, "is neither a port"),
]


@pytest.mark.parametrize(("text", "spec", "count", "words"), GOOD, ids=[row[0][:20] for row in GOOD])
def test_good_ports_are_canonical(text: str, spec: str | None, count: int, words: list[str] | None) -> None:
    ports = parse_ports(text)
    assert ports.count == count
    if spec is not None:
        assert (ports.spec, ports.words()) == (spec, words)


@pytest.mark.parametrize(("text", "message"), BAD, ids=[ascii(row[0])[:20] for row in BAD])
def test_bad_ports_are_refused_with_the_part_that_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_ports(text)
    assert len(str(caught.value)) < 200


_port = st.integers(1, PORT_MAX)
_item = st.one_of(
    _port.map(str),
    st.tuples(_port, _port).map(lambda pair: f"{min(pair)}-{max(pair)}"),
    st.sampled_from(sorted(SERVICE_PORTS)),
)


@given(st.lists(_item, min_size=1, max_size=30))
def test_a_canonical_spec_has_exactly_the_given_ports_and_is_not_changed_by_reading_it(items: list[str]) -> None:
    try:
        ports = parse_ports(",".join(items))
    except ValueError as error:
        duplicate = re.search("stands twice", str(error))
        if duplicate is None:
            raise
        return
    wanted: set[int] = set()
    for item in items:
        low, _, high = item.partition("-") if item[0].isdigit() else (str(SERVICE_PORTS[item]), "", "")
        wanted.update(range(int(low), int(high or low) + 1))
    held = {port for low, high in ports.ranges for port in range(low, high + 1)}
    assert held == wanted
    assert ports.count == len(wanted)
    assert parse_ports(ports.spec) == ports
    assert re.fullmatch(r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*", ports.spec)


@given(st.text(max_size=30))
def test_arbitrary_text_gives_ports_or_a_refusal(text: str) -> None:
    try:
        ports = parse_ports(text)
    except ValueError:
        return
    assert 1 <= ports.count <= PORT_MAX


@pytest.mark.parametrize("ports", [ALL_PORTS, PortSet(ranges=((22, 22), (80, 90))), PortSet(top=7)])
def test_written_flag_values_can_be_read_again(ports: PortSet) -> None:
    assert PortsValue().parse(PortsValue().emit(ports)) == ports


def test_the_value_of_top_ports_has_the_same_bounds() -> None:
    value = TopPortsValue()
    assert value.label == f"INT 1-{TOP_MAX}"
    assert value.parse("10") == PortSet(top=10)
    assert value.emit(PortSet(top=10)) == "10"
    with pytest.raises(ValueError, match="1 to 5000"):
        value.parse("0")


def test_names_mean_the_ports_of_nmap_services_if_it_has_them() -> None:
    known: dict[str, set[int]] = {}
    for line in Path("/usr/share/nmap/nmap-services").read_text(encoding="utf-8", errors="replace").splitlines():
        if match := re.match(r"(\S+)\t([0-9]+)/", line):
            known.setdefault(match[1], set()).add(int(match[2]))
    shared = known.keys() & SERVICE_PORTS.keys()
    assert len(shared) >= 30
    # For these, nmap-services has other ports than IANA's registry (88, 5222, 6000) and Microsoft's own (5985).
    assert {name for name in shared if SERVICE_PORTS[name] not in known[name]} == {"kerberos", "winrm", "x11", "xmpp"}
    assert len(SERVICE_PORTS) >= 60
    assert all(re.fullmatch(r"[a-z][a-z0-9-]*", name) for name in SERVICE_PORTS)
