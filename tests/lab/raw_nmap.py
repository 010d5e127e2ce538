"""Run nmap without this project and parse its XML with the standard library, to check the project's parser."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from mcp_server.model.host import ExtraPorts, Host, Port
from tests.lab.network.handle import Lab
from tests.lab.network.programs import find
from tests.support.services import make_service


def nmap(lab: Lab, arguments: Sequence[str], *, timeout: float = 100.0) -> list[Host]:
    """Run nmap in the namespace of the scanner and return its hosts."""
    done = lab.run("scan", [find("nmap"), "-n", "-oX", "-", *arguments], timeout=timeout)
    return [_host(element) for element in ET.fromstring(done.stdout).iter("host")]  # noqa: S314 - output of the local nmap


def _host(element: ET.Element) -> Host:
    address = next(a.get("addr", "") for a in element.iter("address") if a.get("addrtype") != "mac")
    return Host(
        address=address,
        state=_attribute(element, "status", "state"),
        ports=tuple(_port(port) for port in element.iter("port")),
        extra_ports=tuple(
            ExtraPorts(extra.get("state", ""), int(extra.get("count", "0"))) for extra in element.iter("extraports")
        ),
        timed_out=element.get("timedout") == "true",
    )


def _port(element: ET.Element) -> Port:
    found = element.find("service")
    service = None
    if found is not None:
        service = make_service(
            name=found.get("name", ""),
            product=found.get("product", ""),
            version=found.get("version", ""),
            tunnel=found.get("tunnel", ""),
        )
    return Port(
        transport=element.get("protocol", ""),
        number=int(element.get("portid", "0")),
        state=_attribute(element, "state", "state"),
        service=service,
    )


def _attribute(element: ET.Element, child: str, name: str) -> str:
    found = element.find(child)
    return "" if found is None else found.get(name, "")
