"""Bad input through all four doors: the same typed error with a hint, and no process is started."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mcp_server.errors import ERRORS
from tests.bad_targets import BAD_TARGETS
from tests.support.doors import DOORS, Doors, open_doors

HUGE = "1" * 1_000_000

BAD_ARGUMENTS: list[tuple[str, dict[str, Any], str]] = [
    ("target-missing", {}, "invalid_arguments"),
    ("target-empty", {"target": ""}, "invalid_arguments"),
    ("target-huge", {"target": HUGE}, "invalid_arguments"),
    ("target-empty-list", {"target": []}, "invalid_arguments"),
    ("unknown-parameter", {"target": "127.0.0.1", "prots": "80"}, "invalid_arguments"),
    ("unknown-mode", {"target": "127.0.0.1", "mode": "exploit"}, "invalid_arguments"),
    ("ports-reversed", {"target": "127.0.0.1", "ports": "90-80"}, "invalid_arguments"),
    ("ports-too-high", {"target": "127.0.0.1", "ports": "70000"}, "invalid_arguments"),
    ("ports-empty", {"target": "127.0.0.1", "ports": ""}, "invalid_arguments"),
    ("ports-huge", {"target": "127.0.0.1", "ports": HUGE}, "invalid_arguments"),
    ("ports-too-many-ranges", {"target": "127.0.0.1", "ports": ",".join(map(str, range(1, 400, 2)))}, "invalid_arguments"),
    ("ports-unicode-digits", {"target": "127.0.0.1", "ports": "\uff18\uff10"}, "invalid_arguments"),
    ("ports-unknown-name", {"target": "127.0.0.1", "ports": "no-such-service"}, "invalid_arguments"),
    ("ports-shell", {"target": "127.0.0.1", "ports": "80;id"}, "forbidden_characters"),
    ("args-shell", {"target": "127.0.0.1", "extra_args": "; rm -rf /"}, "forbidden_characters"),
    ("args-newline", {"target": "127.0.0.1", "extra_args": "-sV\n-oN x"}, "forbidden_characters"),
    ("args-output-file", {"target": "127.0.0.1", "extra_args": "-oN out"}, "argument_not_allowed"),
    ("args-abbreviated", {"target": "127.0.0.1", "extra_args": "--oN out"}, "argument_not_allowed"),
    ("args-input-file", {"target": "127.0.0.1", "extra_args": "-iL /etc/passwd"}, "argument_not_allowed"),
    ("args-positional", {"target": "127.0.0.1", "extra_args": "127.0.0.2"}, "argument_not_allowed"),
    ("args-too-long", {"target": "127.0.0.1", "extra_args": "-n " * 1000}, "arguments_too_long"),
    ("script-path", {"target": "127.0.0.1", "mode": "scripts", "scripts": ["/tmp/x.nse"]}, "invalid_arguments"),
    ("timeout-zero", {"target": "127.0.0.1", "timeout_sec": 0}, "invalid_arguments"),
    ("correlation-id", {"target": "127.0.0.1", "correlation_id": "a b"}, "invalid_arguments"),
]  # fmt: skip
ONLY_JSON: list[tuple[str, dict[str, Any], str]] = [
    ("target-number", {"target": 2130706433}, "invalid_arguments"),
    ("target-object", {"target": {"host": "127.0.0.1"}}, "invalid_arguments"),
    ("ping-as-text", {"target": "127.0.0.1", "ping": "yes"}, "invalid_arguments"),
    ("timing-as-text", {"target": "127.0.0.1", "timing": "4"}, "invalid_arguments"),
    ("list-as-text", {"target": '["127.0.0.1","127.0.0.2"]'}, "invalid_target"),
    ("args-nul", {"target": "127.0.0.1", "extra_args": "-sV\x00"}, "forbidden_characters"),
]
"""Cases the command line cannot be given: it has no types, and an argument of a process has no NUL."""


@pytest.fixture(scope="module")
def spied_nmap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PATH whose nmap leaves a mark for every start and then is nmap."""
    folder = tmp_path_factory.mktemp("spy")
    nmap = shutil.which("nmap")
    assert nmap
    script = folder / "nmap"
    script.write_text(f'#!/bin/sh\necho started >> "{folder}/marks"\nexec {nmap} "$@"\n')
    script.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
async def doors(tmp_path_factory: pytest.TempPathFactory, spied_nmap: Path) -> AsyncIterator[Doors]:
    state = tmp_path_factory.mktemp("bad-input") / "state"
    async with open_doors(state, PATH=f"{spied_nmap}:{os.environ['PATH']}") as opened:
        yield opened


def _expect(doors: Doors, spied_nmap: Path, reply: Any, code: str, door: str) -> None:
    assert reply.error is not None, f"{door} accepted it: {reply.text[:300]}"
    allowed = {code, "invalid_arguments"} if code in {"invalid_target", "arguments_too_long"} else {code}
    assert reply.code in allowed, reply.error
    assert reply.error["message"]
    assert reply.error["hint"]
    assert len(reply.text) < 4000, "an error must not echo a huge input"
    if door == "rest":
        assert reply.status == ERRORS[reply.code].http
    if door == "cli":
        assert reply.status == ERRORS[reply.code].exit
    assert not (spied_nmap / "marks").exists(), "a process was started"


@pytest.mark.parametrize("door", [door for door in DOORS if door != "cli"])
@pytest.mark.parametrize(("arguments", "code"), [case[1:] for case in BAD_ARGUMENTS + ONLY_JSON],
                         ids=[case[0] for case in BAD_ARGUMENTS + ONLY_JSON])  # fmt: skip
@pytest.mark.asyncio(loop_scope="module")
async def test_bad_arguments(doors: Doors, spied_nmap: Path, door: str, arguments: dict[str, Any], code: str) -> None:
    _expect(doors, spied_nmap, await doors.call(door, "nmap", arguments), code, door)


@pytest.mark.parametrize("door", [door for door in DOORS if door != "cli"])
@pytest.mark.parametrize(("text", "code"), [case[1:] for case in BAD_TARGETS], ids=[case[0] for case in BAD_TARGETS])
@pytest.mark.asyncio(loop_scope="module")
async def test_bad_targets(doors: Doors, spied_nmap: Path, door: str, text: str, code: str) -> None:
    _expect(doors, spied_nmap, await doors.call(door, "nmap", {"target": text}), code, door)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_command_line_gives_the_same_errors(doors: Doors, spied_nmap: Path) -> None:
    # A process for each case is slow, so they run side by side, and what execve(2) cannot carry is left out.
    cases = [(case[1], case[2]) for case in BAD_ARGUMENTS] + [({"target": text}, code) for _, text, code in BAD_TARGETS]
    possible = [case for case in cases if not any("\0" in str(v) or len(str(v)) > 100_000 for v in case[0].values())]
    turn = asyncio.Semaphore(4)

    async def call(arguments: dict[str, Any]) -> Any:
        async with turn:
            return await doors.call("cli", "nmap", arguments)

    replies = await asyncio.gather(*(call(arguments) for arguments, _ in possible))
    for reply, (_, code) in zip(replies, possible, strict=True):
        _expect(doors, spied_nmap, reply, code, "cli")


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.asyncio(loop_scope="module")
async def test_an_unknown_tool_is_not_found(doors: Doors, door: str) -> None:
    reply = await doors.call(door, "nmpa", {"target": "127.0.0.1"})
    assert reply.code == "unknown_tool"
    assert "nmap" in reply.error["hint"]  # type: ignore[index]  # just seen to be there
    assert reply.status == {"stdio": -32602, "http": -32602, "rest": 404, "cli": 4}[door]


@pytest.mark.asyncio(loop_scope="module")
async def test_every_refusal_is_on_the_decision_log(doors: Doors) -> None:
    await doors.call("rest", "nmap", {"target": "8.8.8.8"})
    records = [json.loads(line) for line in (Path(doors.env["MCP_STATE_DIR"]) / "audit.jsonl").read_text().splitlines()]
    last = records[-1]
    assert (last["decision"], last["code"], last["door"]) == ("deny", "target_out_of_scope", "rest")
    assert last["arguments"] == {"target": "8.8.8.8"}
    assert "RFC1918" in last["reason"]
    assert {record["decision"] for record in records if record["event"] == "decision"} == {"deny"}
