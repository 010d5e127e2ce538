"""Sends calls through every interface of guarded servers, from the namespace that represents the host.

This is also a program: it reads a list of `CallToSend` as JSON from standard input and prints `CallResults` as JSON.
`send_calls` starts it. The servers under test are its child processes and see its canary files. One server for HTTP
(MCP and REST) and one for stdio run in the kernel tier. The command line runs in the argument tier, as it does by
default.
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

from tests.containment import canaries, guarded_host, lab_scope
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
class CallToSend:
    """A call to send: its name, tool, arguments, and the interfaces to use."""

    name: str
    tool: str
    arguments: dict[str, Any]
    interfaces: tuple[str, ...] = INTERFACES


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """The outcome of one call through one interface.

    ``code`` is None if the call was accepted. ``marks`` are canary texts in the answer. ``typed`` says whether an error
    had a code, a message and a hint.
    """

    name: str
    interface: str
    code: str | None
    text: str
    marks: tuple[str, ...] = ()
    typed: bool = True


@dataclass(frozen=True, slots=True)
class CallResults:
    """The outcomes of all calls, the files that were created or changed, and the audit records of the servers."""

    outcomes: list[CallOutcome]
    files: list[str]
    records: list[dict[str, Any]] = field(repr=False)


def corpus_calls() -> list[CallToSend]:
    """The calls of the corpus, each through every interface that can express it."""
    return [
        CallToSend(
            each.name, each.tool, each.arguments, tuple(d for d in INTERFACES if not (each.json_only and d == "cli"))
        )
        for each in CORPUS
    ]


def send_calls(lab: Lab, calls: Sequence[CallToSend], *, timeout: float = 250) -> CallResults:
    """Send calls from the namespace ``scan``. Names are resolved by the false name server."""
    argv = [sys.executable, "-m", "tests.containment.calls"]
    done = lab.run("scan", argv, text_in=json.dumps([asdict(each) for each in calls]), timeout=timeout)
    found = json.loads(done.stdout)
    outcomes = [CallOutcome(**{**row, "marks": tuple(row["marks"])}) for row in found["outcomes"]]
    return CallResults(outcomes, found["files"], found["records"])


def outcome_of(call: CallToSend, interface: str, reply: Reply) -> CallOutcome:
    """Return the outcome of a reply."""
    whole = f"{reply.text}\n{json.dumps(reply.body)}"
    error = reply.error or {}
    typed = not error or bool(error.get("code") and error.get("message") and error.get("hint"))
    marks = tuple(mark for mark in canaries.MARKS if mark in whole)
    return CallOutcome(call.name, interface, reply.code, whole[:1200], marks, typed)


async def _over(interfaces: Interfaces, interface: str, calls: Sequence[CallToSend]) -> list[CallOutcome]:
    limit = asyncio.Semaphore(_PARALLEL)

    async def one(call: CallToSend) -> CallOutcome:
        tool = quote(call.tool, safe="") if interface == "rest" else call.tool
        async with limit:
            return outcome_of(call, interface, await interfaces.call(interface, tool, call.arguments))

    return list(await asyncio.gather(*(one(call) for call in calls if interface in call.interfaces)))


async def _over_cli(env: dict[str, str], calls: Sequence[CallToSend]) -> list[CallOutcome]:
    expressible = [call for call in calls if "cli" in call.interfaces]
    shares = [expressible[start::_OVER_CLI] for start in range(_OVER_CLI)]
    with fork_server(env, first=("call", "nmap", "target=8.8.8.8", "--json")):
        done = await asyncio.gather(
            *(
                batch(env, *(["call", call.tool, *cli_words(call.arguments), "--json"] for call in share))
                for share in shares
            )
        )
    return [
        outcome_of(call, "cli", cli_reply(*result))
        for share, results in zip(shares, done, strict=True)
        for call, result in zip(share, results, strict=True)
    ]


def _environment(state: str, addresses: Sequence[str], **extra: str) -> dict[str, str]:
    env = environment(guarded_host.state_folder(state))
    env.pop("MCP_SECURITY_ALLOWED_TARGETS")
    lengths = (f"{address}/{64 if ':' in address else 24}" for address in addresses)
    return env | canaries.hostile_environment() | guarded_host.settings(list(lengths)) | extra


@asynccontextmanager
async def _open() -> AsyncIterator[Interfaces]:
    over_http = _environment("/run/state/http", lab_scope.GUARDED)
    over_stdio = _environment("/run/state/stdio", lab_scope.SECOND)
    parameters = StdioServerParameters(
        command=sys.executable, args=["-m", "mcp_server", "serve", *_GUARD], env=over_stdio, cwd=ROOT
    )
    alone = _environment("/run/state/cli", lab_scope.GUARDED, MCP_SECURITY_REQUIRE_ENFORCEMENT="argument")
    with http_server(over_http, *_GUARD) as (base, token, _):
        async with rest_client(base, token) as rest, Client(parameters) as stdio, mcp_client(base, token) as http:
            yield Interfaces(alone, stdio, http, rest, token, base)


def _records() -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for file in sorted(Path("/run/state").rglob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]


async def send_all(calls: Sequence[CallToSend]) -> CallResults:
    """Open the interfaces, send all calls, and find changed files."""
    async with _open() as interfaces:
        before = canaries.snapshot()
        found = await asyncio.gather(
            *(_over(interfaces, interface, calls) for interface in INTERFACES if interface != "cli"),
            _over_cli(interfaces.env, calls),
        )
        files = canaries.changes(before)
    return CallResults([outcome for outcomes in found for outcome in outcomes], files, _records())


def use_resolver() -> None:
    """Resolve names with the false name server, in /etc/resolv.conf of this mount namespace."""
    path = Path(os.path.realpath("/etc/resolv.conf"))
    path.write_text(f"nameserver {lab_scope.RESOLVER}\noptions timeout:1 attempts:1\n")


def main() -> None:
    """Send the calls on standard input and print the results."""
    calls = [CallToSend(**{**row, "interfaces": tuple(row["interfaces"])}) for row in json.load(sys.stdin)]
    use_resolver()
    canaries.lay_out()
    guarded_host.prepare()
    Path("/run/state").mkdir(mode=0o755)
    json.dump(asdict(asyncio.run(send_all(calls))), sys.stdout)


if __name__ == "__main__":
    main()
