"""Run the command line as a user would, and run many commands without importing the modules each time.

As a program, this reads one JSON list of lists of words from standard input, forks for each, runs `mcp_server.cli.main`
there, and prints a JSON list of ``[exit code, stdout, stderr]``.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "mcp_server")
Done = tuple[int, str, str]


def run(*words: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run one command without a terminal and wait for its end."""
    return subprocess.run(
        [*COMMAND, *words],
        env=dict(env),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


async def batch(env: Mapping[str, str], *commands: Sequence[str]) -> list[Done]:
    """Run every command line (without the program name), one after the other, each in its own process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.cli",
        env=dict(env),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate(json.dumps(commands).encode())
    assert process.returncode == 0
    return [(status, stdout, stderr) for status, stdout, stderr in json.loads(out)]


def _run(words: list[str]) -> NoReturn:
    # The same as execve(2) does to a word: surrogates become bytes that are not UTF-8, and NUL is not possible.
    sys.argv = ["mcp-network-tools", *(os.fsdecode(os.fsencode(word)) for word in words)]
    from mcp_server.cli import main

    try:
        main()
    except SystemExit as leaving:
        sys.stdout.flush()
        os._exit(leaving.code if isinstance(leaving.code, int) else 0)
    os._exit(0)


def _fork(words: list[str]) -> Done:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            _run(words)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return status, texts[0], texts[1]


def _main() -> None:
    import mcp_server.api.views
    import mcp_server.cli
    import mcp_server.server.enhanced
    import mcp_server.tools.nmap_tool  # noqa: F401 - as above

    commands = json.load(sys.stdin)
    json.dump([_fork(words) for words in commands], sys.stdout)


if __name__ == "__main__":
    _main()
