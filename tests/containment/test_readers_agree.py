"""The programs read every target that the target reader accepts as the same addresses.

nmap and masscan can list targets without sending (``-sL``), but fping cannot. So all of them run in a network namespace
whose devices are down, where nothing can be sent. getaddrinfo is called for numeric addresses only.
"""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcp_server.errors import RefusedError
from mcp_server.model.target import Network
from mcp_server.scope.reading import ParsedTarget, read_target
from tests.bad_targets import BAD_TARGETS
from tests.support.processes import binary

Address = IPv4Address | IPv6Address

RFC1918: Final = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
LARGEST: Final = 256
"""The largest number of addresses in a network that the programs must list."""
_TIMEOUT: Final = 20.0


def run_offline(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a network namespace from which it can send nothing."""
    return subprocess.run(
        [binary("unshare"), "--net", "--map-root-user", "--", *argv],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT, check=False,
    )  # fmt: skip


def nmap_reads(texts: list[str], *options: str) -> list[Address]:
    done = run_offline(binary("nmap"), "-n", "-sL", *options, "--", *texts)
    assert done.returncode == 0, done.stderr
    assert "QUITTING" not in done.stderr
    return [ip_address(text) for text in re.findall(r"^Nmap scan report for (\S+)$", done.stdout, re.MULTILINE)]


def masscan_reads(texts: list[str]) -> list[Address]:
    done = run_offline(binary("masscan"), "-sL", *texts)
    assert done.returncode == 0, done.stderr
    return sorted(map(IPv4Address, done.stdout.split()))


def fping_reads(texts: list[str], *options: str) -> list[Address]:
    done = run_offline(binary("fping"), "-A", "-r0", "-t50", "-i1", *options, *texts)
    return [ip_address(text) for text in re.findall(r"^(\S+) is (?:unreachable|alive)$", done.stdout, re.MULTILINE)]


def getaddrinfo_reads(text: str) -> list[Address]:
    try:
        found = socket.getaddrinfo(text, None, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        return []
    return [ip_address(each[4][0]) for each in found]


def members(network: Network) -> list[Address]:
    """Every address of a network, including the first and the last."""
    return [network[offset] for offset in range(network.num_addresses)]


class ReaderCounter:
    """Counts the texts that the reader accepts and refuses."""

    def __init__(self) -> None:
        self.accepted = self.refused = self.names = 0

    def read(self, text: str) -> ParsedTarget | None:
        try:
            parsed = read_target(text)
        except RefusedError:
            self.refused += 1
            return None
        self.accepted += 1
        self.names += parsed.name is not None
        return parsed

    def check(self) -> None:
        """Check that enough texts were accepted and refused for the test to be meaningful."""
        total = self.accepted + self.refused
        assert total >= 1000
        assert self.accepted >= 0.2 * total, f"expected 20 % accepted, found {self.accepted} of {total}"
        assert self.refused >= 0.2 * total, f"expected 20 % refused, found {self.refused} of {total}"
        assert self.names >= 0.02 * total, f"expected 2 % names, found {self.names} of {total}"


# Addresses in scope and outside, valid and nearly valid, and every notation that some parser accepts.
_BYTE = st.integers(0, 255)
_V4 = st.one_of(
    st.builds("10.{}.{}.{}".format, _BYTE, _BYTE, _BYTE),
    st.builds("192.168.{}.{}".format, _BYTE, _BYTE),
    st.builds("172.{}.{}.{}".format, st.integers(14, 33), _BYTE, _BYTE),
    st.builds("{}.{}.{}.{}".format, _BYTE, _BYTE, _BYTE, _BYTE),
)
_GROUP = st.integers(0, 0xFFFF)
_V6 = st.one_of(
    st.integers(0xFD77 << 112, (0xFD77 << 112) + 0xFFFF).map(lambda number: str(IPv6Address(number))),
    st.integers(0, (1 << 128) - 1).map(lambda number: str(IPv6Address(number))),
    st.integers(0, (1 << 128) - 1).map(lambda number: IPv6Address(number).exploded.upper()),
    st.builds("fd77::{:x}:{:x}".format, _GROUP, _GROUP),
    st.builds("fd77:0:{:X}::".format, _GROUP),
)


def _masked(pair: tuple[str, int]) -> str:
    address, prefix = pair
    return str(ip_network(f"{address}/{prefix}", strict=False))


_NET = st.one_of(
    st.tuples(_V4, st.integers(24, 32)).map(_masked),
    st.tuples(_V6, st.integers(120, 128)).map(_masked),
    st.tuples(_V4, st.integers(0, 33)).map("{0[0]}/{0[1]}".format),
    st.tuples(_V6, st.integers(110, 130)).map("{0[0]}/{0[1]}".format),
)
_LABEL = st.text(alphabet="abz019-x", min_size=1, max_size=8)
_NAME = st.lists(_LABEL, min_size=1, max_size=3).map(lambda labels: ".".join([*labels, "lab", "internal"]))
_ODD_NUMBER = st.one_of(
    _BYTE.map(lambda number: f"0{number:o}"),
    _BYTE.map(lambda number: f"{number:#x}"),
    _BYTE.map(lambda number: f"{number:03d}"),
    st.integers(0, 1 << 33).map(str),
    st.sampled_from(
        ["*", "-", "1-5", "1,2", "", "256", "[1-3]", "\u0663", "\uff11", "\u00b9", "1 ", "+1", "0x", "1e1"]
    ),
)
_ODD_V4 = st.one_of(
    st.builds("10.{}.{}.{}".format, _BYTE, _ODD_NUMBER, _BYTE),
    st.builds("10.{}.{}".format, _BYTE, _ODD_NUMBER),
    st.builds("10.{}".format, _ODD_NUMBER),
    _ODD_NUMBER,
    st.lists(_ODD_NUMBER, min_size=4, max_size=5).map(".".join),
)
_ODD_V6 = st.one_of(
    st.builds("{}%eth0".format, _V6),
    st.builds("::ffff:{}".format, _V4),
    st.builds("fd77::{}".format, _V4),
    st.builds("[{}]".format, _V6),
    st.builds("{}:{}".format, _V4, st.integers(0, 65535)),
    st.builds("fd77:{}::{}".format, st.sampled_from(["0", "00000", "g", "", "+1"]), st.sampled_from(["1", ":1", "%1"])),
)
_CHANGES = st.sampled_from([" ", ".", "/", ",", "-", "@", "\n", "\0", "\uff10", ":", "%", "..", "0", "//8", "\u200b"])
_CHANGED = st.builds(
    lambda text, change, where: text[: where % (len(text) + 1)] + change + text[where % (len(text) + 1) :],
    st.one_of(_V4, _V6, _NET, _NAME), _CHANGES, st.integers(0, 60),
)  # fmt: skip
_KINDS = (_V4, _V6, _NET, _NAME, _ODD_V4, _ODD_V6, _CHANGED, st.sampled_from([text for _, text, _ in BAD_TARGETS]))
_TEXT = st.integers(0, len(_KINDS) - 1).flatmap(_KINDS.__getitem__)


def small(parsed: Iterable[tuple[str, ParsedTarget]], version: int) -> list[tuple[str, Network]]:
    """The accepted texts of an IP version with their networks, without networks that are too large to list."""
    return [
        (text, target.network)
        for text, target in parsed
        if target.network is not None and target.network.version == version and target.network.num_addresses <= LARGEST
    ]


def check(texts: list[str], counter: ReaderCounter) -> None:
    """Check that all programs read the caller's text and the canonical one as the reader does."""
    parsed = [(text, target) for text in texts if (target := counter.read(text)) is not None]
    for text, target in parsed:
        if target.network is None:
            assert target.name is not None
            for spelling in (text, target.canonical):
                assert getaddrinfo_reads(spelling) == [], f"expected the name {spelling!r} not to be read as a number"
        elif target.network.num_addresses == 1:
            for spelling in (text.partition("/")[0], target.canonical):
                assert getaddrinfo_reads(spelling) == [target.network[0]], spelling
    for version, options in ((4, ()), (6, ("-6",))):
        chosen = small(parsed, version)
        if chosen:
            check_numbers(chosen, options)
    in_scope = [network for _, network in small(parsed, 4) if any(network[0] in each for each in RFC1918)]
    for address in nmap_reads([canonical(network) for network in in_scope]) if in_scope else []:
        assert any(address in network for network in RFC1918), f"nmap reads {address}, which is out of scope"


def check_numbers(chosen: list[tuple[str, Network]], options: tuple[str, ...]) -> None:
    """Check that nmap, fping and masscan list exactly the addresses of networks of one IP version."""
    expected = [address for _, network in chosen for address in members(network)]
    spelled = [canonical(network) for _, network in chosen]
    for spellings in ([text for text, _ in chosen], spelled):
        assert nmap_reads(spellings, *options) == expected, spellings
    single = [network for _, network in chosen if network.num_addresses == 1]
    if single:
        assert fping_reads([canonical(network) for network in single]) == [network[0] for network in single]
    if not options:
        # masscan merges overlapping networks and cannot list IPv6 targets.
        assert sorted(set(masscan_reads(spelled))) == sorted(set(expected))


def canonical(network: Network) -> str:
    """The canonical text of a network, as the programs get it."""
    return ParsedTarget("", network=network).canonical


def test_every_program_reads_accepted_targets_as_the_same_addresses() -> None:
    counter = ReaderCounter()

    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[HealthCheck.large_base_example, HealthCheck.data_too_large, HealthCheck.too_slow],
    )
    @given(st.lists(_TEXT, min_size=40, max_size=60))
    def agree(texts: list[str]) -> None:
        check(texts, counter)

    agree()
    counter.check()


@pytest.mark.parametrize("network", ["10.77.1.0/24", "10.0.0.4/30", "192.168.7.6/31", "172.16.0.1/32"])
def test_fping_reads_a_network_as_the_same_addresses(network: str) -> None:
    """It leaves out the first and the last address of a network, and never adds one."""
    parsed = read_target(network)
    assert parsed.network is not None
    found = fping_reads([str(parsed.network)], "-g")
    expected = members(parsed.network)
    assert found == (expected[1:-1] if len(expected) > 2 else expected)


@pytest.mark.parametrize("network", ["10.0.0.0/20", "10.77.0.0/19"])
def test_a_large_network_is_read_exactly(network: str) -> None:
    expected = members(ip_network(network))
    assert nmap_reads([network]) == expected
    assert masscan_reads([network]) == expected


def test_the_programs_disagree_on_texts_that_the_reader_refuses() -> None:
    """This shows that the tests of this file can fail."""
    octal = "012.0115.1.012"
    assert nmap_reads([octal]) == [ip_address("12.115.1.12")]
    assert fping_reads([octal]) == [ip_address("10.77.1.10")]
    assert getaddrinfo_reads(octal) == [ip_address("10.77.1.10")]
    assert nmap_reads(["10.0.0.0/33"]) == [ip_address("10.0.0.0")]
    assert len(nmap_reads(["10.77.1.-"])) == len(nmap_reads(["10.77.1.*"])) == 256
    assert getaddrinfo_reads("10.1") == [ip_address("10.0.0.1")]
    assert nmap_reads(["10.0.0.9/30"]) == members(ip_network("10.0.0.8/30"))
    for text in (octal, "10.0.0.0/33", "10.77.1.-", "10.77.1.*", "10.1", "10.0.0.9/30"):
        with pytest.raises(RefusedError):
            read_target(text)
