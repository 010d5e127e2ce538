"""The guard does not affect scans in scope: they find the same as an unguarded nmap on the host."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import pytest

from mcp_server.model.host import Host
from tests.containment import lab_scope
from tests.containment.attack_runner import AttackRunner, attack_runner
from tests.containment.wire import Traffic, Wire
from tests.lab.network.fleet import FLEET_PORTS
from tests.lab.network.handle import Lab
from tests.lab.raw_nmap import _host
from tests.lab.truth_compare import assert_true, missing_hosts

SERVICES = (21, 22, 80, 2222, 5432)
NAMES = ("web1", "ssh1", "pg1", "ftp1", "dual1")
FLEET = "10.78.148.0/24"
LINK = ("10.77.1.8/30", "10.77.1.13", "10.77.1.14/31", "10.77.1.16/31", "10.77.1.18", "10.77.1.20/30", "10.77.1.24/29")
_NMAP = ("nmap", "--privileged", "-n", "-T4", "-oX", "-")
SCANS: dict[str, tuple[str, ...]] = {
    "services": (*_NMAP, "-sS", "-sV", "-p", ",".join(map(str, SERVICES))),
    "neighbors": (*_NMAP, "-sn", *LINK),
    "fleet": (*_NMAP, "-sS", "-p", ",".join(map(str, FLEET_PORTS)), FLEET),
    "IPv6": (*_NMAP, "-6", "-sS", "-p", "22,80,443,2222", "fd77:1::a", "fd77:1::b", "fd77:1::14", "fd77:1::15"),
    "UDP": (*_NMAP, "-sU", "-Pn", "-p", "161", "--max-retries", "2", "10.77.1.17"),
    "traceroute": (*_NMAP, "-sn", "-PE", "--traceroute", "10.78.148.0/28"),
}


@dataclass(frozen=True, slots=True)
class Both:
    """The XML of each scan, from the unguarded nmap (``raw``) and from the guarded one."""

    raw: dict[str, str]
    guarded: dict[str, str]
    traffic: Traffic


pytestmark = pytest.mark.timeout(300)  # much longer than on an idle machine


@pytest.fixture(scope="module")
def both(prepared_lab: Lab, wire: Wire) -> Both:
    targets = {"services": tuple(str(prepared_lab.truth[name].ipv4) for name in NAMES)}
    commands = [(*argv, *targets.get(name, ())) for name, argv in SCANS.items()]

    def run(made: AttackRunner) -> dict[str, str]:
        done = made.run(commands, seconds=40)
        assert done.codes == [0] * len(commands), done.codes
        assert not done.drops, f"expected the guard to drop nothing, found {done.drops}"
        return dict(zip(SCANS, done.outputs, strict=True))

    with (
        attack_runner(prepared_lab, "bare") as bare,
        attack_runner(prepared_lab, "guarded") as guarded,
        ThreadPoolExecutor(2) as pool,
    ):
        wire.reset()
        first, second = pool.map(run, (bare, guarded))
        return Both(first, second, wire.read())


def hosts_of(document: str) -> list[Host]:
    """The hosts in nmap's XML, parsed without this project's parser."""
    return [_host(element) for element in ET.fromstring(document).iter("host")]  # noqa: S314 - local nmap's output


_REASONS = {
    "arp-response": "arp-response",
    "nd-response": "nd-response",
    # nmap sends several probes to a routed host and names the one that was answered first.
    **dict.fromkeys(("echo-reply", "timestamp-reply", "syn-ack", "reset", "conn-refused"), "answered"),
    **{word: word for word in ("no-response", "localhost-response", "user-set")},
}
"""Maps a reason why a host is up, if it can vary between scans, to one fixed reason."""


def facts(document: str) -> list[tuple[object, ...]]:
    """Everything in a scan's result that must not differ: addresses, states, reasons, ports, services, hops."""
    found: list[tuple[object, ...]] = []
    for host in ET.fromstring(document).iter("host"):  # noqa: S314 - local nmap's output
        addresses = tuple(sorted(a.get("addr", "") for a in host.iter("address")))
        status = host.find("status")
        ports = tuple(
            (
                port.get("protocol"),
                port.get("portid"),
                *(state.get("state") for state in port.iter("state")),
                *(state.get("reason") for state in port.iter("state")),
                *((s.get("name"), s.get("product"), s.get("version"), s.get("tunnel")) for s in port.iter("service")),
            )
            for port in host.iter("port")
        )
        closed = tuple((e.get("state"), e.get("count")) for e in host.iter("extraports"))
        hops = tuple((hop.get("ttl"), hop.get("ipaddr")) for hop in host.iter("hop"))
        reason = (status.get("state"), _REASONS.get(status.get("reason", ""), "")) if status is not None else ()
        found.append((addresses, reason, ports, closed, hops))
    return sorted(found, key=repr)


@pytest.mark.parametrize("name", SCANS)
def test_a_guarded_scan_finds_the_same_as_an_unguarded_one(both: Both, name: str) -> None:
    ours, raw = facts(both.guarded[name]), facts(both.raw[name])
    assert raw, "expected the unguarded scan to find hosts, found none"
    assert ours == raw


def test_open_ports_and_versions_are_correct(both: Both, prepared_lab: Lab) -> None:
    addresses = [str(prepared_lab.truth[name].ipv4) for name in NAMES]
    assert_true(
        prepared_lab.truth, hosts_of(both.guarded["services"]), addresses=addresses, tested=SERVICES, services=True
    )


def test_neighbors_are_found_by_arp_with_their_mac_addresses(both: Both, prepared_lab: Lab) -> None:
    document = ET.fromstring(both.guarded["neighbors"])  # noqa: S314 - local nmap's output
    seen = {
        host.findall("address")[0].get("addr"): (host.findall("address")[-1].get("addr", "").lower(), _reason(host))
        for host in document.iter("host")
    }
    expected = {
        address: (host.mac, "arp-response")
        for host in prepared_lab.truth.hosts.values()
        for address in host.addresses
        if ":" not in address and lab_scope.in_scope(address)
    }
    assert seen == expected


def test_the_routed_fleet_is_found_completely(both: Both, prepared_lab: Lab) -> None:
    assert missing_hosts(prepared_lab.truth, hosts_of(both.guarded["fleet"]), FLEET) == missing_hosts(
        prepared_lab.truth, hosts_of(both.raw["fleet"]), FLEET
    )


def test_no_frame_was_out_of_scope(both: Both) -> None:
    both.traffic.assert_in_scope(at_least=2000)


def _reason(host: ET.Element) -> str:
    return "".join(status.get("reason", "") for status in host.iter("status"))
