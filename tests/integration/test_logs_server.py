"""The log of a real server: one format, each event once with the ids of its call, live settings, no secrets."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.clock import SOON
from tests.support.interfaces import environment, http_server, mcp_client, over_mcp, over_rest, rest_client
from tests.support.site_tools import SiteTools, make_site_tools

SECRET = "hunter2hunter2"
MORE_TOOLS = f"""
import logging

class TalkingTool(MCPBaseTool):
    command_name = "site-probe"

    def build_command(self, parameters, targets, settings):
        logging.getLogger("site").info("building")
        return super().build_command(parameters, targets, settings)

class BreakingTool(MCPBaseTool):
    command_name = "site-probe"

    def build_command(self, parameters, targets, settings):
        raise RuntimeError("it failed with password={SECRET}")
"""


@pytest.fixture
def tools(tmp_path: Path) -> SiteTools:
    made = make_site_tools(tmp_path / "site")
    with (made.folder / made.package / "probe.py").open("a") as module:
        module.write(MORE_TOOLS)
    return made


def log_of(tmp_path: Path, base: str) -> Path:
    return tmp_path / f"server-{base.rpartition(':')[2]}.log"


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the log lines on the standard error of a server, without the two lines for the user who started it."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith(("Listening on", "Token, shown"))]
    return [json.loads(line) for line in lines]


async def until(there: Callable[[], bool]) -> None:
    async with asyncio.timeout(4 * SOON):
        while not there():
            await asyncio.sleep(0.05)


async def test_lines_of_a_call_have_its_ids_over_every_interface(tmp_path: Path, tools: SiteTools) -> None:
    env = environment(tmp_path / "state", LOG_LEVEL="DEBUG", **tools.env)
    with http_server(env) as (base, token, _):
        async with rest_client(base, token) as rest, mcp_client(base, token) as mcp:
            given = {"target": "127.0.0.1"}
            answers = [
                await over_rest(rest, "talking", given | {"correlation_id": "good-rest"}),
                await over_mcp(mcp, "talking", given | {"correlation_id": "good-mcp"}),
                await over_rest(rest, "breaking", given | {"correlation_id": "bad-rest"}),
                await over_mcp(mcp, "breaking", given | {"correlation_id": "bad-mcp"}),
            ]
    assert [answer.code for answer in answers] == [None, None, "internal_error", "internal_error"]
    text, lines = log_of(tmp_path, base).read_text(), json_lines(log_of(tmp_path, base))
    assert SECRET not in text + "".join(answer.text for answer in answers)
    for line in lines:
        assert {"event", "level", "logger", "timestamp"} <= line.keys()
    broke = [line for line in lines if "it failed" in line.get("exception", "")]
    assert len(broke) == 2, "one traceback is expected for each of the two failed calls"
    assert all("password=***" in line["exception"] for line in broke)
    for interface in ("rest", "mcp"):
        (logged,) = [
            line for line in lines if line.get("correlation_id") == f"good-{interface}" and line["logger"] == "site"
        ]
        assert (logged["event"], logged["tool"]) == ("building", "talking")
        assert logged["actor"]
        assert logged["run_id"]
    assert not [line for line in lines if "/execute" in line["event"] or "/mcp" in line["event"]], (
        "requests must not be logged"
    )


async def test_a_reload_changes_level_format_and_file(tmp_path: Path) -> None:
    state, path = tmp_path / "state", tmp_path / "config.yaml"
    file = tmp_path / "logs" / "server.log"

    def write(**logging: Any) -> None:
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps({"logging": logging, "server": {"watch_config": False}}))
        draft.rename(path)

    write(level="INFO", format="json")
    env = environment(state, MCP_CONFIG_FILE=str(path))
    with http_server(env) as (base, _, process):
        log = log_of(tmp_path, base)
        assert json_lines(log)
        write(level="WARNING", format="console", file_path=str(file))
        process.send_signal(signal.SIGHUP)
        await until(file.exists)
        write(level="INFO", format="json", file_path=str(file))
        process.send_signal(signal.SIGHUP)
        await until(lambda: "config.reloaded" in file.read_text())
        write(level="INFO", format="json", file_path=str(file / "below"))
        process.send_signal(signal.SIGHUP)
        await until(lambda: "config.not_reloaded" in file.read_text())
        assert file.stat().st_mode & 0o077 == 0
    last = [json.loads(line) for line in file.read_text().splitlines() if line.startswith("{")]
    (kept,) = [line for line in last if line["event"] == "config.not_reloaded"]
    assert kept["code"] == "permission_denied"
    assert "The log file" in kept["message"]
    assert any(line["event"] == "server.stopping" for line in last), "the previous file must still be written"
