"""A tool gets the address of a target, and passes the target's name on only as Host header and SNI."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

from mcp_server.config import load_config
from mcp_server.model.access import FULL_ACCESS
from mcp_server.model.run import Actor
from mcp_server.model.target import Evidence
from mcp_server.server import EnhancedMCPServer
from tests.support.interfaces import environment
from tests.support.resolvers import use_resolver

NAME = "shop.lab.internal"


class LoopbackResolver:
    """Resolves every name to this host."""

    async def lookup(self, name: str) -> Evidence:
        return Evidence(name, (ip_address("127.0.0.1"),), source="the test")


@contextmanager
def web() -> Iterator[tuple[int, list[str]]]:
    """A web server on loopback, and the Host headers that it received."""
    hosts: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hosts.append(self.headers.get("Host", ""))
            body = b"<title>here</title>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], hosts
        server.shutdown()


async def test_the_name_is_the_host_header_and_is_never_resolved_by_the_tool(tmp_path: Path) -> None:
    server = EnhancedMCPServer(load_config(env=environment(tmp_path / "state")))
    use_resolver(server.pipeline, LoopbackResolver())
    try:
        with web() as (port, hosts):
            arguments = {"target": NAME, "mode": "services", "ports": str(port), "scripts": ["http-title"]}
            actor = Actor("a", "test", access=FULL_ACCESS)
            answer = await asyncio.wait_for(server.pipeline.call("nmap", arguments, actor), 60)
    finally:
        await server.cleanup()
    assert answer.error is None
    assert NAME in hosts
    assert answer.run.argv[-1] == "127.0.0.1"
    (given,) = [word for word in answer.run.argv if NAME in word]
    assert given == f'http.host="{NAME}",tls.servername="{NAME}"'
