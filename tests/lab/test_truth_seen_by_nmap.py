"""nmap alone finds the truth of the lab, so a difference in a scan through the pipeline is a fault of the project.

A version scan spends most of its time on ports that do not answer: the hostile host alone takes 46 s. So only its web
port is tested here, and of the fleet only the ports whose listeners send something.
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
# nmap stops probing a silent port when other ports have answered at once; on a lossy link it needs these options.
PATIENT = ("-T3", "--max-retries", "10", "--min-rtt-timeout", "700ms")


def ports(numbers: tuple[int, ...]) -> str:
    return ",".join(str(number) for number in numbers)


def addresses(lab: Lab, *names: str, ipv6: bool) -> list[str]:
    return [address for name in names for address in lab.truth[name].addresses if (":" in address) is ipv6]


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_nmap_finds_services_and_versions(lab: Lab, family: str) -> None:
    names = set(lab.truth.hosts) - {"tarpit", "evil1", "slow1"}
    targets = addresses(lab, *names, ipv6=family == "-6")
    found = nmap(lab, [family, "-Pn", "-sS", *VERSIONS, "-T4", "-p", ports(TCP), *targets])
    assert_true(lab.truth, found, addresses=targets, tested=TCP, services=True)


@pytest.mark.parametrize(("family", "versions"), [("-4", ["-sV"]), ("-6", [])])
def test_nmap_finds_the_ports_of_the_slow_host_with_long_timeouts(lab: Lab, family: str, versions: list[str]) -> None:
    targets = addresses(lab, "slow1", ipv6=family == "-6")
    found = nmap(lab, [family, "-Pn", "-sS", *versions, *PATIENT, "-p", "7,22,80,443", *targets])
    assert_true(lab.truth, found, addresses=targets, tested=(7, 22, 80, 443), services=bool(versions))


def test_nmap_finds_the_ports_of_the_tarpit_and_the_hostile_host(lab: Lab) -> None:
    targets = addresses(lab, "tarpit", "evil1", ipv6=False)
    found = nmap(lab, ["-Pn", "-sS", "-T4", "-p", ports(TCP), *targets])
    assert_true(lab.truth, found, addresses=targets, tested=TCP)


def test_the_hostile_web_server_is_identified_by_its_header(lab: Lab) -> None:
    targets = addresses(lab, "evil1", ipv6=False)
    found = nmap(lab, ["-Pn", "-sS", "-sV", "-T4", "-p", "80", *targets])
    assert_true(lab.truth, found, addresses=targets, tested=(80,), services=True)


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_nmap_finds_udp_services(lab: Lab, family: str) -> None:
    targets = addresses(lab, "r1", "snmp1", "udp1", ipv6=family == "-6")
    found = nmap(lab, [family, "-sU", "-sV", "-T4", "-p", ports(UDP), *targets])
    assert_true(lab.truth, found, addresses=targets, tested=UDP, transport="udp", services=True)


def test_nmap_finds_the_ports_of_the_busiest_network_of_the_fleet(lab: Lab) -> None:
    network = lab.truth.busiest_network()
    targets = list(lab.truth.live(network))
    found = nmap(lab, ["-Pn", "-sS", "-T4", "--max-retries", "2", "-p", ports(FLEET_PORTS), *targets])
    assert_true(lab.truth, found, addresses=targets, tested=FLEET_PORTS)


def test_nmap_finds_the_services_of_the_fleet(lab: Lab) -> None:
    tested = (22, *FLEET_WEB_PORTS)
    targets = list({host.profile: host.address for host in lab.truth.fleet.values()}.values())
    found = nmap(lab, ["-Pn", "-sS", *VERSIONS, "-T4", "-p", ports(tested), *targets])
    assert_true(lab.truth, found, addresses=targets, tested=tested, services=True)


def test_host_discovery_finds_every_host_except_the_one_that_drops_everything(lab: Lab) -> None:
    found = nmap(lab, ["-sn", "-PE", "-PS22,80", "-T4", "10.77.1.0/24", "10.77.2.0/27"])
    assert missing_hosts(lab.truth, found, "10.77.1.0/24") == []
    assert missing_hosts(lab.truth, found, "10.77.2.0/24") == ["10.77.2.21"]  # the host that drops everything
    assert invented_hosts(lab.truth, found, "10.77.0.0/16") == []
