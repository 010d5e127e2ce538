"""Tool calls over HTTP: with uvloop installed, and more than a hundred of them."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.interfaces import environment, http_server, rest_client

UVLOOP = """
from pathlib import Path
Path(__file__).with_name("imported").touch()

def install():
    raise RuntimeError("a loop is running already")

class EventLoopPolicy:
    def __init__(self):
        install()

new_event_loop = run = install
"""


async def test_a_tool_runs_if_uvloop_is_installed_and_uvloop_is_not_imported(tmp_path: Path) -> None:
    # asyncio cannot start processes if the event loop policy changes while a loop runs.
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "uvloop.py").write_text(UVLOOP)
    path = os.pathsep.join(filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH")]))
    with http_server(environment(tmp_path / "state", PYTHONPATH=path)) as (base, token, _):
        async with rest_client(base, token) as client:
            response = await client.post("/tools/nmap/execute", json={"target": "127.0.0.1", "ports": "1-3"})
    assert (response.status_code, response.json()["outcome"]) == (200, "completed")
    assert not (tmp_path / "site" / "imported").exists(), "the server imported uvloop"


async def test_a_rate_limit_above_a_hundred_allows_exactly_so_many_calls(tmp_path: Path) -> None:
    env = environment(tmp_path / "state", MCP_RATE_LIMIT_CALLS_PER_MINUTE="130")
    with http_server(env) as (base, token, _):
        async with rest_client(base, token) as client:
            responses = [await client.post("/tools/nmap/execute", json={"target": "8.8.8.8"}) for _ in range(135)]
    assert [response.status_code for response in responses] == [400] * 130 + [429] * 5
