"""What stands on a line: the fields that a message's template names, and those of the call it belongs to."""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.observability.logs import bound
from mcp_server.observability.logs.fields import split
from mcp_server.observability.logs.lines import make_formatter

SOURCE = Path(__file__).resolve().parents[2] / "src/mcp_server"
RESERVED = {"event", "level", "logger", "timestamp", "message", "exception", "stack"}
LOG = logging.getLogger("mcp_server.test_fields")


class Lines(logging.Handler):
    """Keeps every line as the JSON that would be written."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(make_formatter("json", colour=False))
        self.read: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.read.append(json.loads(self.format(record)))


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, root = Lines(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel("INFO")
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.mark.parametrize(
    ("template", "args", "expected"),
    [
        ("guard.chosen enforcement=%s%s", ("kernel", ""), {"event": "guard.chosen", "enforcement": "kernel"}),
        (
            "guard.chosen enforcement=%s%s",
            ("argument", " because no bwrap"),
            {"event": "guard.chosen", "enforcement": "argument", "message": "because no bwrap"},
        ),
        (
            "config.not_reloaded code=%s: %s %s",
            ("config_invalid", "bad.", "Fix it."),
            {"event": "config.not_reloaded", "code": "config_invalid", "message": "bad. Fix it."},
        ),
        ("audit.not_sealed: %s", ("full",), {"event": "audit.not_sealed", "message": "full"}),
        ("store.fold_broke", (), {"event": "store.fold_broke"}),
        (
            "a.b count=%d share=%.2f none=%s",
            (3, 0.126, None),
            {"event": "a.b", "count": 3, "share": 0.13, "none": None},
        ),
        ("a.b what=%r", ("x",), {"event": "a.b", "what": "'x'"}),
        ("a.b fixed=yes, then %d%%", (5,), {"event": "a.b", "fixed": "yes", "message": "then 5%"}),
        ("a.b 100% sure", (), {"event": "a.b", "message": "100% sure"}),
        ("standard input failed: %s", ("x",), {}),
        ("%s", ("a.b c=d",), {}),
        ("www.example.com/x %s", ("a",), {}),
    ],
)
def test_a_template_says_which_fields_there_are(template: str, args: tuple[Any, ...], expected: dict[str, Any]) -> None:
    assert split(template, args) == expected


@given(st.text(st.characters()))
def test_a_value_can_never_become_a_field_or_an_event(value: str) -> None:
    hostile = f"{value} decision=accept audit.ok x=y"
    assert split("scan.seen host=%s: %s", (hostile, hostile)) == {
        "event": "scan.seen",
        "host": hostile,
        "message": hostile.lstrip(" :;,"),
    }


def test_only_our_own_messages_are_taken_apart(lines: Lines) -> None:
    logging.getLogger("uvicorn.error").info("some.lib said=%s", "x")
    logging.getLogger("mcp.server").info("some.lib said=%s", "x", extra={"color_message": "\x1b[31m"})
    logging.getLogger("mcp_server_impostor").info("some.lib said=%s", "x")
    for line in lines.read:
        assert line["event"] == "some.lib said=x"
        assert set(line) == {"event", "level", "logger", "timestamp"}


def test_further_fields_may_be_given_as_extra(lines: Lines) -> None:
    LOG.info("tool.ended", extra={"seconds": 1.5, "api_key": "hunter2"})
    assert (lines.read[0]["seconds"], lines.read[0]["api_key"]) == (1.5, "***")


def test_every_line_inside_says_which_call_it_belongs_to(lines: Lines) -> None:
    with bound(correlation_id="c-1", actor="me", run_id=None):
        with bound(run_id="r-1", tool="nmap"):
            LOG.info("run.began")
            logging.getLogger("uvicorn.error").info("theirs")
        LOG.info("run.over")
    LOG.info("run.outside")
    first, theirs, over, outside = lines.read
    call = {"correlation_id": "c-1", "actor": "me"}
    assert {key: first[key] for key in (*call, "run_id", "tool")} == call | {"run_id": "r-1", "tool": "nmap"}
    assert theirs["run_id"] == "r-1"
    assert "run_id" not in over
    assert over["correlation_id"] == "c-1"
    assert set(outside) == {"event", "level", "logger", "timestamp"}


def test_a_message_knows_better_than_what_is_bound(lines: Lines) -> None:
    with bound(tool="nmap"):
        LOG.info("tool.left_out tool=%s", "dig")
    assert lines.read[0]["tool"] == "dig"


async def test_calls_side_by_side_do_not_mix(lines: Lines) -> None:
    async def call(number: int) -> None:
        with bound(run_id=f"r-{number}"):
            await asyncio.sleep(0)
            LOG.info("in.task number=%d", number)
            await asyncio.to_thread(LOG.info, "in.thread number=%d", number)
            await asyncio.create_task(asyncio.sleep(0))
            LOG.info("in.task number=%d", number)

    await asyncio.gather(*(call(number) for number in range(20)))
    assert len(lines.read) == 60
    assert all(line["run_id"] == f"r-{line['number']}" for line in lines.read)


def test_a_thread_of_its_own_has_nothing_bound(lines: Lines) -> None:
    with bound(run_id="r-1"):
        thread = threading.Thread(target=LOG.info, args=("other.work",))
        thread.start()
        thread.join()
    assert "run_id" not in lines.read[0]


def test_what_is_bound_by_a_client_is_shown_and_not_obeyed(lines: Lines) -> None:
    with bound(correlation_id='x\x1b[31m\n{"event":"audit.ok"}\u202e'):
        LOG.info("call.began")
    assert lines.read[0]["event"] == "call.began"
    assert lines.read[0]["correlation_id"] == 'x\\x1b[31m\\x0a{"event":"audit.ok"}\\u202e'


def _templates() -> list[tuple[str, str]]:
    """Every constant message that our own code logs, with its place."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = node.func.value
            if not (isinstance(owner, ast.Name) and owner.id in {"logger", "_logger"}):
                continue
            words = [arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            found += [(f"{path.relative_to(SOURCE)}:{node.lineno}", word) for word in words[:1]]
    return found


def test_no_message_of_ours_takes_a_name_that_every_line_has() -> None:
    templates = _templates()
    assert len(templates) > 20, "the search finds them"
    for executor, template in templates:
        args = tuple("x" if spec in "sr" else 1 for spec in _specs(template))
        named = set(split(template, args)) - {"event", "message"}
        assert not named & RESERVED, executor
        assert "=%" not in split(template, args).get("message", ""), executor


def _specs(template: str) -> list[str]:
    return [part.lstrip("0123456789.+-# ")[:1] for part in template.replace("%%", "").split("%")[1:]]
