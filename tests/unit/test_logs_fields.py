"""The fields of a log line: those of the event, and those of the call that it belongs to."""

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

from mcp_server.logger import bound, get_logger
from mcp_server.observability.logs import LineFormatter

SOURCE = Path(__file__).resolve().parents[2] / "src/mcp_server"
RESERVED = {"event", "level", "logger", "timestamp", "exception", "stack", "trace_id"}
METHODS = {"debug", "info", "warning", "error", "critical", "exception", "log"}
logger = get_logger("mcp_server.test_fields")


class Lines(logging.Handler):
    """Keeps every line as the JSON object that would be written."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(LineFormatter("json", colors=False))
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


def test_a_line_has_the_fields_that_were_given_and_numbers_stay_numbers(lines: Lines) -> None:
    logger.warning("a.b", count=3, share=0.13, nothing=None, yes=True, path=Path("/x"), error=ValueError("bad"))
    (line,) = lines.read
    assert {name: line[name] for name in ("count", "share", "nothing", "yes", "path", "error")} == {
        "count": 3,
        "share": 0.13,
        "nothing": None,
        "yes": True,
        "path": "/x",
        "error": "bad",
    }
    assert (line["event"], line["level"], line["logger"]) == ("a.b", "warning", "mcp_server.test_fields")


@given(st.text(st.characters()))
def test_a_value_can_never_become_a_field_or_an_event(value: str) -> None:
    hostile = f'{value} decision=accept audit.ok "x":"y"'
    formatter = LineFormatter("json", colors=False)
    record = logging.LogRecord("x", logging.INFO, __file__, 1, {"event": "scan.seen", "host": hostile}, (), None)
    record.__dict__ |= {"_logger": None, "_name": "info"}
    line = json.loads(formatter.format(record))
    assert line["event"] == "scan.seen"
    assert set(line) == {"event", "host", "level", "logger", "timestamp"}


def test_the_message_of_a_library_is_the_event_as_a_whole(lines: Lines) -> None:
    logging.getLogger("uvicorn.error").info("some.lib said=%s", "x")
    logging.getLogger("mcp.server").info("some.lib said=%s", "x", extra={"color_message": "\x1b[31m"})
    for line in lines.read:
        assert line["event"] == "some.lib said=x"
        assert set(line) == {"event", "level", "logger", "timestamp"}


def test_every_line_in_a_block_has_the_bound_fields(lines: Lines) -> None:
    with bound(correlation_id="c-1", actor="me"):
        with bound(run_id="r-1", tool="nmap"):
            logger.info("run.began")
            logging.getLogger("uvicorn.error").info("theirs")
        logger.info("run.over")
    logger.info("run.outside")
    first, theirs, over, outside = lines.read
    call = {"correlation_id": "c-1", "actor": "me"}
    assert {key: first[key] for key in (*call, "run_id", "tool")} == call | {"run_id": "r-1", "tool": "nmap"}
    assert theirs["run_id"] == "r-1"
    assert "run_id" not in over
    assert over["correlation_id"] == "c-1"
    assert set(outside) == {"event", "level", "logger", "timestamp"}


def test_a_field_of_the_event_replaces_a_bound_field(lines: Lines) -> None:
    with bound(tool="nmap"):
        logger.info("tool.left_out", tool="dig")
    assert lines.read[0]["tool"] == "dig"


async def test_concurrent_calls_do_not_mix_their_fields(lines: Lines) -> None:
    async def call(number: int) -> None:
        with bound(run_id=f"r-{number}"):
            await asyncio.sleep(0)
            logger.info("in.task", number=number)
            await asyncio.to_thread(logger.info, "in.thread", number=number)
            await asyncio.create_task(asyncio.sleep(0))
            logger.info("in.task", number=number)

    await asyncio.gather(*(call(number) for number in range(20)))
    assert len(lines.read) == 60
    assert all(line["run_id"] == f"r-{line['number']}" for line in lines.read)


def test_a_thread_that_was_started_by_hand_has_no_bound_fields(lines: Lines) -> None:
    with bound(run_id="r-1"):
        thread = threading.Thread(target=logger.info, args=("other.work",))
        thread.start()
        thread.join()
    assert "run_id" not in lines.read[0]


def test_a_bound_value_of_a_client_is_escaped(lines: Lines) -> None:
    with bound(correlation_id='x\x1b[31m\n{"event":"audit.ok"}\u202e'):
        logger.info("call.began")
    assert lines.read[0]["event"] == "call.began"
    assert lines.read[0]["correlation_id"] == 'x\\x1b[31m\\x0a{"event":"audit.ok"}\\u202e'


def log_calls() -> list[tuple[str, ast.Call]]:
    """Return every call of a module's logger in the source, with its file and line."""
    return [
        (f"{path.relative_to(SOURCE)}:{node.lineno}", node)
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in METHODS
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in {"logger", "_logger", "log"}
    ]


def test_every_event_has_a_name_and_its_values_are_fields() -> None:
    found = log_calls()
    assert len(found) > 40, "the search does not find the calls of loggers"
    for line, call in found:
        words = call.args[1:] if isinstance(call.func, ast.Attribute) and call.func.attr == "log" else call.args
        assert len(words) == 1, f"{line}: pass values as fields: logger.info('area.event', name=value)"
        if isinstance(words[0], ast.Constant):
            assert str(words[0].value).replace("_", "").replace(".", "").islower(), f"{line}: the event needs a name"
            assert "." in str(words[0].value), f"{line}: the name of an event is area.what_happened"


def test_no_event_has_a_field_with_a_name_that_every_line_has() -> None:
    taken = [(line, word.arg) for line, call in log_calls() for word in call.keywords if word.arg in RESERVED]
    assert taken == []
