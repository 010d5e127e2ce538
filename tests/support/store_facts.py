"""Makes runs and hosts for tests."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from mcp_server.model.host import ExtraPorts, Host, OsMatch, Port, Script
from mcp_server.model.run import Actor, Coverage, Outcome, PortsTested, Raw, Risk, Run
from tests.support.services import make_service

NGINX = make_service("http", "nginx", "1.22.1", method="probed", conf=10, cpe=("cpe:/a:igor_sysoev:nginx:1.22.1",))


def make_run(run_id: str, **changes: Any) -> Run:
    """Return a run that is about to start."""
    run = Run(
        id=run_id,
        tool="nmap",
        parameters={"target": "10.0.0.0/30", "mode": "services"},
        actor=Actor("alice", "stdio", "test/1"),
        correlation_id="call-1",
        scope_hash="f00d",
        risk=Risk.SCAN,
        argv=("/usr/bin/nmap", "-n", "-oX", "-", "10.0.0.0/30"),
        started=datetime.now(UTC),
        outcome=Outcome.RUNNING,
        vantage="local",
        enforcement="argument",
        coverage=Coverage.nothing_yet(("10.0.0.0/30",), 4, (PortsTested("tcp", "1-1000", 1000, "syn"),)),
    )
    return replace(run, **changes)


def ended(run: Run, **changes: Any) -> Run:
    """Return the run, completed."""
    return replace(run, **{"outcome": Outcome.COMPLETED, "ended": datetime.now(UTC), "returncode": 0, **changes})


def full_run(run_id: str) -> Run:
    """Return a run in which no field has its default value."""
    return ended(
        make_run(run_id),
        outcome=Outcome.PARTIAL,
        tool_version="7.93",
        vantage="dmz",
        enforcement="namespace",
        returncode=124,
        error_code="timeout",
        error_message="the run took longer than 10 s",
        coverage=Coverage(
            ("10.0.0.0/30", "fd00::1"),
            5,
            ports=(PortsTested("tcp", "1-1000", 1000, "syn"), PortsTested("udp", "53", 1, "udp")),
            looked_at=3,
            up=2,
            down=1,
            not_looked_at=("10.0.0.3", "fd00::1"),
            not_looked_at_count=2,
            complete=False,
        ),
        raw=Raw("ab" * 32, 1000, 100, truncated=True),
        from_target={"stderr": "warning: é \u200b"},
        counts={"hosts_up": 2, "open_ports": 3},
        metadata={"warnings": ["slow"], "nested": {"a": 1}},
    )


def make_host(address: str, *ports: Port) -> Host:
    """Return a host that is up, with the given ports or one open web server."""
    return Host(address, "up", "echo-reply", ports=ports or (Port("tcp", 80, "open", "syn-ack", NGINX),))


def full_host(address: str) -> Host:
    """Return a host in which no field has its default value."""
    return Host(
        address,
        "up",
        "arp-response",
        names=("web.lab.internal", "www.lab.internal"),
        mac="02:00:00:00:00:01",
        vendor="Acme",
        ports=(
            Port(
                "tcp",
                443,
                "open",
                "syn-ack",
                make_service(
                    "http",
                    "nginx",
                    "1.22",
                    extra_info="Debian",
                    tunnel="ssl",
                    hostname="web",
                    os_type="Linux",
                    method="probed",
                    conf=10,
                    cpe=("cpe:/a:x", "cpe:/o:y"),
                ),
                (Script.of("http-title", "Title: \\u202e"),),
            ),
            Port("udp", 53, "open|filtered"),
        ),
        extra_ports=(ExtraPorts("closed", 998, "reset"), ExtraPorts("filtered", 2)),
        os=(OsMatch("Linux 5.x", 96, ("cpe:/o:linux:linux_kernel:5",)), OsMatch("Linux 6.x", 90)),
        scripts=(Script.of("smb-os-discovery", "none"),),
        timed_out=True,
        distance=0,
        rtt_ms=0.0,
    )
