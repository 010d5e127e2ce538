"""The data folders of nmap: a user's own one is ignored, and without the installed one nmap is not run."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.support.interfaces import environment
from tests.support.namespaces import mount_namespace

HOSTILE = """
description = "x" author = "x" license = "x" categories = {"safe"}
portrule = function() return true end
action = function() return "not the reviewed script" end
"""


async def test_scripts_in_the_home_folder_are_not_run(tmp_path: Path) -> None:
    scripts = tmp_path / "home" / ".nmap" / "scripts"
    scripts.mkdir(parents=True)
    (scripts / "http-title.nse").write_text(HOSTILE)
    # nmap reads the home folder from the user database. So a mount namespace gets a changed /etc/passwd.
    users = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
    for user in users:
        if user[2] == str(os.geteuid()):
            user[5] = str(tmp_path / "home")
    (tmp_path / "passwd").write_text("".join(":".join(user) + "\n" for user in users))
    async with await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        with mount_namespace('mount --bind "$1" /etc/passwd', str(tmp_path / "passwd")) as inside:
            words = ["target=127.0.0.1", "mode=ports", f"ports={port}", "scripts=http-title", "--json"]
            process = await asyncio.create_subprocess_exec(
                *inside.prefix, sys.executable, "-m", "mcp_server", "call", "nmap", *words,
                env=environment(tmp_path / "state"), stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            out, _ = await asyncio.wait_for(process.communicate(), 60)
    answer = json.loads(out)
    assert answer["outcome"] == "completed"
    assert "not the reviewed script" not in json.dumps(answer)


async def test_nmap_is_not_run_without_its_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mcp_server.config import load_config
    from mcp_server.errors import PlatformError
    from mcp_server.model.access import FULL_ACCESS
    from mcp_server.model.run import Actor
    from mcp_server.sandbox.binaries import invalidate_command_cache
    from mcp_server.server import EnhancedMCPServer

    program = tmp_path / "bin" / "nmap"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setattr("mcp_server.pipeline.plan.PREFIXES", ())
    invalidate_command_cache()
    server = EnhancedMCPServer(load_config(env=environment(tmp_path / "state")))
    with pytest.raises(PlatformError, match="no data folder"):
        await server.pipeline.plan("nmap", {"target": "127.0.0.1"}, Actor("tester", "test", access=FULL_ACCESS))
    invalidate_command_cache()
