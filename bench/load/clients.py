"""Two hundred clients for a minute: health, reads, short scans, refusals and floods at once.

Most clients are like agents, who think between two requests; some flood, one request after the other, and are to be
told to wait. Reads are compared with reads of the same server before the others came.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.load.http import Answer, Connection, Served, served
from bench.memory import Held
from bench.result import Result

SECONDS: Final = float(os.environ.get("BENCH_LOAD_SECONDS", "60"))
CLIENTS: Final = {"health": 30, "read": 110, "scan": 6, "refused": 50, "flood": 4}
THINK_SEC: Final = 2.0
"""What a client that does not flood waits between two requests, on average."""
SLOWER: Final = 3.0
GROWTH: Final = 1.05
PATIENCE_SEC: Final = 30.0
"""After how long a request without an answer is lost; a server that hangs must not hang its benchmark."""
_IDLE_READS: Final = 400
_BETWEEN_SEC: Final = 0.02
_RUNS: Final = 20
"""As many as a page of them is asked for."""
_WARM_UP_SHARE: Final = 0.3

INTENDED: Final = {
    "health": {200},
    "read": {200},
    "scan": {200, 429},
    "refused": {400},
    "flood": {404, 429},
}
"""What each kind of client may be answered. A scan may find every place taken; a flood asks for a tool that is none."""
_READS: Final = ("/runs?limit=20", "/tools", "/scope?target=127.0.0.1", "/")


@dataclass(frozen=True, slots=True)
class Mix:
    """How many clients of each kind there are, for how long, and what one waits between two requests on average."""

    clients: Mapping[str, int]
    seconds: float
    think_sec: float


@dataclass(slots=True)
class Seen:
    """What the clients of one kind were answered; ``lost`` counts requests without an answer."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Storm:
    """What every kind was answered, and what the server held once it was warm and at the end."""

    seen: dict[str, Seen]
    early: Held
    late: Held

    @property
    def lost(self) -> int:
        """How many requests had no answer."""
        return sum(each.lost for each in self.seen.values())

    def wrong(self) -> dict[str, dict[int, int]]:
        """The statuses that are not among `INTENDED`, with their number, of each kind that had any."""
        found = {
            kind: {status: count for status, count in each.statuses.items() if status not in INTENDED[kind]}
            for kind, each in self.seen.items()
        }
        return {kind: counts for kind, counts in found.items() if counts}

    def unanswered(self) -> list[str]:
        """The kinds of which no client was answered at all."""
        return [kind for kind, each in self.seen.items() if not each.statuses]


def under_load() -> list[Result]:
    """No answer but the intended ones, reads at most three times as slow as alone, memory that stays."""
    # All have one token, so the limit is for all of them: above what those who think ask for, and below a flood.
    with served(MCP_RATE_LIMIT_CALLS_PER_MINUTE="2000", MCP_SERVER_MAX_CONNECTIONS="400") as server:
        return asyncio.run(_measure(server))


async def _measure(server: Served) -> list[Result]:
    idle = await _reads_alone(server)
    done = await storm(server, Mix(CLIENTS, SECONDS, THINK_SEC))
    seen, early, late = done.seen, done.early, done.late
    wrong, lost, unanswered = done.wrong(), done.lost, done.unanswered()
    bad = bool(wrong or lost or unanswered)
    total = sum(each.statuses.total() for each in seen.values())
    reads = p99(seen["read"].seconds)
    ratio, growth = reads / idle, late.resident / early.resident
    warm = _WARM_UP_SHARE * SECONDS
    told = "; ".join(f"{kind} {dict(each.statuses)}" for kind, each in seen.items())
    return [
        Result(
            "answers under load",
            f"{total:,} in {SECONDS:.0f} s",
            "only the intended",
            not bad,
            notes=(told, *([f"not intended: {wrong}, lost {lost}, never answered {unanswered}"] if bad else [])),
        ),
        Result(
            "a read under load, p99",
            f"{1000 * reads:.1f} ms",
            f"ratio <= {SLOWER:g}",
            ratio <= SLOWER,
            floor=f"{1000 * idle:.1f} ms",
            ratio=ratio,
            notes=(f"median {1000 * statistics.median(seen['read'].seconds):.1f} ms; the floor is the same alone",),
        ),
        Result(
            "memory under load",
            f"{late.resident / 1e6:.1f} MB",
            f"ratio <= {GROWTH:g}",
            growth <= GROWTH,
            floor=f"{early.resident / 1e6:.1f} MB",
            ratio=growth,
            notes=(f"the floor is after {warm:.0f} s; {early.files} descriptors then, {late.files} at the end",),
        ),
    ]


async def _reads_alone(server: Served) -> float:
    """The p99 of reads while nobody else is there, of a store that has as many runs to show as later."""
    connection = Connection(server.port, server.token)
    for _ in range(_RUNS):
        scan = await connection.post("/tools/nmap/execute", {"target": "127.0.0.1", "ports": "1-10"})
        assert scan.status == 200, scan.body
    taken = []
    for turn in range(_IDLE_READS + 100):
        # As far apart as those of the crowd: a request that comes at once finds every cache warm.
        await asyncio.sleep(_BETWEEN_SEC)
        taken.append((await connection.get(_READS[turn % len(_READS)])).seconds)
    del taken[:100]
    await connection.close()
    return p99(taken)


async def storm(server: Served, mix: Mix) -> Storm:
    """Let the clients of ``mix`` at ``server``, all at once, until its time is over."""
    loop = asyncio.get_running_loop()
    until = loop.time() + mix.seconds
    seen = {kind: Seen() for kind in mix.clients}
    clients = [
        asyncio.create_task(_client(server, kind, seen[kind], until, mix.think_sec, random.Random(f"{kind}{number}")))  # noqa: S311 - a seed, no secret
        for kind, count in mix.clients.items()
        for number in range(count)
    ]
    await asyncio.sleep(_WARM_UP_SHARE * mix.seconds)
    early = Held.by(server.pid)
    await asyncio.gather(*clients)
    return Storm(seen, early, Held.by(server.pid))


async def _client(server: Served, kind: str, seen: Seen, until: float, think_sec: float, chance: random.Random) -> None:
    loop = asyncio.get_running_loop()
    connection = Connection(server.port, server.token)
    ask = _asks(connection, chance)[kind]
    if kind != "flood":
        await asyncio.sleep(chance.uniform(0, think_sec))
    while loop.time() < until:
        try:
            answer = await asyncio.wait_for(ask(), PATIENCE_SEC)
        except (OSError, asyncio.IncompleteReadError):  # of which a time-out is one
            seen.lost += 1
            await connection.close()
            continue
        seen.seconds.append(answer.seconds)
        seen.statuses[answer.status] += 1
        if kind != "flood":
            await asyncio.sleep(chance.uniform(0, 2 * think_sec))
    await connection.close()


def _asks(connection: Connection, chance: random.Random) -> dict[str, Callable[[], Awaitable[Answer]]]:
    def post(tool: str, **arguments: object) -> Awaitable[Answer]:
        return connection.post(f"/tools/{tool}/execute", arguments)

    return {
        "health": lambda: connection.get("/health"),
        "read": lambda: connection.get(chance.choice(_READS)),
        "scan": lambda: post("nmap", target=f"127.0.0.{chance.randint(1, 250)}", ports="1-10"),
        "refused": lambda: post("nmap", target="8.8.8.8"),
        "flood": lambda: post("none", target="127.0.0.1"),
    }


def p99(values: Sequence[float]) -> float:
    """The 99th percentile: the smallest value that 99 of 100 do not exceed."""
    return sorted(values)[max(0, -(-99 * len(values) // 100) - 1)]
