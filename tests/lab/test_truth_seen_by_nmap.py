"""The truth is what plain nmap finds, so that a difference in a scan through our own road is our own fault.

A version scan spends its time on ports that stay silent: the hostile host alone takes 46 s, so only its web port is
asked here, and of the fleet only the ports whose listeners speak.
"""

from __future__ import annotations

import pytest

from tests.lab.network.fleet import FLEET_PORTS, FLEET_WEB_PORTS
from tests.lab.network.handle import Lab
from tests.lab.raw_nmap import nmap
from tests.lab.truth_compare import assert_true, invented_hosts, missing_hosts

TCP = (7, 21, 22, 25, 53, 80, 139, 199, 443, 445, 2222, 2323, 3306, 5432, 6379, 8080, 8443, 9000)
UDP = (53, 123, 161)
VERSIONS = ("-sV", "--version-intensity", "1")
# nmap stops asking a silent port again as soon as the others have answered at once; a lossy link needs it told.
PATIENT = ("-T3", "--max-retries", "10", "--min-rtt-timeout", "700ms")


def ports(numbers: tuple[int, ...]) -> str:
    return ",".join(str(number) for number in numbers)


def addresses(lab: Lab, *names: str, ipv6: bool) -> list[str]:
    return [address for name in names for address in lab.truth[name].addresses if (":" in address) is ipv6]


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_services_and_versions(lab: Lab, family: str) -> None:
    names = set(lab.truth.hosts) - {"tarpit", "evil1", "slow1"}
    targets = addresses(lab, *names, ipv6=family == "-6")
    found = nmap(lab, [family, "-Pn", "-sS", *VERSIONS, "-T4", "-p", ports(TCP), *targets])
    assert_true(lab.truth, found, addresses=targets, tested=TCP, services=True)


@pytest.mark.parametrize(("family", "versions"), [("-4", ["-sV"]), ("-6", [])])
def test_the_slow_host_with_patience(lab: Lab, family: str, versions: list[str]) -> None:
    targets = addresses(lab, "slow1", ipv6=family == "-6")
    found = nmap(lab, [family, "-Pn", "-sS", *versions, *PATIENT, "-p", "7,22,80,443", *targets])
    assert_true(lab.truth, found, addresses=targets, tested=(7, 22, 80, 443), services=bool(versions))


def test_the_tarpit_and_the_hostile_host_by_their_ports(lab: Lab) -> None:
    targets = addresses(lab, "tarpit", "evil1", ipv6=False)
    found = nmap(lab, ["-Pn", "-sS", "-T4", "-p", ports(TCP), *targets])
    assert_true(lab.truth, found, addresses=targets, tested=TCP)


def test_the_hostile_web_server_is_known_by_its_claim(lab: Lab) -> None:
    targets = addresses(lab, "evil1", ipv6=False)
    found = nmap(lab, ["-Pn", "-sS", "-sV", "-T4", "-p", "80", *targets])
    assert_true(lab.truth, found, addresses=targets, tested=(80,), services=True)


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_udp_services(lab: Lab, family: str) -> None:
    targets = addresses(lab, "r1", "snmp1", "udp1", ipv6=family == "-6")
    found = nmap(lab, [family, "-sU", "-sV", "-T4", "-p", ports(UDP), *targets])
    assert_true(lab.truth, found, addresses=targets, tested=UDP, transport="udp", services=True)


def test_the_busiest_fleet_network_by_its_ports(lab: Lab) -> None:
    network = lab.truth.busiest_network()
    targets = list(lab.truth.live(network))
    found = nmap(lab, ["-Pn", "-sS", "-T4", "--max-retries", "2", "-p", ports(FLEET_PORTS), *targets])
    assert_true(lab.truth, found, addresses=targets, tested=FLEET_PORTS)


def test_the_fleets_services(lab: Lab) -> None:
    tested = (22, *FLEET_WEB_PORTS)
    targets = list({host.profile: host.address for host in lab.truth.fleet.values()}.values())
    found = nmap(lab, ["-Pn", "-sS", *VERSIONS, "-T4", "-p", ports(tested), *targets])
    assert_true(lab.truth, found, addresses=targets, tested=tested, services=True)


def test_host_discovery_finds_everyone_who_answers_anything(lab: Lab) -> None:
    found = nmap(lab, ["-sn", "-PE", "-PS22,80", "-T4", "10.77.1.0/24", "10.77.2.0/27"])
    assert missing_hosts(lab.truth, found, "10.77.1.0/24") == []
    assert missing_hosts(lab.truth, found, "10.77.2.0/24") == ["10.77.2.21"]  # the dark one
    assert invented_hosts(lab.truth, found, "10.77.0.0/16") == []
