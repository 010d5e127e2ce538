"""nmap through the complete pipeline, from an MCP client in the scanner's namespace, compared with the lab's truth."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters

from mcp_server.model.encoding import decode
from mcp_server.model.host import Host
from tests.lab.guarded_server import ADDRESSES
from tests.lab.network.handle import Lab
from tests.lab.truth_compare import assert_true, invented_hosts, missing_hosts
from tests.support.interfaces import ROOT

SEGMENT_1 = "10.77.1.0/24"
SCANNERS = {"10.77.1.250", ADDRESSES[0]}
"""The addresses of the namespace that represents the host, and of the guarded one."""
PORTS_1 = (21, 22, 25, 53, 80, 139, 199, 443, 445, 2222, 3306, 5432, 6379, 8080, 8443)
PORTS_2 = (22, 80, 2323, 8080, 9000)


@dataclass(frozen=True, slots=True)
class Scan:
    """The answer to one call: the structure and text that the agent got, and every host of the record."""

    structure: dict[str, Any]
    text: str
    is_error: bool
    run: dict[str, Any]
    hosts: list[Host]

    def at(self, address: str) -> Host:
        return next(host for host in self.hosts if host.address == address)


@asynccontextmanager
async def scanner(lab: Lab) -> AsyncIterator[Client]:
    argv = lab.exec_argv("scan", [sys.executable, "-m", "tests.lab.guarded_server"])
    async with Client(StdioServerParameters(command=argv[0], args=argv[1:], env=dict(os.environ), cwd=ROOT)) as client:
        yield client


async def scan(lab: Lab, **arguments: Any) -> Scan:
    """Call nmap in the lab and read all pages of its record."""
    async with scanner(lab) as client:
        result = await client.call_tool("nmap", arguments)
        structure = result.structured_content or {}
        text = "\n".join(getattr(block, "text", "") for block in result.content)
        assert "run_id" in structure, text
        hosts: list[Host] = []
        run: dict[str, Any] = {}
        uri: str | None = f"run://{structure['run_id']}"
        while uri:
            page = json.loads(getattr((await client.read_resource(uri)).contents[0], "text", "{}"))
            run = page["run"]
            hosts += [decode(Host, json.dumps(host)) for host in page["hosts"]]
            uri = page.get("next")
    return Scan(structure, text, result.is_error, run, hosts)


@pytest.fixture(scope="module")
def segment_1(lab: Lab) -> Scan:
    arguments = {"target": SEGMENT_1, "mode": "services", "ports": ",".join(map(str, PORTS_1)), "timing": 4}
    return asyncio.run(scan(lab, **arguments))


def test_every_open_port_of_the_real_services_is_found_with_its_version(lab: Lab, segment_1: Scan) -> None:
    live = [address for address in lab.truth.live(SEGMENT_1) if address not in SCANNERS]
    others = [host.address for host in segment_1.hosts if host.address not in live]
    assert set(others) <= SCANNERS, f"expected no host that the lab does not have, found {others}"
    hosts = [host for host in segment_1.hosts if host.address not in SCANNERS]
    assert_true(lab.truth, hosts, addresses=live, tested=PORTS_1, services=True)


def test_the_segment_is_covered_completely(segment_1: Scan) -> None:
    coverage = segment_1.run["coverage"]
    assert not segment_1.is_error, segment_1.text
    assert segment_1.run["outcome"] == "completed"
    assert (coverage["planned"], coverage["looked_at"], coverage["not_looked_at_count"]) == (256, 256, 0)
    assert coverage["up"] + coverage["down"] == 256
    assert [ports["count"] for ports in coverage["ports"]] == [len(PORTS_1)]


def test_the_answer_to_the_agent_has_every_open_port_and_version(segment_1: Scan) -> None:
    sent = json.dumps(segment_1.structure)
    for host in segment_1.hosts:
        for port in host.ports:
            if port.state == "open":
                assert str(port.number) in segment_1.structure["hosts"][host.address]
                if port.service:
                    probe = port.service.from_target.version_probe
                    assert probe.version in sent
                    assert probe.product in sent


async def test_hosts_on_the_same_link_are_discovered_by_arp(lab: Lab) -> None:
    found = await scan(lab, target=SEGMENT_1, mode="discover")
    # A macvlan device of a host cannot reach that host.
    assert set(missing_hosts(lab.truth, found.hosts, SEGMENT_1)) <= SCANNERS
    assert set(invented_hosts(lab.truth, found.hosts, SEGMENT_1)) <= SCANNERS
    assert found.at("10.77.1.10").mac.lower() == lab.truth["web1"].mac
    assert found.at("10.77.1.10").reason == "arp-response"


async def test_ipv6_addresses_of_a_host_have_the_same_ports(lab: Lab) -> None:
    names = ("web1", "ssh1", "redis1", "dual1", "v6only", "web2")
    targets = [lab.truth[name].ipv6 for name in names]
    tested = (22, 80, 443, 2222, 6379, 8080, 8443)
    found = await scan(lab, target=targets, ports=",".join(map(str, tested)), timing=4)
    assert_true(lab.truth, found.hosts, addresses=targets, tested=tested, services=True)


async def test_udp_services_are_found(lab: Lab) -> None:
    targets = ["10.77.1.1", "10.77.1.17", "10.77.1.19"]
    arguments = {"target": targets, "transport": "udp", "timing": 4}
    found = await scan(lab, mode="services", ports="53,123,161", **arguments)
    assert_true(lab.truth, found.hosts, addresses=targets, tested=(53, 123, 161), transport="udp", services=True)
    # TFTP answers from another port, so a version scan would try it for minutes.
    found = await scan(lab, mode="ports", ports="69", **arguments)
    assert_true(lab.truth, found.hosts, addresses=targets, tested=(69,), transport="udp")


async def test_names_are_resolved_once_and_scanned_by_address(lab: Lab) -> None:
    found = await scan(lab, target="web1.lab.internal", mode="ports", ports="80,443,8443,22")
    assert [host.address for host in found.hosts] == ["10.77.1.10"]
    assert "web1.lab.internal" in found.at("10.77.1.10").names
    assert found.run["argv"][-1] == "10.77.1.10"
    assert_true(lab.truth, found.hosts, addresses=["10.77.1.10"], tested=(80, 443, 8443, 22))
    ipv6 = {"target": "web1.lab.internal", "mode": "ports", "ports": "80,443", "extra_args": "-6"}
    found = await scan(lab, **ipv6)
    assert_true(lab.truth, found.hosts, addresses=["fd77:1::a"], tested=(80, 443))


async def test_unusual_hosts_are_reported_correctly(lab: Lab) -> None:
    names = ("drop1", "dark1", "rej1", "rst1", "web2", "tarpit")
    targets = [address for name in names if (address := lab.truth[name].ipv4)]
    found = await scan(lab, target=targets, mode="ports", ports=",".join(map(str, PORTS_2)), ping=False, timing=4)
    assert_true(lab.truth, found.hosts, addresses=targets, tested=PORTS_2)
    rejected = found.at("10.77.2.22")
    reasons = {port.reason for port in rejected.ports if port.state == "filtered"}
    reasons |= {extra.reason for extra in rejected.extra_ports}
    assert any("admin-prohibited" in reason for reason in reasons), reasons
    assert found.structure["coverage"]["looked_at"] == len(targets)


async def test_a_silent_host_is_down_unless_discovery_is_off(lab: Lab) -> None:
    found = await scan(lab, target="10.77.2.21", mode="ports", ports="22")
    assert (found.structure["up"], found.structure["open_ports"]) == (0, 0)
    assert found.run["coverage"]["down"] == 1


async def test_slow_and_rate_limited_hosts_keep_their_open_ports(lab: Lab) -> None:
    targets = ["10.77.2.23", "10.77.2.25"]
    found = await scan(lab, target=targets, mode="ports", ports="22,80,443")
    assert_true(lab.truth, found.hosts, addresses=targets, tested=(22, 80, 443))


async def test_a_host_that_timed_out_is_not_reported_as_closed(lab: Lab) -> None:
    found = await scan(
        lab, target=["10.77.2.21", "10.77.2.27"], mode="ports", ports="1-2000", ping=False,
        host_timeout_sec=2, timing=3,
    )  # fmt: skip
    coverage = found.run["coverage"]
    assert found.run["outcome"] == "partial"
    assert coverage["not_looked_at"] == ["10.77.2.21"]
    assert (coverage["looked_at"], coverage["not_looked_at_count"]) == (1, 1)
    assert found.structure["coverage"]["not_looked_at"] == 1
    dark = [host for host in found.hosts if host.address == "10.77.2.21"]
    assert all(host.timed_out and not host.ports and not host.extra_ports for host in dark), dark


async def test_hostile_banners_reach_the_agent_escaped_and_only_as_data(lab: Lab) -> None:
    # A version scan of port 2323 takes most of a minute. The banner script gets the same text in seconds.
    services = await scan(lab, target="10.77.2.26", mode="services", ports="80,9000")
    found = await scan(lab, target="10.77.2.26", mode="ports", ports="80,2323,9000", scripts=["banner"])
    scripts = [script for port in found.at("10.77.2.26").ports for script in port.scripts]
    assert any(script.from_target[f"script:{script.id}"] for script in scripts), f"no banner in {scripts}"
    assert {port.number for port in found.at("10.77.2.26").ports if port.state == "open"} == {80, 2323, 9000}
    for answer in (services, found):
        values = [answer.text, *strings(answer.structure), *strings(answer.run), *map(repr, answer.hosts)]
        for value in values:
            assert not any(ord(char) < 32 and char != "\n" for char in value), repr(value)
            assert "\x7f" not in value
        assert sum(map(len, values)) < 40_000, "the result contains the 64 KiB banner"


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.items() for part in item for text in strings(part)]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


async def test_scripts_and_certificates_are_reported(lab: Lab) -> None:
    found = await scan(lab, target="10.77.1.10", mode="ports", ports="80,443", scripts=["http-title", "ssl-cert"])
    ports = {port.number: port for port in found.at("10.77.1.10").ports}
    assert "http-title" in {script.id for script in ports[80].scripts}
    certificate = next(
        script.from_target["script:ssl-cert"] for script in ports[443].scripts if script.id == "ssl-cert"
    )
    assert "web1.lab.internal" in certificate


async def test_the_operating_system_is_guessed(lab: Lab) -> None:
    found = await scan(lab, target="10.77.1.20", mode="os", ports="22,80,81")
    names = [match.name for match in found.at("10.77.1.20").os]
    assert any("Linux" in name for name in names), names


async def test_a_name_outside_the_scope_is_refused(lab: Lab) -> None:
    async with scanner(lab) as client:
        for target in ("8.8.8.8", "nowhere.lab.internal", "web1.example.com", "10.77.1.0/7"):
            result = await client.call_tool("nmap", {"target": target})
            assert result.is_error
            assert (result.structured_content or {})["outcome"] == "refused"
