"""The truth is what plain nmap finds, so that a difference in a scan through our own road is our own fault."""

from __future__ import annotations

from tests.lab.network.handle import Lab
from tests.lab.raw_nmap import nmap
from tests.lab.truth_compare import assert_true, invented_hosts, missing_hosts

TCP = (7, 21, 22, 25, 53, 80, 139, 199, 443, 445, 2222, 2323, 3306, 5432, 6379, 8080, 8443, 9000)
UDP = (53, 123, 161)
PORTS = ",".join(str(port) for port in TCP)


def addresses(lab: Lab, *, ipv6: bool, without: tuple[str, ...] = ()) -> list[str]:
    hosts = [host for host in lab.truth.hosts.values() if host.name not in without]
    return [address for host in hosts for address in host.addresses if (":" in address) is ipv6]


def test_services_and_versions_on_ipv4(lab: Lab) -> None:
    targets = addresses(lab, ipv6=False, without=("tarpit",))
    found = nmap(lab, ["-Pn", "-sS", "-sV", "--version-intensity", "1", "-T4", "-p", PORTS, *targets])
    assert_true(lab.truth, found, addresses=targets, tested=TCP, services=True)


def test_services_and_versions_on_ipv6(lab: Lab) -> None:
    targets = addresses(lab, ipv6=True, without=("tarpit",))
    found = nmap(lab, ["-6", "-Pn", "-sS", "-sV", "--version-intensity", "1", "-T4", "-p", PORTS, *targets])
    assert_true(lab.truth, found, addresses=targets, tested=TCP, services=True)


def test_the_tarpit_is_open_everywhere(lab: Lab) -> None:
    target = lab.truth["tarpit"].addresses[0]
    found = nmap(lab, ["-Pn", "-sS", "-T4", "-p", PORTS, target])
    assert_true(lab.truth, found, addresses=[target], tested=TCP)


def test_udp_services(lab: Lab) -> None:
    for family in (["-4"], ["-6"]):
        targets = [lab.truth[name].addresses[family == ["-6"]] for name in ("r1", "snmp1", "udp1")]
        found = nmap(lab, [*family, "-sU", "-sV", "-T4", "-p", ",".join(str(port) for port in UDP), *targets])
        assert_true(lab.truth, found, addresses=targets, tested=UDP, transport="udp", services=True)


def test_the_fleets_services(lab: Lab) -> None:
    by_profile = {host.profile: host.address for host in lab.truth.fleet.values() if host.resets}
    targets = list(by_profile.values())
    ports = sorted({port for host in lab.truth.fleet.values() for port in host.tcp})
    found = nmap(
        lab, ["-Pn", "-sS", "-sV", "-T4", "--version-intensity", "0", "-p", ",".join(map(str, ports)), *targets]
    )
    assert_true(lab.truth, found, addresses=targets, tested=ports, services=True)


def test_host_discovery_finds_everyone_who_answers_anything(lab: Lab) -> None:
    found = nmap(lab, ["-sn", "-PE", "-PS22,80", "-T4", "10.77.1.0/24", "10.77.2.0/27"])
    assert missing_hosts(lab.truth, found, "10.77.1.0/24") == []
    assert missing_hosts(lab.truth, found, "10.77.2.0/24") == ["10.77.2.21"]  # the dark one
    assert invented_hosts(lab.truth, found, "10.77.0.0/16") == []
