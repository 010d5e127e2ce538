"""Compare the result of a scan with the truth.

`differences` returns one readable line for each fault; `assert_true` raises an AssertionError with these lines. Only
tested addresses and ports are compared. They are parameters, because a result does not list them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator

from mcp_server.model.host import Host, Port
from tests.lab.network.endpoint import Endpoint
from tests.lab.network.fleet import FleetHost
from tests.lab.network.truth import Behavior, LabHost, Truth

# If packets are lost or delayed on purpose, a closed port may correctly be reported as filtered.
_MAY_LOSE_ANSWERS = {Behavior.RATE_LIMITED, Behavior.SLOW}


def expected_open(truth: Truth, address: str, transport: str, tested: Collection[int]) -> dict[int, Endpoint]:
    """Return the tested ports of an address that are open, by number; empty if no host has the address.

    The tarpit is open on every port. Its endpoints have no service name, so services are not compared.
    """
    host = truth.at(address)
    if host is None:
        return {}
    is_ipv6 = ipaddress.ip_address(address).version == 6
    found = {e.port: e for e in host.endpoints if e.transport == transport and (e.ipv6 or not is_ipv6)}
    if host.unlisted == "open" and transport == "tcp":
        found |= {port: Endpoint("tcp", port, "") for port in tested}
    return {port: endpoint for port, endpoint in found.items() if port in tested}


def differences(
    truth: Truth,
    hosts: Iterable[Host],
    *,
    addresses: Collection[str],
    tested: Collection[int],
    transport: str = "tcp",
    services: bool = False,
) -> list[str]:
    """Return every difference between a scan of ``tested`` ports on ``addresses`` and the truth, sorted.

    These are missing and invented open ports, wrong states of ports that are not open (TCP), hosts that were not
    requested or were reported twice, and hosts that timed out. With ``services`` (after a version scan), names,
    products and versions are compared too.
    """
    seen: dict[str, Host] = {}
    faults: list[str] = []
    for host in hosts:
        if host.address not in addresses:
            faults.append(f"{host.address}: reported, and was not a target")
        elif host.address in seen:
            faults.append(f"{host.address}: reported twice")
        seen[host.address] = host
    for address in addresses:
        expected = expected_open(truth, address, transport, tested)
        reported = seen.get(address)
        faults += (f"{address} {line}" for line in _host_faults(truth.at(address), reported, expected, transport))
        if services and reported is not None:
            faults += (f"{address} {line}" for line in _service_faults(reported, expected, transport))
    return sorted(faults)


def assert_true(
    truth: Truth,
    hosts: Iterable[Host],
    *,
    addresses: Collection[str],
    tested: Collection[int],
    transport: str = "tcp",
    services: bool = False,
) -> None:
    """Raise AssertionError with all `differences`, if there are any."""
    faults = differences(truth, hosts, addresses=addresses, tested=tested, transport=transport, services=services)
    if faults:
        raise AssertionError(f"{len(faults)} difference(s) from the truth:\n  " + "\n  ".join(faults))


def missing_hosts(truth: Truth, hosts: Iterable[Host], network: str) -> list[str]:
    """Return the live addresses of a network that a host discovery did not report as up."""
    up = {host.address for host in hosts if host.state == "up"}
    return sorted(set(truth.live(network)) - up)


def invented_hosts(truth: Truth, hosts: Iterable[Host], network: str) -> list[str]:
    """Return the addresses that were reported as up although no host has them."""
    return sorted({host.address for host in hosts if host.state == "up"} - set(truth.live(network)))


def _host_faults(
    lab_host: LabHost | FleetHost | None, reported: Host | None, expected: dict[int, Endpoint], transport: str
) -> Iterator[str]:
    if reported is None:
        if expected:
            yield f"not reported; open ports: {_list(expected.values())}"
        return
    if reported.timed_out:
        yield "timed out: not all ports were scanned"
    ports = {port.number: port for port in reported.ports if port.transport == transport}
    for number, endpoint in expected.items():
        state = ports[number].state if number in ports else "not listed"
        if state not in {"open", endpoint.state}:
            yield f"{endpoint.key}: is {endpoint.state} ({endpoint.service or 'tarpit'}), reported {state}"
    for number in ports.keys() - expected.keys():
        if ports[number].state == "open":
            yield f"{number}/{transport}: reported open, but is not"
    if transport == "tcp" and lab_host is not None:
        yield from _state_faults(lab_host, reported, ports, expected)


def _state_faults(
    lab_host: LabHost | FleetHost, reported: Host, ports: dict[int, Port], expected: dict[int, Endpoint]
) -> Iterator[str]:
    right = {lab_host.unlisted}
    if isinstance(lab_host, LabHost) and lab_host.behavior in _MAY_LOSE_ANSWERS:
        right.add("filtered")
    for number in ports.keys() - expected.keys():
        if ports[number].state not in right | {"open"}:
            yield f"{number}/tcp: is {lab_host.unlisted}, reported {ports[number].state}"
    for extra in reported.extra_ports:
        if extra.count and extra.state not in right:
            yield f"the {extra.count} ports not listed: are {lab_host.unlisted}, reported {extra.state}"


def _service_faults(reported: Host, expected: dict[int, Endpoint], transport: str) -> Iterator[str]:
    for port in reported.ports:
        endpoint = expected.get(port.number)
        if endpoint is None or not endpoint.service or port.transport != transport or port.state != "open":
            continue
        if port.service is None:
            yield f"{endpoint.key}: is {endpoint.service}, reported without a service"
            continue
        for what, true, reported_value in (
            ("service", endpoint.service, port.service.name),
            ("tunnel", endpoint.tunnel, port.service.tunnel),
            ("product", endpoint.product, port.service.from_target.version_probe.product),
            ("version", endpoint.version, port.service.from_target.version_probe.version),
        ):
            if true is not None and reported_value != true:
                yield f"{endpoint.key}: {what} is {true!r}, reported {reported_value!r}"


def _list(endpoints: Iterable[Endpoint]) -> str:
    keys = [endpoint.key for endpoint in endpoints]
    return ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
