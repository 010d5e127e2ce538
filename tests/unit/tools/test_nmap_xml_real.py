"""The parser on real output of nmap, over loopback and in a network namespace."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import Any

import pytest

from mcp_server.base_tool import Parsed
from mcp_server.model.encoding import encode
from mcp_server.model.host import Host, Port, Script
from mcp_server.model.run import PortsTested
from mcp_server.model.target import Target, Targets
from mcp_server.tools.nmap.xml import NmapXmlParser

SSH_BANNER = b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n"
EVIL = '\x1b[31m\x1b]0;pwn\x07"/><host>&lt;\u202egnp\U000e0041\u200b\x00; 22/tcp ssh'
EVIL_FTP = f"220 ProFTPD 1.3.5\x1b[31m Server ({EVIL}) [10.0.0.1]\r\n".encode() + b"\xff\xfe\x80raw\r\n"
EVIL_PAGE = f"<html><head><title>{EVIL.replace('<', '')}</title></head></html>".encode()
EVIL_HTTP = (
    f"HTTP/1.0 200 OK\r\nServer: nginx/1.22.1{EVIL}\r\nContent-Type: text/html; charset=utf-8\r\n"
    f"Content-Length: {len(EVIL_PAGE)}\r\n\r\n"
).encode() + EVIL_PAGE

Conversation = Callable[[socket.socket], None]


def says(banner: bytes) -> Conversation:
    """Send first, then wait until the client disconnects."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(banner)
        while connection.recv(4096):
            pass

    return talk


def answers(reply: bytes) -> Conversation:
    """Answer after the client has sent something."""

    def talk(connection: socket.socket) -> None:
        if connection.recv(4096):
            connection.sendall(reply)

    return talk


@contextlib.contextmanager
def listener(talk: Conversation) -> Iterator[int]:
    """A small real server on 127.0.0.1. Yields its port."""

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(20)
            talk(connection)

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        # Closing alone leaves accept() waiting.
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def targets(*networks: str) -> Targets:
    return Targets(tuple(Target(text, (ip_network(text),)) for text in networks))


def command(args: str, *networks: str) -> list[str]:
    return ["nmap", "-n", *args.split(), "-oX", "-", *targets(*networks).canonical()]


def scan(args: str, *networks: str, prefix: tuple[str, ...] = ()) -> tuple[list[Host], Parsed]:
    """Run nmap to its end and parse its output as it arrives."""
    parser = NmapXmlParser(targets(*networks), ())
    hosts: list[Host] = []
    with subprocess.Popen(
        [*prefix, *command(args, *networks)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    ) as process:
        assert process.stdout is not None
        while data := process.stdout.read(65536):
            hosts += parser.feed(data)
    assert process.returncode == 0
    return hosts, parser.close()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_a_service_is_read_with_its_version() -> None:
    closed = closed_port()
    with listener(says(SSH_BANNER)) as port:
        hosts, parsed = scan(f"-sT -sV -p {port},{closed}", "127.0.0.1/32")
    assert parsed.complete
    assert parsed.version.startswith("7.")
    found = {seen.number: seen for seen in hosts[0].ports}
    assert (found[closed].state, found[closed].reason) == ("closed", "conn-refused")
    service = found[port].service
    assert service is not None
    probe = service.from_target.version_probe
    assert (service.name, probe.product, probe.version) == ("ssh", "OpenSSH", "9.2p1 Debian 2+deb12u3")
    assert (service.method, service.conf) == ("probed", 10)
    assert "cpe:/a:openbsd:openssh:9.2p1" in probe.cpe
    assert hosts[0].rtt_ms is not None
    assert [(tested.transport, tested.count, tested.method) for tested in parsed.coverage.ports] == [
        ("tcp", 2, "connect")
    ]


def test_a_host_sweep_finds_every_loopback_address() -> None:
    hosts, parsed = scan("-sn", "127.0.0.0/28")
    assert [host.address for host in hosts] == [f"127.0.0.{octet}" for octet in range(16)]
    coverage = parsed.coverage
    assert (coverage.up, coverage.down, coverage.looked_at, coverage.complete) == (16, 0, 16, True)
    assert coverage.ports == ()


def test_ipv6_loopback_is_scanned() -> None:
    hosts, parsed = scan(f"-6 -sT -p {closed_port()}", "::1/128")
    assert [host.address for host in hosts] == ["::1"]
    assert parsed.coverage.complete


def test_ports_that_nmap_only_counts_are_kept_as_counts() -> None:
    with listener(says(SSH_BANNER)) as port:
        low = min(port, 65535 - 200)
        hosts, _ = scan(f"-sT -p {low}-{low + 200}", "127.0.0.1/32")
    counted = sum(extra.count for extra in hosts[0].extra_ports)
    assert counted + len(hosts[0].ports) == 201
    assert {(extra.state, extra.reason) for extra in hosts[0].extra_ports} == {("closed", "conn-refused")}
    assert port in {seen.number for seen in hosts[0].ports if seen.state == "open"}


def test_hosts_that_timed_out_were_not_looked_at() -> None:
    hosts, parsed = scan("-sT -Pn -p 1-50 --scan-delay 50ms --host-timeout 200ms", "127.0.0.0/30")
    assert all(host.timed_out and not host.ports for host in hosts), hosts
    coverage = parsed.coverage
    assert (coverage.up, coverage.down, coverage.looked_at, coverage.complete) == (0, 0, 0, False)
    assert coverage.not_looked_at == ("127.0.0.0", "127.0.0.1", "127.0.0.2", "127.0.0.3")
    assert parsed.complete


def test_the_output_of_a_script_is_read() -> None:
    page = b"<html><head><title>the title</title></head></html>"
    reply = b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s" % (len(page), page)
    with listener(answers(reply)) as port:
        hosts, _ = scan(f"-sT -Pn --script +http-title -p {port}", "127.0.0.1/32")
    assert Script.of("http-title", "the title") in hosts[0].ports[0].scripts


def test_a_killed_run_keeps_the_hosts_found_before() -> None:
    parser = NmapXmlParser(targets("127.0.0.0/28"), (PortsTested("tcp", "1-3", 3, "connect"),))
    hosts: list[Host] = []
    args = command("-sT -Pn -p 1-3 --scan-delay 100ms --max-hostgroup 1", "127.0.0.0/28")
    with subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        while len(hosts) < 2 and (data := process.stdout.read(65536)):
            hosts += parser.feed(data)
        progress = parser.progress
        process.kill()
        while data := process.stdout.read(65536):
            hosts += parser.feed(data)
    assert 2 <= len(hosts) < 16
    parsed = parser.close()
    coverage = parsed.coverage
    assert not parsed.complete
    assert parsed.error == "the closing statistics are missing"
    assert (coverage.up, coverage.down, coverage.planned) == (len(hosts), 0, 16)
    assert coverage.not_looked_at == tuple(f"127.0.0.{octet}" for octet in range(len(hosts), 16))
    assert progress is not None
    assert 2 / 16 <= progress < 1
    assert all(port.state == "closed" for host in hosts for port in host.ports)


def test_progress_is_reported_while_nmap_works() -> None:
    parser = NmapXmlParser(targets("127.0.0.1/32"), ())
    seen: list[float] = []
    args = command("-sT -Pn -p 1-10 --scan-delay 100ms --stats-every 200ms", "127.0.0.1/32")
    with subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        while data := process.stdout.read(65536):
            parser.feed(data)
            if parser.progress is not None:
                seen.append(parser.progress)
    assert seen == sorted(seen)
    assert len({value for value in seen if 0 < value < 0.99}) >= 2
    assert seen[-1] == 1.0


@pytest.mark.parametrize(
    ("talk", "arguments"),
    [
        (says(EVIL_FTP), "-sV --script banner"),
        (answers(EVIL_HTTP), "--script +http-title,+http-server-header"),
    ],
)
def test_a_hostile_banner_is_only_text(talk: Conversation, arguments: str) -> None:
    with listener(talk) as port:
        hosts, parsed = scan(f"-sT -Pn --host-timeout 60s {arguments} -p {port}", "127.0.0.1/32")
    assert parsed.complete
    assert [host.address for host in hosts] == ["127.0.0.1"]
    assert [seen.number for seen in hosts[0].ports] == [port]
    texts = strings_of(hosts[0].ports[0])
    assert any("31m" in text for text in texts), (
        "expected the escaped banner in the result, without it the test checks nothing"
    )
    assert [text for text in texts if not text.isprintable()] == []
    assert not {char for text in texts for char in text} & set("\x1b\x07\x00\u202e\u200b\U000e0041")


def strings_of(port: Port) -> list[str]:
    """Every text of a port."""

    def texts(value: Any) -> list[str]:
        if isinstance(value, str):
            return [value]
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return [text for part in parts for text in texts(part)]

    return texts(encode(port))


def namespace(setup: str) -> tuple[str, ...]:
    """A command prefix that runs a command in a new network namespace, set up by a shell line."""
    user = () if os.geteuid() == 0 else ("--map-root-user",)
    return ("unshare", *user, "--net", "sh", "-ec", f'{setup}\nexec "$@"', "sh")


LINK = """
ip link set lo up
ip link add v0 type veth peer name v1
ip addr add 10.9.0.1/24 dev v0
ip link set v0 up
ip link set v1 up
"""


def test_unanswered_addresses_of_a_finished_sweep_are_down() -> None:
    began = time.monotonic()
    hosts, parsed = scan("-sn", "10.9.0.0/29", prefix=namespace(LINK))
    assert time.monotonic() - began < 30
    assert [host.address for host in hosts] == ["10.9.0.1"]
    coverage = parsed.coverage
    assert (coverage.up, coverage.down, coverage.looked_at, coverage.complete) == (1, 7, 8, True)
    named, verbose = scan("-sn -v", "10.9.0.0/29", prefix=namespace(LINK))
    assert len(named) == 8
    assert verbose.coverage == coverage


def test_addresses_without_a_route_were_not_looked_at() -> None:
    hosts, parsed = scan("-sn", "10.9.0.0/30", "127.0.0.1/32", prefix=namespace("ip link set lo up"))
    assert [host.address for host in hosts] == ["127.0.0.1"]
    coverage = parsed.coverage
    assert (coverage.up, coverage.down, coverage.looked_at, coverage.not_looked_at_count) == (1, 0, 1, 4)
    assert coverage.not_looked_at == ("10.9.0.0", "10.9.0.1", "10.9.0.2", "10.9.0.3")
    assert parsed.complete
    assert not coverage.complete
