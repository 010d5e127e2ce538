"""The load of `python -m bench load`, shorter and with fewer clients: every client gets the intended responses."""

from __future__ import annotations

from bench.load.clients import ClientMix, run_load
from bench.load.http import served

MIX = ClientMix({"health": 4, "read": 12, "scan": 2, "refused": 4, "burst": 2}, seconds=5.0, pause_sec=0.5)
LIMIT = 120
"""Calls of one tool per minute: twice the nmap calls of the clients that pause, and far below the calls of a burst."""


async def test_clients_of_all_kinds_get_only_intended_responses() -> None:
    with served(MCP_RATE_LIMIT_CALLS_PER_MINUTE=str(LIMIT)) as server:
        done = await run_load(server, MIX)
        assert done.wrong() == {}, server.log.read_text()[-2000:]
        assert done.lost == 0
        assert done.unanswered() == []
        assert done.responses["scan"].statuses[200]
        # Calls up to the limit get 404; after that the burst is rate limited.
        assert done.responses["burst"].statuses[404] == LIMIT
        assert done.responses["burst"].statuses[429]
