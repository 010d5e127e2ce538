"""The mix of `python -m bench load`, shorter and with fewer clients: everybody is answered, and as intended."""

from __future__ import annotations

from bench.load.clients import Mix, storm
from bench.load.http import served

MIX = Mix({"health": 4, "read": 12, "scan": 2, "refused": 4, "flood": 2}, seconds=5.0, think_sec=0.5)
LIMIT = 120
"""Calls of one tool in a minute: twice what those who think ask of nmap in five seconds, and far below what a
flood asks of its own name."""


async def test_a_crowd_of_all_kinds_gets_none_but_the_intended_answers() -> None:
    with served(MCP_RATE_LIMIT_CALLS_PER_MINUTE=str(LIMIT)) as server:
        done = await storm(server, MIX)
        assert done.wrong() == {}, server.log.read_text()[-2000:]
        assert done.lost == 0
        assert done.unanswered() == []
        assert done.seen["scan"].statuses[200]
        # As many calls as the limit are looked at; after that the flood is told to wait.
        assert done.seen["flood"].statuses[404] == LIMIT
        assert done.seen["flood"].statuses[429]
