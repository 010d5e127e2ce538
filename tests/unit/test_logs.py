"""Logs: one format for every logger, on standard error and in a rotating file, without active characters."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mcp_server.config.sections import LoggingConfig
from mcp_server.errors import PlatformError
from mcp_server.logger import get_logger
from mcp_server.observability.logs import VALUE_LIMIT, configure_logging

ACTIVE = "a\x1b[31m\u202e\nb"


@pytest.fixture(autouse=True)
def restore_root_logger() -> Iterator[None]:
    """Restore the handlers and the level of the root logger."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for handler in handlers:
        root.removeHandler(handler)
    yield
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)


def records(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    out, err = capsys.readouterr()
    assert out == "", "standard output is the connection of MCP"
    return [json.loads(line) for line in err.splitlines()]


def test_every_logger_writes_the_same_json_lines_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggingConfig(level="INFO"))
    get_logger("mcp_server.test").info("event.happened", count=3)
    logging.getLogger("uvicorn.error").warning("theirs")
    first, second = records(capsys)
    assert (first["event"], first["level"], first["logger"]) == ("event.happened", "info", "mcp_server.test")
    assert first["timestamp"].endswith("Z")
    assert (first.pop("count"), second["event"]) == (3, "theirs")
    assert set(second) == set(first)


@pytest.mark.parametrize(("level", "seen"), [("DEBUG", 3), ("INFO", 2), ("WARNING", 1), ("ERROR", 0)])
def test_lines_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str], level: str, seen: int) -> None:
    configure_logging(LoggingConfig(level=level))  # type: ignore[arg-type]  # one of the words it takes
    for number in (logging.DEBUG, logging.INFO, logging.WARNING):
        logging.getLogger("mcp_server.test").log(number, "x")
    assert len(records(capsys)) == seen


@pytest.mark.parametrize("style", ["json", "console"])
def test_no_active_character_reaches_a_terminal(capsys: pytest.CaptureFixture[str], style: str) -> None:
    configure_logging(LoggingConfig(format=style))  # type: ignore[arg-type]  # one of the words it takes
    logging.getLogger("mcp_server.test").info("name=%s", ACTIVE)

    def failing() -> None:
        raise RuntimeError(ACTIVE)

    try:
        failing()
    except RuntimeError:
        logging.getLogger("mcp_server.test").exception("it failed")
    text = capsys.readouterr().err
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "Traceback" in text
    assert "RuntimeError: a" in text
    assert "\\x1b[31m" in text.replace("\\\\", "\\")
    if style == "console":
        assert text.count("\n") > 4, "a traceback on a console keeps its lines"
    else:
        assert len(text.splitlines()) == 2


@pytest.mark.parametrize("style", ["json", "console"])
def test_no_logged_value_can_forge_a_line(capsys: pytest.CaptureFixture[str], style: str) -> None:
    forged = "x\n2026-01-01T00:00:00Z [info     ] audit.ok fake\r\x85y"
    configure_logging(LoggingConfig(format=style))  # type: ignore[arg-type]  # one of the words it takes
    log = logging.getLogger("mcp_server.test")
    log.info("banner %s", forged)
    log.warning(forged)
    log.error("it is %r", {"a": forged})

    def failing() -> None:
        raise RuntimeError(forged)

    try:
        failing()
    except RuntimeError:
        log.exception("it failed")
    text = capsys.readouterr().err
    assert "audit.ok" in text
    lines = [line for line in text.splitlines() if not line.startswith("  ")]
    assert len(lines) == 4, text
    assert not any(line.startswith("2026-01-01") for line in lines)


def test_a_long_value_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggingConfig())
    logging.getLogger("mcp_server.test").info("x" * 100_000)
    assert len(capsys.readouterr().err) < VALUE_LIMIT + 300


def test_console_lines_are_not_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggingConfig(format="console"))
    logging.getLogger("mcp_server.test").warning("disk is full")
    line = capsys.readouterr().err
    assert "warning" in line
    assert "disk is full" in line
    assert not line.startswith("{")


def test_lines_go_to_standard_error_and_to_a_rotating_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "logs" / "server.log"
    configure_logging(LoggingConfig(file_path=path, max_file_size=1024, backup_count=2))
    for number in range(40):
        logging.getLogger("mcp_server.test").info("line number %d", number)
    assert len(records(capsys)) == 40
    assert sorted(file.name for file in path.parent.iterdir()) == ["server.log", "server.log.1", "server.log.2"]
    assert all(file.stat().st_size <= 1024 for file in path.parent.iterdir())
    assert json.loads(path.read_text().splitlines()[-1])["event"] == "line number 39"
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_configuring_again_replaces_the_previous_handlers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    configure_logging(LoggingConfig(file_path=tmp_path / "first.log"))
    configure_logging(LoggingConfig(file_path=tmp_path / "second.log"))
    logging.getLogger("mcp_server.test").info("once")
    assert len(records(capsys)) == 1
    assert (tmp_path / "first.log").read_text() == ""
    assert "once" in (tmp_path / "second.log").read_text()


def test_a_reload_changes_level_format_and_rotation_and_continues_in_the_same_file(tmp_path: Path) -> None:
    path, log = tmp_path / "server.log", get_logger("mcp_server.test")
    configure_logging(LoggingConfig(file_path=path, max_file_size=1024, backup_count=1))
    for number in range(30):
        log.info("line.json", number=number)
    log.debug("line.hidden")
    kept = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert sorted(kept) == ["server.log", "server.log.1"]
    configure_logging(
        LoggingConfig(level="DEBUG", format="console", file_path=path, max_file_size=2048, backup_count=3)
    )
    log.debug("line.shown")
    both = path.read_text()
    assert both.startswith(kept["server.log"]), "lines written before the reload are lost"
    assert "line.shown" in both.removeprefix(kept["server.log"])
    assert not both.splitlines()[-1].startswith("{")
    for number in range(200):
        log.info("line.console", number=number)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["server.log", "server.log.1", "server.log.2", "server.log.3"]
    assert all(file.stat().st_size <= 2048 for file in tmp_path.iterdir())
    assert max(file.stat().st_size for file in tmp_path.iterdir()) > 1024, "the new size is not used"
    configure_logging(LoggingConfig(level="WARNING"))
    before = path.read_text()
    log.warning("line.elsewhere")
    assert path.read_text() == before


def test_a_reload_starts_a_new_file_after_the_old_one_was_moved_away(tmp_path: Path) -> None:
    path, log = tmp_path / "server.log", get_logger("mcp_server.test")
    configure_logging(LoggingConfig(file_path=path))
    log.info("line.one")
    path.rename(tmp_path / "server.log.moved")
    configure_logging(LoggingConfig(file_path=path))
    log.info("line.two")
    assert "line.two" in path.read_text()
    assert "line.two" not in (tmp_path / "server.log.moved").read_text()


def test_a_reload_neither_loses_nor_doubles_a_line_of_another_thread(tmp_path: Path) -> None:
    path, each, threads = tmp_path / "server.log", 300, 4

    def work(thread: int) -> None:
        for number in range(each):
            get_logger("mcp_server.test").info("line.one", thread=thread, number=number)

    configure_logging(LoggingConfig(file_path=path))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(threads) as pool:
            done = [pool.submit(work, thread) for thread in range(threads)]
            for turn in range(1000):
                configure_logging(LoggingConfig(file_path=path, format="json", backup_count=turn % 7))
                if all(each.done() for each in done):
                    break
    finally:
        sys.setswitchinterval(before)
    assert [each.result() for each in done] == [None] * threads
    seen = [(line["thread"], line["number"]) for line in map(json.loads, path.read_text().splitlines())]
    assert sorted(seen) == [(thread, number) for thread in range(threads) for number in range(each)]
    gc.collect()  # Python warns now about a file that was left open


def test_bad_settings_keep_the_previous_handlers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    configure_logging(LoggingConfig(level="WARNING"))
    with pytest.raises(PlatformError):
        configure_logging(LoggingConfig(level="DEBUG", file_path=tmp_path / "file" / "server.log"))
    logging.getLogger("mcp_server.test").info("line.hidden")
    logging.getLogger("mcp_server.test").warning("line.shown")
    assert [line["event"] for line in records(capsys)] == ["line.shown"]


def test_a_full_disk_is_logged_once_and_standard_error_still_gets_all_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggingConfig(file_path=Path("/dev/full")))
    log = logging.getLogger("mcp_server.test")
    log.info("it opens with %s", "password=hunter2hunter2")
    log.info("line.two")
    lines = records(capsys)
    assert [line["event"] for line in lines] == ["it opens with password=***", "log.file_not_written", "line.two"]
    assert lines[1]["path"] == "/dev/full"
    assert "No space left" in lines[1]["message"]


def test_a_file_that_cannot_be_opened_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "server.log", tmp_path):
        with pytest.raises(PlatformError, match="The log file") as caught:
            configure_logging(LoggingConfig(file_path=path))
        assert caught.value.code == "permission_denied"
        assert "logging.file_path" in caught.value.hint


def test_structlog_is_imported_without_rich_and_rich_can_be_imported_later() -> None:
    code = """
import sys
import mcp_server.logger
assert "structlog" in sys.modules
assert not [name for name in sys.modules if name.split(".")[0] in {"rich", "pygments"}]
from rich.console import Console
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_nothing_is_written_to_standard_output_before_logging_is_configured() -> None:
    code = "from mcp_server.logger import get_logger; get_logger('x').warning('a.b', count=1)"
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout == "", "standard output is the connection of MCP"
    assert "a.b" in done.stderr
