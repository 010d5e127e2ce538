"""Runs the command line as a user does."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    """Run every command line (without the program's name), one after the other; exit codes and both outputs."""
    done = []
    for words in commands:
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *words,
            env=dict(env),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await process.communicate()
        done.append((await process.wait(), out.decode(), err.decode()))
    return done
