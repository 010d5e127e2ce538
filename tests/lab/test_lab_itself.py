"""The lab matches its truth, checked with sockets."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dns.message
import pytest
from cryptography import x509

from tests.lab.network.handle import Lab
from tests.lab.network.programs import LabError, find
from tests.lab.network.truth import SCANNER_IPV4, Behavior

PROBE = Path(__file__).with_name("probe.py")
UNLISTED_PORT = 7
OUTCOME = {"closed": {"refused"}, "filtered": {"silent", "unreachable"}, "open": {"open"}}


def probe(lab: Lab, **order: Any) -> Any:
    return json.loads(lab.run("scan", [sys.executable, "-S", str(PROBE)], text_in=json.dumps(order)).stdout)


def test_every_tcp_endpoint_accepts_connections_on_all_its_addresses(lab: Lab) -> None:
    interfaces = {
        (address, endpoint.port): "open" if endpoint.ipv6 or ":" not in address else "refused"
        for host in lab.truth.hosts.values()
        for address in host.addresses
        for endpoint in host.endpoints
        if endpoint.transport == "tcp"
    }
    outcomes = [outcome for outcome, _ in probe(lab, connect=list(interfaces), seconds=10)["connect"]]
    assert dict(zip(interfaces, outcomes, strict=True)) == interfaces
    assert len(interfaces) > 50


def test_a_port_that_is_not_listed_has_the_state_of_the_truth(lab: Lab) -> None:
    hosts = {address: host for host in lab.truth.hosts.values() for address in host.addresses}
    results = probe(lab, connect=[[address, UNLISTED_PORT] for address in hosts])["connect"]
    wrong = {
        address: outcome
        for (address, host), (outcome, _) in zip(hosts.items(), results, strict=True)
        if outcome not in OUTCOME[host.unlisted]
    }
    assert wrong == {}


def test_udp_services_answer_in_their_protocol(lab: Lab) -> None:
    name = dns.message.make_query(lab.truth["udp1"].fqdn, "A").to_wire().hex()
    time_request = "e3" + "00" * 47
    # RFC 1157: GetRequest of sysObjectID.0 in the community "public"
    snmp = "302902010004067075626c6963a01c020400000001020100020100300e300c06082b060102010102000500"
    missing_file = "0001" + b"missing\0octet\0".hex()
    answers = probe(
        lab,
        ask=[
            ("10.77.1.1", 53, name),
            ("fd77:1::13", 53, name),
            ("10.77.1.19", 123, time_request),
            ("10.77.1.17", 161, snmp),
            ("fd77:1::11", 161, snmp),
            ("10.77.1.19", 69, missing_file),
        ],
    )["ask"]
    assert None not in answers
    resolver, bind, time, community, community_ipv6, transfer = (bytes.fromhex(answer) for answer in answers)
    assert bytes([10, 77, 1, 19]) in resolver
    assert bytes([10, 77, 1, 19]) in bind
    assert (time[0] & 7, len(time)) == (4, 48)  # RFC 5905: mode 4 is a server response
    assert b"public" in community
    assert b"public" in community_ipv6
    assert transfer[:2] == b"\x00\x05"  # RFC 1350: an error, because the file does not exist


def test_one_certificate_is_valid_and_one_expired(lab: Lab) -> None:
    endpoints = [endpoint for endpoint in lab.truth["web1"].endpoints if endpoint.certificate]
    shown = probe(lab, tls=[["10.77.1.10", endpoint.port] for endpoint in endpoints])["tls"]
    for endpoint, raw in zip(endpoints, shown, strict=True):
        loaded = x509.load_der_x509_certificate(bytes.fromhex(raw))
        assert endpoint.certificate is not None
        assert loaded.subject.rfc4514_string() == f"CN={endpoint.certificate.common_name}"
        assert (loaded.not_valid_after_utc < datetime.now(UTC)) is endpoint.certificate.expired
    assert [endpoint.port for endpoint in endpoints] == [443, 8443]


def test_unusual_hosts_behave_as_described(lab: Lab) -> None:
    results = probe(lab, connect=[["10.77.2.23", 80]] * 40 + [["10.77.2.25", 80]] * 5)["connect"]
    rate_limited = [outcome for outcome, _ in results[:40]]
    assert 1 <= rate_limited.count("open") < 40  # SYNs are sent again, so a few more than burst and rate allow
    assert all(seconds > 0.29 for outcome, seconds in results[40:] if outcome == "open"), results[40:]
    assert lab.truth["slow1"].behavior is Behavior.SLOW
    banners = probe(lab, greet=[["10.77.2.26", 2323], ["10.77.2.26", 9000]])["greet"]
    assert b"\x1b]0;mark-osc\x07" in bytes.fromhex(banners[0])
    assert b"A" * 1024 in bytes.fromhex(banners[1])


def test_the_fleet_has_exactly_the_open_ports_of_the_truth(lab: Lab) -> None:
    sample = list(lab.truth.fleet.values())[::40]
    interfaces = {(host.address, port): {"open"} for host in sample for port in host.tcp}
    interfaces |= {(host.address, UNLISTED_PORT): OUTCOME[host.unlisted] for host in sample}
    interfaces[next(a for a in ("10.78.0.1", "10.78.0.2", "10.78.0.3") if lab.truth.at(a) is None), 22] = {"silent"}
    results = probe(lab, connect=list(interfaces), seconds=3)["connect"]
    wrong = {
        interface: outcome
        for (interface, right), (outcome, _) in zip(interfaces.items(), results, strict=True)
        if outcome not in right
    }
    assert wrong == {}


def test_only_names_of_the_lab_resolve(lab: Lab) -> None:
    for host in lab.truth.hosts.values():
        found = lab.run("scan", [find("getent"), "ahosts", host.fqdn]).stdout
        assert {line.split()[0] for line in found.splitlines()} == set(host.resolves_to)
    assert lab.run("scan", [find("getent"), "ahosts", "example.org"], check=False).returncode == 2


def test_no_route_leads_out_of_the_lab(lab: Lab) -> None:
    assert "via 10.77.1.1" in lab.run("scan", [find("ip"), "route", "get", "192.0.2.1"]).stdout
    for router in ("r1", "r2"):
        assert lab.run(router, [find("ip"), "route", "get", "192.0.2.1"], check=False).returncode == 2
    for namespace in lab.namespaces():
        links = json.loads(lab.run(namespace, [find("ip"), "-j", "-d", "link", "show"]).stdout)
        kinds = {link.get("linkinfo", {}).get("info_kind", link["link_type"]) for link in links}
        assert kinds <= {"loopback", "veth", "bridge", "tun"}


def test_a_program_in_the_scanner_has_the_files_and_pipes_of_the_caller(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("seen")
    code = f"import sys; print(open({str(tmp_path / 'note')!r}).read(), sys.stdin.read())"
    assert lab.run("scan", [sys.executable, "-c", code], text_in="asked").stdout == "seen asked\n"
    addresses = lab.run("scan", [find("ip"), "-br", "addr", "show", "eth0"]).stdout
    assert f"{SCANNER_IPV4}/24" in addresses


def test_the_error_names_a_missing_namespace(lab: Lab) -> None:
    with pytest.raises(LabError, match="no namespace 'web9'; the lab has: dark1, "):
        lab.exec_argv("web9", ["true"])


def test_the_error_has_the_status_and_output_of_a_program(lab: Lab) -> None:
    complain = [sys.executable, "-S", "-c", "import sys; sys.exit('no such thing')"]
    with pytest.raises(LabError, match="in scan ended with 1: no such thing"):
        lab.run("scan", complain)
    assert lab.run("scan", complain, check=False).returncode == 1
