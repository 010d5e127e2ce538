"""Measure the cost of a result in tokens (four characters each), compared with the normal output of nmap.

Text and structured content are counted together. The scans run in the lab, with the server in the namespace of the
scanner. The benchmark checks that nothing is lost: it compares results with the normal output of nmap and, for the
fleet, with the truth of the lab.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench.result import Result
from bench.stdio import MODULE, Session, child_environment
from bench.tokens import result_tokens
from mcp_server.api import views
from mcp_server.model.digest import HostDigest
from mcp_server.model.host import Host, Port
from mcp_server.model.run import Actor, Coverage, Outcome, PortsTested, Risk, Run
from mcp_server.pipeline.respond import CallResult
from tests.lab.network.fleet import FleetHost, make_fleet
from tests.lab.network.handle import Lab
from tests.unit.notation import read_addresses, read_cut, read_ports

RATIO: Final = 0.25
TOKENS: Final = 3000
FLEET: Final = 2000
SEGMENT: Final = "10.77.1.0/24"
_CALL_SEC: Final = 120.0
_OURS: Final = ("-oX", "-", "--noninteractive", "--no-stylesheet", "--stats-every", "2s")
_POINTER: Final = re.compile(r"#(\d+)")
_OPEN_LINE: Final = re.compile(r"(?P<port>\d+)/tcp +open +(?P<service>\S+) *(?P<version>.*)")


def measure() -> list[Result]:
    """Measure the two fullest /24s of the lab, and 2,000 hosts."""
    with Lab.start(fleet=FLEET) as lab:
        real = _compare(lab, SEGMENT, {"target": SEGMENT})
        busiest = lab.truth.busiest_network()
        fleet = _compare(lab, busiest, {"target": busiest, "mode": "ports"})
    return [real, fleet, _fleet_of_2000()]


def _compare(lab: Lab, name: str, arguments: dict[str, Any]) -> Result:
    """Run one call, and at the same time nmap with the same argv and its normal output; neither is timed."""
    with tempfile.TemporaryDirectory(prefix="mcp-bench-") as folder, ThreadPoolExecutor(1) as pool:
        session = Session(lab.exec_argv("scan", MODULE), child_environment(folder, "RFC1918"))
        try:
            session.open()
            calling = pool.submit(session.call, "nmap", **arguments)
            argv = _argv_of(Path(folder))
            normal = lab.run("scan", [word for word in argv if word not in _OURS], timeout=_CALL_SEC).stdout
            answer = calling.result(timeout=_CALL_SEC)
        finally:
            session.close()
    lost = list(_lost(normal, answer["structuredContent"]))
    tokens, nmap_tokens = result_tokens(answer), len(normal) / 4
    up, ports = answer["structuredContent"]["up"], answer["structuredContent"]["open_ports"]
    return Result(
        f"result, {name} {arguments.get('mode', 'services')}",
        f"{tokens:,.0f} tokens",
        f"ratio <= {RATIO}, none lost",
        tokens <= RATIO * nmap_tokens and not lost,
        floor=f"{nmap_tokens:,.0f} tokens",
        ratio=tokens / nmap_tokens,
        notes=(f"{up} hosts, {ports} open ports; lost: {', '.join(lost) or 'nothing'}",),
    )


def _argv_of(state: Path) -> tuple[str, ...]:
    """Wait for the argv on the audit log and return it."""
    log = state / "audit.jsonl"
    until = time.monotonic() + _CALL_SEC
    while time.monotonic() < until:
        for line in log.read_text().splitlines() if log.exists() else ():
            if "argv" in (record := json.loads(line)):
                return tuple(record["argv"])
        time.sleep(0.02)
    raise TimeoutError("The audit log has no decision on the call.")


def _lost(normal: str, body: dict[str, Any]) -> Iterator[str]:
    """Yield the open ports and versions that are in the normal output of nmap but not in the result."""
    texts = body.get("from_target", {}).get("version_probe", {})
    hosts = {key: _POINTER.sub(lambda match: f" {texts[match[1]]}", line) for key, line in body["hosts"].items()}
    shown = {str(address): line for key, line in hosts.items() for address in read_addresses(key)}
    for block in normal.split("Nmap scan report for ")[1:]:
        address, *lines = block.splitlines()
        parts = shown.get(address, "").split("; ")
        for match in filter(None, map(_OPEN_LINE.match, lines)):
            # Text in brackets is neither product nor version.
            version = match["version"].partition(" (")[0].strip()
            port = ("tcp", int(match["port"]))
            if not any(port in read_ports(part) and version in part for part in parts):
                yield f"{address} {match[0].strip()}"


def _fleet_of_2000() -> Result:
    """Measure the fleet of the lab as a scan would report it; every host shown must have exactly its open ports."""
    fleet = make_fleet(FLEET)
    digest = HostDigest()
    for host in fleet.values():
        digest.add(_observed(host))
    run = Run(
        id="r_" + "0" * 24,
        tool="nmap",
        parameters={},
        actor=Actor("bench", "bench"),
        correlation_id="bench",
        scope_hash="",
        risk=Risk.SCAN,
        argv=(),
        started=datetime.now(UTC),
        outcome=Outcome.COMPLETED,
        vantage="local",
        enforcement="argument",
        coverage=Coverage(
            ("10.78.0.0/16",),
            65536,
            looked_at=65536,
            up=FLEET,
            down=65536 - FLEET,
            not_looked_at_count=0,
            complete=True,
            ports=(PortsTested("tcp", "1-1000", 1000, "syn"),),
        ),
    )
    answer = CallResult(run, digest)
    body, view = views.structured(answer)
    text = views.text(answer, view, full=False)
    tokens = result_tokens({"structuredContent": body, "content": [{"text": text}]})
    shown, wrong = 0, 0
    for group in body["groups"]:
        addresses, _ = read_cut(group["addresses"])
        ports = read_ports(group["ports"])
        shown += len(addresses)
        wrong += sum(ports != {("tcp", port) for port in fleet[str(address)].tcp} for address in addresses)
    return Result(
        f"result with {FLEET} mixed hosts",
        f"{tokens:,.0f} tokens",
        f"<= {TOKENS}, none wrong",
        tokens <= TOKENS and not wrong and shown + body.get("omitted", 0) == FLEET,
        notes=(f"{len(body['groups'])} port sets, {shown} addresses named, {body.get('omitted', 0)} by page only",),
    )


def _observed(host: FleetHost) -> Host:
    return Host(host.address, "up", ports=tuple(Port("tcp", port, "open", "syn-ack") for port in host.tcp))
