"""The command line on terminals, in pipes and under signals."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import COMMAND, batch
from tests.support.interfaces import ROOT, cli_words, environment
from tests.support.processes import binary
from tests.support.scans import gone, own_network, slow_scan, started
from tests.support.terminal import on_a_terminal


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment(tmp_path_factory.mktemp("cli") / "state")


async def test_ctrl_c_ends_the_scan_with_exit_code_130(env: dict[str, str]) -> None:
    target = own_network()
    command = [*COMMAND, "call", "nmap", *cli_words(slow_scan(target))]
    async with on_a_terminal(command, env, ROOT) as terminal:
        await started(target)
        await asyncio.sleep(2.5)
        terminal.press(b"\x03")
        assert await terminal.ended(10) == 130
        assert await gone(target, 0.5)
    assert b"cancelled" in terminal.shown
    assert b"Traceback" not in terminal.shown
    ((_, out, _),) = await batch(env, ["runs", "list", "--limit", "1", "--json"])
    (record,) = json.loads(out)["runs"]
    assert (record["outcome"], record["parameters"]["target"]) == ("cancelled", target)
    assert record["coverage"]["looked_at"] > 0, "what was found so far is kept"


async def test_sigint_without_a_terminal_ends_the_scan(env: dict[str, str]) -> None:
    target = own_network()
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "call", "nmap", *cli_words(slow_scan(target)), "--json",
        env=env, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    await started(target)
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 10)
    assert (process.returncode, err) == (130, b"")
    assert json.loads(out)["error"]["code"] == "cancelled"
    assert await gone(target, 0.5)


async def test_a_progress_bar_appears_after_a_second_on_a_terminal_only(env: dict[str, str]) -> None:
    slow = ["call", "nmap", *cli_words(slow_scan(own_network())), "timeout_sec=4"]
    async with on_a_terminal([*COMMAND, *slow], env, ROOT) as terminal:
        assert await terminal.ended() == 6
    assert "nmap: 1 s, 0 up" in terminal.shown.decode()
    assert "━" in terminal.shown.decode()
    quick = ["call", "nmap", "target=127.0.0.1", "mode=discover"]
    async with on_a_terminal([*COMMAND, *quick], env, ROOT) as terminal:
        assert await terminal.ended() == 0
    assert "━" not in terminal.shown.decode()
    assert b"\x1b[?25l" not in terminal.shown, "nothing is drawn in the first second"
    ((_, _, err),) = await batch(env, [*slow[:-1], "timeout_sec=2"])
    assert "━" not in err


async def serve_banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An HTTP server whose name is markup, an escape sequence and a link."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(reader.read(100), 1)
    writer.write(b"HTTP/1.0 200 OK\r\nServer: Apache/2.4.1 ([red]x[/red] :skull: \x1b[31m \xe2\x80\xae)\r\n\r\n")
    writer.close()


async def test_a_banner_is_escaped_and_never_read_as_markup(env: dict[str, str]) -> None:
    # A port of the test's choice: at some of the ephemeral ones nmap tries probes of its own first.
    for port in range(18080, 18180):
        with contextlib.suppress(OSError):
            listening = await asyncio.start_server(serve_banner, "127.0.0.1", port)
            break
    async with listening:
        command = [*COMMAND, "call", "nmap", "target=127.0.0.1", f"ports={port}"]
        async with on_a_terminal(command, env, ROOT, columns=200) as terminal:
            assert await terminal.ended() == 0
    shown = " ".join(terminal.shown.decode().split())  # a narrow terminal folds it
    # nmap itself writes dots for what is not printable; brackets and colons are ours to leave alone.
    assert "Apache httpd 2.4.1 ([red]x[/red] :skull: .[31m ...)" in shown, shown


async def test_output_is_escaped_on_a_terminal_and_exact_in_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "loud").write_text("#!/bin/sh\nprintf '[red]\\033[31m\\342\\200\\256 \\\\ \\377\\n'\n")
    (tmp_path / "loud").chmod(0o755)
    (tmp_path / "loud_tools.py").write_text(
        "from mcp_server.base_tool import MCPBaseTool\nclass LoudTool(MCPBaseTool):\n    command_name = 'loud'\n"
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    mine = environment(tmp_path / "state", PATH=path, PYTHONPATH=str(tmp_path), TOOLS_PACKAGE="loud_tools")
    written = b"[red]\x1b[31m\xe2\x80\xae \\ \xff\n"
    escaped = rb"[red]\x1b[31m\u202e \\ \xff"
    async with on_a_terminal([*COMMAND, "call", "loud", "target=127.0.0.1"], mine, ROOT) as terminal:
        assert await terminal.ended() == 0
    assert terminal.shown.startswith(escaped + b"\r\n")
    ((_, out, _),) = await batch(mine, ["runs", "list", "--json"])
    raw = [*COMMAND, "runs", "raw", json.loads(out)["runs"][0]["id"]]
    async with on_a_terminal(raw, mine, ROOT) as terminal:
        assert await terminal.ended() == 0
    assert terminal.shown == escaped + b"\r\n"
    assert subprocess.run(raw, env=mine, cwd=ROOT, capture_output=True, check=True).stdout == written


async def test_raw_output_is_exact_in_a_pipe(env: dict[str, str], tmp_path: Path) -> None:
    ((_, made, _),) = await batch(env, ["call", "nmap", "target=127.0.0.1", "mode=discover", "--json"])
    run_id = json.loads(made)["run_id"]
    piped = subprocess.run([*COMMAND, "runs", "raw", run_id], env=env, cwd=ROOT, capture_output=True, check=True)
    with (tmp_path / "out").open("wb") as file:
        subprocess.run([*COMMAND, "runs", "raw", run_id], env=env, cwd=ROOT, stdout=file, check=True)
    ((_, out, _),) = await batch(env, ["runs", "raw", run_id, "--json"])
    kept = json.loads(out)
    assert hashlib.sha256(piped.stdout).hexdigest() == kept["sha256"]
    assert (tmp_path / "out").read_bytes() == piped.stdout
    assert len(piped.stdout) == kept["size"]


@pytest.mark.parametrize(
    "words", [["tools", "--json"], ["config", "show"], ["runs", "list"], ["config", "show", "--json"]]
)
def test_a_reader_that_closes_the_pipe_early_causes_no_error(env: dict[str, str], words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*COMMAND, *words], env=env, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 141


def test_head_gets_one_line(env: dict[str, str]) -> None:
    script = f"set -o pipefail; {' '.join(COMMAND)} config show | head -1"
    done = subprocess.run(
        [binary("bash"), "-c", script], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["KEY", "VALUE", "SOURCE", "STATUS", "ENVIRONMENT"]
    assert done.stderr == ""
