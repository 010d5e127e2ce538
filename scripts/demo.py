"""Demonstration: an MCP client scans two services on loopback with nmap, and prints the result.

All parts are the real ones: the server as a child process over stdio, the client of the SDK, nmap, and the store. The
exit status is 0 only if the scan found both services.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mcp import Client
from mcp.client.stdio import StdioServerParameters
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from scripts.connect import lines

ROOT = Path(__file__).resolve().parent.parent
SERVER = ROOT / ".venv/bin/mcp-network-tools"
STATE = ROOT / ".cache/run"
WSGI_SERVICE = """
import sys
from wsgiref.simple_server import demo_app, make_server
make_server("127.0.0.1", int(sys.argv[1]), demo_app).serve_forever()
"""
console = Console(soft_wrap=not sys.stdout.isatty())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def services(folder: Path) -> Iterator[list[int]]:
    """Start the file server and the WSGI server of Python, each on a free loopback port, and stop them at the end."""
    first, second = free_port(), free_port()
    commands = [
        [sys.executable, "-m", "http.server", str(first), "--bind", "127.0.0.1", "--directory", str(folder)],
        [sys.executable, "-c", WSGI_SERVICE, str(second)],
    ]
    running = [
        subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in commands
    ]
    try:
        for port in (first, second):
            wait_for(port)
        yield [first, second]
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    sys.exit(f"The service on port {port} did not start.")


async def scan(ports: list[int]) -> tuple[dict[str, object], dict[str, object]]:
    """Call nmap through the server; return the structured result and the full record."""
    environment = {
        "MCP_STATE_DIR": str(STATE),
        "MCP_SECURITY_ALLOWED_TARGETS": "loopback,RFC1918,.lab.internal",
        "MCP_SECURITY_GUARD": "argument",  # works on every machine; the services are on loopback
        "LOG_LEVEL": "WARNING",
    }
    parameters = StdioServerParameters(command=str(SERVER), args=["serve"], env=environment)
    bar = Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True)
    with bar:
        task = bar.add_task("Starting the server", total=1.0)

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            bar.update(task, completed=progress / (total or 1.0), description=message or "Scanning")

        started = time.monotonic()
        async with Client(parameters) as client:
            tools = (await client.list_tools()).tools
            bar.update(task, description="Scanning 127.0.0.1")
            console.print(
                f"Connected in {time.monotonic() - started:.1f} s over stdio; tools: {', '.join(t.name for t in tools)}"
            )
            arguments = {"target": "127.0.0.1", "mode": "services", "ports": ",".join(map(str, [*ports, 1]))}
            console.print(f"Calling nmap with {json.dumps(arguments)}")
            reply = await client.call_tool("nmap", arguments, progress_callback=on_progress)
            result = reply.structured_content or {}
            if reply.is_error or "run_id" not in result:
                text = " ".join(getattr(block, "text", "") for block in reply.content)
                sys.exit(f"The scan failed: {text}")
            record = await client.read_resource(f"run://{result['run_id']}")
    return result, json.loads(getattr(record.contents[0], "text", "{}"))


def show(result: dict[str, object], record: dict[str, object]) -> set[int]:
    """Print the ports and the coverage; return the open ports."""
    table = Table("host", "port", "state", "service", "version", box=None, header_style="bold")
    open_ports = set()
    for host in record["hosts"]:  # type: ignore[attr-defined]  # JSON
        for port in host.get("ports", []):
            service = port.get("service") or {}
            probe = service.get("from_target", {}).get("version_probe", {})
            version = f"{probe.get('product', '')} {probe.get('version', '')}".strip()
            cells = (
                host["address"],
                f"{port['number']}/{port['transport']}",
                port["state"],
                service.get("name", ""),
                version,
            )
            table.add_row(*(Text(cell) for cell in cells))
            if port["state"] == "open":
                open_ports.add(port["number"])
    console.print()
    console.print(table)
    coverage = record["run"]["coverage"]  # type: ignore[index]  # JSON
    tested = ", ".join(f"{p['count']} {p['transport']} ports ({p['method']})" for p in coverage["ports"])
    console.print(
        f"\nCovered: {coverage['looked_at']} of {coverage['planned']} addresses, {tested}; outcome {result['outcome']}."
    )
    console.print(f"Sent to the agent: {json.dumps(result, separators=(',', ':'))}", highlight=False, markup=False)
    return open_ports


def show_record(run_id: str) -> None:
    """Print where the record is, and how to read it again."""
    binary = SERVER.relative_to(ROOT)
    console.print(f"\nRecorded: run {run_id}, in {STATE}/ (store.db, raw/, audit.jsonl)", highlight=False)
    console.print(f"Read it again: MCP_STATE_DIR={STATE} {binary} runs show {run_id}", highlight=False)


def show_connect() -> None:
    """Print the lines that connect the usual clients."""
    console.print("\nConnect a client (scope: RFC1918 and .lab.internal):")
    for name, line in lines(str(SERVER)):
        console.print(f"  {name:27} {line}", highlight=False, markup=False)


def main() -> int:
    if shutil.which("nmap", path=os.environ.get("PATH", "") + ":/usr/bin:/usr/local/bin") is None:
        sys.exit("nmap is not installed. Install it with: sudo apt-get install nmap")
    STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, services(Path(folder)) as ports:
        console.print(f"Two services listen on 127.0.0.1, ports {ports[0]} and {ports[1]}.", highlight=False)
        result, record = asyncio.run(scan(ports))
    found = show(result, record)
    show_record(str(result["run_id"]))
    show_connect()
    missing = set(ports) - found
    if missing:
        console.print(f"\nThe scan did not find: {sorted(missing)}")
        return 1
    console.print("\nBoth services were found.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
