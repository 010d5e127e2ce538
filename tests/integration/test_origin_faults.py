"""What was broken in the server this project follows, where no other test would notice that it has come back."""

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


async def test_programs_are_started_over_http_also_where_uvloop_is_installed(tmp_path: Path) -> None:
    """There every spawn failed, because another loop's policy was put in place once the first was running."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "uvloop.py").write_text(UVLOOP)
    path = os.pathsep.join(filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH")]))
    with http_server(environment(tmp_path / "state", PYTHONPATH=path)) as (base, token, _):
        async with rest_client(base, token) as client:
            answer = await client.post("/tools/nmap/execute", json={"target": "127.0.0.1", "ports": "1-3"})
    assert (answer.status_code, answer.json()["outcome"]) == (200, "completed")
    assert not (tmp_path / "site" / "imported").exists()


async def test_the_rate_limiter_goes_on_after_a_hundred_calls(tmp_path: Path) -> None:
    env = environment(tmp_path / "state", MCP_RATE_LIMIT_CALLS_PER_MINUTE="130")
    with http_server(env) as (base, token, _):
        async with rest_client(base, token) as client:
            answers = [await client.post("/tools/nmap/execute", json={"target": "8.8.8.8"}) for _ in range(135)]
    assert [answer.status_code for answer in answers] == [400] * 130 + [429] * 5
