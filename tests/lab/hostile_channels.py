"""Scan the hostile host of the lab through every interface, and write down the output of every channel.

This is a program, because clients of the HTTP interfaces must run in the namespace of the server, which is that of the
scanner. Arguments: the address of the host, an empty folder for the state of the servers, and the file to write. The
file is a JSON object of channel to ``{"form": "json" | "text" | "terminal" | "raw", "body": …}``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from mcp import Client

from tests.support.cli import COMMAND
from tests.support.interfaces import ROOT, Interfaces, open_interfaces
from tests.support.terminal import on_a_terminal

PACKAGE = """
from mcp_server.base_tool import MCPBaseTool

class ListenTool(MCPBaseTool):
    command_name = "listen"
    allowed_flags = ["-n"]
    reads = ["/usr/bin/timeout", "/usr/bin/cat"]

class BreakTool(MCPBaseTool):
    command_name = "listen-and-fail"
    allowed_flags = ["-n"]
    reads = ["/usr/bin/timeout", "/usr/bin/cat"]
"""
LISTEN = """#!/bin/bash
exec 3<>"/dev/tcp/$1/2323" 4<>"/dev/tcp/$1/2323"
timeout 0.5 cat <&3
timeout 0.5 cat <&4 >&2
exit {status}
"""

Channels = dict[str, dict[str, Any]]


def environment(folder: Path) -> dict[str, Any]:
    """Return the settings of the servers.

    They log everything, also to a file, and two plain tools repeat the text of the host.
    """
    package = folder / "lib" / "hostile_tools"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PACKAGE)
    programs = folder / "bin"
    programs.mkdir()
    for name, status in (("listen", 0), ("listen-and-fail", 3)):
        (programs / name).write_text(LISTEN.replace("{status}", str(status)))
        (programs / name).chmod(0o755)
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(folder / "lib"), os.environ.get("PYTHONPATH", "")])),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "TOOLS_PACKAGE": "hostile_tools",
        "LOG_LEVEL": "DEBUG",
        "LOG_FORMAT": "console",
        "MCP_LOGGING_FILE_PATH": str(folder / "server.log"),
    }


def calls(address: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the calls that are made through every interface, by name."""
    ports = {"target": address, "ports": "80,2323,9000", "timing": 4}
    return {
        "scripts": (
            "nmap",
            {
                **ports,
                "mode": "ports",
                "scripts": ["banner", "http-title", "http-headers"],
                "script_args": {"banner.timeout": 1},
            },
        ),
        "services": ("nmap", {**ports, "ports": "80,9000", "extra_args": "--version-intensity 2"}),
        "cut": ("nmap", {**ports, "ports": "80,2323", "timeout_sec": 2}),
        "plain": ("listen", {"target": address}),
        "failed": ("break", {"target": address}),
    }


async def over_mcp(name: str, client: Client, address: str, channels: Channels) -> None:
    """Make every call over MCP.

    Store structured content, text, progress, and the run as a resource with its raw output.
    """
    said: list[str] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        said.append(f"{progress} {total} {message}")

    for call, (tool, arguments) in calls(address).items():
        result = await client.call_tool(tool, arguments, progress_callback=on_progress)
        body = result.structured_content or {}
        channels[f"{name} {call} structure"] = {"form": "json", "body": body}
        text = "\n".join(getattr(block, "text", "") for block in result.content)
        channels[f"{name} {call} text"] = {"form": "text", "body": text}
        for suffix, form in (("", "json"), ("/raw", "output")):
            pages: list[Any] = []
            uri: str | None = f"run://{body['run_id']}{suffix}"
            while uri and len(pages) < 50:
                contents = (await client.read_resource(uri)).contents[0]
                page = getattr(contents, "text", "")
                pages.append(json.loads(page) if form == "json" else page)
                uri = (contents.meta or {}).get("next")
            whole = pages if form == "json" else "".join(pages)
            channels[f"{name} {call} resource{suffix}"] = {"form": form, "body": whole}
    channels[f"{name} progress"] = {"form": "ours", "body": said}
    listed = (await client.list_resources()).model_dump(mode="json")
    channels[f"{name} resources"] = {"form": "ours", "body": listed}
    channels[f"{name} tools"] = {"form": "ours", "body": (await client.list_tools()).model_dump(mode="json")}


async def over_rest(interfaces: Interfaces, address: str, channels: Channels) -> None:
    """Make every call over REST; store the results, the runs, and the pages of the server."""
    runs = []
    for call in ("services", "plain", "failed", "scripts"):
        tool, arguments = calls(address)[call]
        reply = await interfaces.call("rest", tool, arguments)
        channels[f"rest {call}"] = {"form": "json", "body": reply.body}
        runs.append((call, reply.body.get("result", reply.body)["run_id"]))
    for call, run_id in runs:
        channels[f"rest {call} run"] = {"form": "json", "body": (await interfaces.rest.get(f"/runs/{run_id}")).json()}
    channels["rest runs"] = {"form": "json", "body": (await interfaces.rest.get("/runs?limit=1000")).json()}
    for path in ("/health", "/config", "/tools", "/openapi.json", "/metrics", "/"):
        answer = await interfaces.rest.get(path)
        if answer.status_code != 404:
            channels[f"rest {path}"] = {"form": "ours", "body": answer.text}


async def over_cli(interfaces: Interfaces, address: str, channels: Channels) -> None:
    """Make every call on the command line, as JSON into a pipe and as text on a terminal.

    Store the output and the runs.
    """
    runs = []
    for call in ("scripts", "plain", "failed"):
        tool, arguments = calls(address)[call]
        reply = await interfaces.call("cli", tool, arguments)
        channels[f"cli {call} json"] = {"form": "json", "body": reply.body}
        runs.append((call, reply.body.get("result", reply.body)["run_id"]))
    words = [f"{key}={value}" for key, value in calls(address)["services"][1].items()]
    commands = {"call": ["call", "nmap", *words], "plain": ["call", "listen", f"target={address}"]}
    commands |= {"failed": ["call", "break", f"target={address}"], "list": ["runs", "list", "--limit", "1000"]}
    for call, run_id in runs:
        commands |= {f"{call} show": ["runs", "show", run_id], f"{call} raw": ["runs", "raw", run_id]}
        commands[f"{call} show json"] = ["runs", "show", run_id, "--json"]

    async def on_terminal(name: str, command: list[str]) -> None:
        async with on_a_terminal([*COMMAND, *command], interfaces.env, ROOT, columns=5000) as terminal:
            await terminal.ended(90)
        channels[f"terminal {name}"] = {"form": "terminal", "body": terminal.shown.decode("latin-1")}

    await asyncio.gather(*(on_terminal(name, command) for name, command in commands.items()))


async def collect(address: str, folder: Path) -> Channels:
    """Collect the output of three servers and the command line, with one state folder."""
    channels: Channels = {}
    async with open_interfaces(folder / "state", **environment(folder)) as interfaces:
        await asyncio.gather(
            over_mcp("stdio", interfaces.stdio, address, channels),
            over_mcp("http", interfaces.http, address, channels),
            over_rest(interfaces, address, channels),
            over_cli(interfaces, address, channels),
        )
    for path in sorted([*folder.glob("*.log*"), *(folder / "state").rglob("*.jsonl")]):
        channels[f"file {path.name}"] = {"form": "ours", "body": path.read_bytes().decode("latin-1")}
    return channels


if __name__ == "__main__":
    found = asyncio.run(collect(sys.argv[1], Path(sys.argv[2])))
    Path(sys.argv[3]).write_text(json.dumps(found))
