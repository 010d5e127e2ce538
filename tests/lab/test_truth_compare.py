"""The comparison with the truth finds each kind of fault: correct results are changed in one place at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mcp_server.model.host import ExtraPorts, Host, Port, Service
from tests.lab.network.truth import Truth, make_truth
from tests.lab.network.versions import installed_versions
from tests.lab.truth_compare import assert_true, differences, expected_open, invented_hosts, missing_hosts
from tests.support.services import make_service

TESTED = (22, 69, 80, 443, 2222, 8080, 8443)
ADDRESS = "10.77.1.10"
VERSION = installed_versions().nginx


@pytest.fixture(scope="module")
def truth() -> Truth:
    return make_truth(fleet=50)


def answer(truth: Truth, address: str = ADDRESS) -> Host:
    """Return what a perfect scanner reports for an address."""
    endpoints = expected_open(truth, address, "tcp", TESTED)
    ports = tuple(
        Port(
            "tcp", e.port, "open", "syn-ack", make_service(e.service, e.product or "", e.version or "", tunnel=e.tunnel)
        )
        for e in endpoints.values()
    )
    return Host(address, "up", ports=ports, extra_ports=(ExtraPorts("closed", len(TESTED) - len(ports)),))


def faults_of(truth: Truth, *hosts: Host, address: str = ADDRESS) -> list[str]:
    return differences(truth, hosts, addresses=[address], tested=TESTED, services=True)


def test_a_correct_result_has_no_fault(truth: Truth) -> None:
    assert faults_of(truth, answer(truth)) == []
    assert [port.number for port in answer(truth).ports] == [80, 443, 8443]


def test_a_missing_open_port_is_named(truth: Truth) -> None:
    host = answer(truth)
    assert faults_of(truth, replace(host, ports=host.ports[1:])) == [
        "10.77.1.10 80/tcp: is open (http), reported not listed"
    ]


def test_an_open_port_reported_closed_is_named(truth: Truth) -> None:
    host = answer(truth)
    closed = replace(host.ports[0], state="closed")
    assert (
        "80/tcp: is open (http), reported closed" in faults_of(truth, replace(host, ports=(closed, *host.ports[1:])))[0]
    )


def test_a_port_wrongly_reported_open_is_named(truth: Truth) -> None:
    host = answer(truth)
    more = replace(host, ports=(*host.ports, Port("tcp", 22, "open")))
    assert faults_of(truth, more) == ["10.77.1.10 22/tcp: reported open, but is not"]


def test_a_wrong_state_is_named(truth: Truth) -> None:
    host = answer(truth)
    listed = replace(host, ports=(*host.ports, Port("tcp", 22, "filtered")))
    assert faults_of(truth, listed) == ["10.77.1.10 22/tcp: is closed, reported filtered"]
    counted = replace(host, extra_ports=(ExtraPorts("filtered", 4),))
    assert faults_of(truth, counted) == ["10.77.1.10 the 4 ports not listed: are closed, reported filtered"]


@pytest.mark.parametrize(
    "wrong_service",
    [
        make_service("other", "nginx", VERSION, tunnel="ssl"),
        make_service("http", "other", VERSION, tunnel="ssl"),
        make_service("http", "nginx", "other", tunnel="ssl"),
        make_service("http", "nginx", VERSION, tunnel="other"),
    ],
)
def test_each_wrong_part_of_a_service_is_named(truth: Truth, wrong_service: Service) -> None:
    host = answer(truth)
    wrong = replace(host.ports[1], service=wrong_service)
    (fault,) = faults_of(truth, replace(host, ports=(host.ports[0], wrong, host.ports[2])))
    assert fault.startswith("10.77.1.10 443/tcp: ")
    assert fault.endswith("reported 'other'")


def test_an_open_port_without_a_service_is_named(truth: Truth) -> None:
    host = answer(truth)
    bare = replace(host.ports[0], service=None)
    assert faults_of(truth, replace(host, ports=(bare, *host.ports[1:]))) == [
        "10.77.1.10 80/tcp: is http, reported without a service"
    ]


def test_missing_unrequested_repeated_and_timed_out_hosts_are_named(truth: Truth) -> None:
    assert faults_of(truth) == ["10.77.1.10 not reported; open ports: 80/tcp, 443/tcp, 8443/tcp"]
    host = answer(truth)
    assert faults_of(truth, host, Host("10.77.1.99", "up")) == ["10.77.1.99: reported, and was not a target"]
    assert faults_of(truth, host, host) == ["10.77.1.10: reported twice"]
    assert "timed out" in faults_of(truth, replace(host, timed_out=True))[0]


def test_the_ipv6_address_of_a_host_lacks_ports_that_are_open_only_on_ipv4(truth: Truth) -> None:
    assert set(expected_open(truth, "10.77.2.10", "tcp", TESTED)) == {80, 8080}
    assert set(expected_open(truth, "fd77:2::a", "tcp", TESTED)) == {80}
    assert expected_open(truth, "10.77.1.19", "udp", TESTED)[69].state == "open|filtered"


def test_the_tarpit_is_open_on_every_tested_port(truth: Truth) -> None:
    open_everywhere = tuple(Port("tcp", number, "open", service=make_service("guess")) for number in TESTED)
    assert faults_of(truth, Host("10.77.2.24", "up", ports=open_everywhere), address="10.77.2.24") == []
    assert len(faults_of(truth, Host("10.77.2.24", "up"), address="10.77.2.24")) == len(TESTED)


def test_only_ports_of_a_lossy_host_may_be_reported_filtered(truth: Truth) -> None:
    for address, faults in (("10.77.2.25", 0), ("10.77.1.20", 1)):
        host = replace(answer(truth, address), extra_ports=(ExtraPorts("filtered", 5),))
        assert len(faults_of(truth, host, address=address)) == faults


def test_missing_and_invented_hosts_of_a_network_are_listed(truth: Truth) -> None:
    every = [Host(address, "up") for address in truth.live("10.77.1.0/24")]
    assert missing_hosts(truth, every, "10.77.1.0/24") == []
    assert missing_hosts(truth, every[1:], "10.77.1.0/24") == ["10.77.1.1"]
    assert invented_hosts(truth, [*every, Host("10.77.1.77", "up")], "10.77.1.0/24") == ["10.77.1.77"]
    assert missing_hosts(truth, [], truth.busiest_network()) != []


def test_the_assertion_lists_every_fault(truth: Truth) -> None:
    with pytest.raises(AssertionError, match=r"1 difference\(s\) from the truth:\n  10\.77\.1\.10 not reported"):
        assert_true(truth, [], addresses=[ADDRESS], tested=TESTED)
