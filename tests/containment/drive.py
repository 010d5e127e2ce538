"""Sends calls through every interface of guarded servers, from inside the namespace that plays the host.

As a program: reads a `Task` as JSON from standard input and prints a `Harvest` as JSON. The servers under test are
its children and see the canary files that it lays out; `harvest` starts it. Over HTTP (MCP and REST) and over stdio a
server each is guarded in the kernel tier; the command line runs as it does for anyone, in the argument tier.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mcp import Client
from mcp.client.stdio import StdioServerParameters

from tests.containment import canaries, ground, hosting
from tests.containment.corpus import CORPUS
from tests.lab.network.handle import Lab
from tests.support.cli import batch
from tests.support.fork_server import fork_server
from tests.support.interfaces import (
    INTERFACES,
    ROOT,
    Interfaces,
    Reply,
    cli_reply,
    cli_words,
    environment,
    http_server,
    mcp_client,
    rest_client,
)

_PARALLEL = 20
_OVER_CLI = 2
_GUARD = ("--guard", "kernel")


@dataclass(frozen=True, slots=True)
class Sent:
    """One call to send: its name, the tool, the arguments, and the interfaces it is sent through."""

    name: str
    tool: str
    arguments: dict[str, Any]
    interfaces: tuple[str, ...] = INTERFACES


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one call through one interface ended: ``code`` None where it was taken; ``marks`` are canaries in the answer."""

    name: str
    interface: str
    code: str | None
    text: str
    marks: tuple[str, ...] = ()
    typed: bool = True


@dataclass(frozen=True, slots=True)
class Harvest:
    """What came of a task: outcomes, files that are new or changed, and the records of the servers' audit log."""

    outcomes: list[Outcome]
    files: list[str]
    records: list[dict[str, Any]] = field(repr=False)


def corpus_calls() -> list[Sent]:
    """The corpus as it is sent through every interface that can say it."""
    return [
        Sent(each.name, each.tool, each.arguments, tuple(d for d in INTERFACES if not (each.json_only and d == "cli")))
        for each in CORPUS
    ]


def harvest(lab: Lab, calls: Sequence[Sent], *, timeout: float = 250) -> Harvest:
    """Send calls from the scanner's namespace; names are resolved by the lying resolver."""
    argv = [sys.executable, "-m", "tests.containment.drive"]
    done = lab.run("scan", argv, text_in=json.dumps([asdict(each) for each in calls]), timeout=timeout)
    found = json.loads(done.stdout)
    outcomes = [Outcome(**{**row, "marks": tuple(row["marks"])}) for row in found["outcomes"]]
    return Harvest(outcomes, found["files"], found["records"])


def outcome(call: Sent, interface: str, reply: Reply) -> Outcome:
    """Judge a reply by itself."""
    whole = f"{reply.text}\n{json.dumps(reply.body)}"
    error = reply.error or {}
    typed = not error or bool(error.get("code") and error.get("message") and error.get("hint"))
    marks = tuple(mark for mark in canaries.MARKS if mark in whole)
    return Outcome(call.name, interface, reply.code, whole[:1200], marks, typed)


async def _over(interfaces: Interfaces, interface: str, calls: Sequence[Sent]) -> list[Outcome]:
    authenticator = asyncio.Semaphore(_PARALLEL)

    async def one(call: Sent) -> Outcome:
        tool = quote(call.tool, safe="") if interface == "rest" else call.tool
        async with authenticator:
            return outcome(call, interface, await interfaces.call(interface, tool, call.arguments))

    return list(await asyncio.gather(*(one(call) for call in calls if interface in call.interfaces)))


async def _over_cli(env: dict[str, str], calls: Sequence[Sent]) -> list[Outcome]:
    sayable = [call for call in calls if "cli" in call.interfaces]
    shares = [sayable[start::_OVER_CLI] for start in range(_OVER_CLI)]
    with fork_server(env, first=("call", "nmap", "target=8.8.8.8", "--json")):
        done = await asyncio.gather(
            *(
                batch(env, *(["call", call.tool, *cli_words(call.arguments), "--json"] for call in share))
                for share in shares
            )
        )
    return [
        outcome(call, "cli", cli_reply(*result))
        for share, results in zip(shares, done, strict=True)
        for call, result in zip(share, results, strict=True)
    ]


def _environment(state: str, addresses: Sequence[str], **extra: str) -> dict[str, str]:
    env = environment(hosting.state_folder(state))
    env.pop("MCP_SECURITY_ALLOWED_TARGETS")
    lengths = (f"{address}/{64 if ':' in address else 24}" for address in addresses)
    return env | canaries.hostile_environment() | hosting.settings(list(lengths)) | extra


@asynccontextmanager
async def _open() -> AsyncIterator[Interfaces]:
    over_http = _environment("/run/state/http", ground.GUARDED)
    over_stdio = _environment("/run/state/stdio", ground.SECOND)
    parameters = StdioServerParameters(
        command=sys.executable, args=["-m", "mcp_server", "serve", *_GUARD], env=over_stdio, cwd=ROOT
    )
    alone = _environment("/run/state/cli", ground.GUARDED, MCP_SECURITY_REQUIRE_ENFORCEMENT="argument")
    with http_server(over_http, *_GUARD) as (base, token, _):
        async with rest_client(base, token) as rest, Client(parameters) as stdio, mcp_client(base, token) as http:
            yield Interfaces(alone, stdio, http, rest, token, base)


def _records() -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for file in sorted(Path("/run/state").rglob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]


async def drive(calls: Sequence[Sent]) -> Harvest:
    """Open the interfaces, send everything, and look what was left behind."""
    async with _open() as interfaces:
        before = canaries.snapshot()
        found = await asyncio.gather(
            *(_over(interfaces, interface, calls) for interface in INTERFACES if interface != "cli"),
            _over_cli(interfaces.env, calls),
        )
        files = canaries.changes(before)
    return Harvest([outcome for outcomes in found for outcome in outcomes], files, _records())


def use_resolver() -> None:
    """Have names resolved by the lying resolver: /etc/resolv.conf is this mount namespace's own."""
    path = Path(os.path.realpath("/etc/resolv.conf"))
    path.write_text(f"nameserver {ground.RESOLVER}\noptions timeout:1 attempts:1\n")


def main() -> None:
    """Carry out the task on standard input."""
    calls = [Sent(**{**row, "interfaces": tuple(row["interfaces"])}) for row in json.load(sys.stdin)]
    use_resolver()
    canaries.lay_out()
    hosting.prepare()
    Path("/run/state").mkdir(mode=0o755)
    json.dump(asdict(asyncio.run(drive(calls))), sys.stdout)


if __name__ == "__main__":
    main()
