"""`tests.support.cli` for hundreds of calls: everything that a call imports is loaded before the first fork.

This is also a program, with the same standard input and output as `tests.support.cli`.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress

from tests.support.cli import ROOT, Done, _fork


async def batch(env: Mapping[str, str], *commands: Sequence[str]) -> list[Done]:
    """Run every command line in its own process, one after the other."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.containment.warm_cli",
        env=dict(env),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate(json.dumps(commands).encode())
    assert process.returncode == 0
    return [(status, stdout, stderr) for status, stdout, stderr in json.loads(out)]


def _main() -> None:
    from mcp_server.cli import main

    commands = json.load(sys.stdin)
    sys.argv = ["mcp-network-tools", "call", "nmap", "target=8.8.8.8", "--json"]
    with redirect_stdout(io.StringIO()), suppress(SystemExit):
        main()
    gc.freeze()
    json.dump([_fork(words) for words in commands], sys.stdout)


if __name__ == "__main__":
    _main()
