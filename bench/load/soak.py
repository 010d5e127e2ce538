"""``python -m bench.load.soak MINUTES``: run one server under steady load, and check whether its resources grow.

Every ten seconds it reads memory, descriptors, threads, tasks and children of the server. It ignores the first fifth of
the time, in which caches fill, and compares the first quarter of the rest with the last. The exit status is 1 if a
value has grown or a request had an unintended response or none, and 2 if the time was too short for a comparison.
"""

from __future__ import annotations

import asyncio
import random
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final

from bench.load.http import Connection, Response, Served, served
from bench.memory import ResourceUse

SAMPLE_SEC: Final = 10.0
PAUSES: Final = {"/health": 1.0, "/runs?limit=50": 0.5, "/scope?target=127.0.0.1": 0.5, "/metrics": 5.0}
SCAN_PAUSE_SEC: Final = 2.0
REFUSED_PAUSE_SEC: Final = 1.0
DISCONNECT_SEC: Final = 3.0
TIMEOUT_SEC: Final = 60.0
WARM_UP_SHARE: Final = 0.2
MAY_GROW: Final = {"resident_mb": 0.05, "files": 0.0, "threads": 0.0, "tasks": 0.0, "children": 0.0}
"""Allowed growth as a fraction; `SLACK` is the allowed growth as a number, because these values vary."""
SLACK: Final = {"resident_mb": 0.0, "files": 3.0, "threads": 2.0, "tasks": 6.0, "children": 1.0}
LEAST_SAMPLES: Final = 8
INTENDED: Final = frozenset(
    {
        *(f"{path.partition('?')[0]} 200" for path in PAUSES),
        "scan 200",
        "scan disconnected",
        "refused 400",
        "events 200",
    }
)
"""The intended responses. There is one scan at a time and no rate limit, so no call should get 429."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The resources of the server at one moment."""

    resident_mb: float
    files: float
    threads: float
    tasks: float
    children: float

    @classmethod
    async def of(cls, server: Served, connection: Connection) -> Sample:
        """Read the current values; the number of tasks comes from the last health check of the server."""
        used, threads = ResourceUse.of(server.pid), _threads(server.pid)
        tasks = re.search(r"(\d+) tasks", (await connection.get("/health")).body.decode())
        return cls(used.resident / 1e6, used.files, threads, int(tasks[1]) if tasks else 0, used.children)


def _threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


async def _soak(server: Served, seconds: float) -> tuple[list[Sample], Counter[str]]:
    until = time.monotonic() + seconds
    responses: Counter[str] = Counter()
    work = [_reads(server, path, pause, until, responses) for path, pause in PAUSES.items()]
    work += [
        _scans(server, until, responses),
        _refusals(server, until, responses),
        _event_readers(server, until, responses),
    ]
    tasks = [asyncio.create_task(each) for each in work]
    samples, connection = [], Connection(server.port, server.token)
    while time.monotonic() < until:
        await asyncio.sleep(min(SAMPLE_SEC, seconds / 20))
        samples.append(await Sample.of(server, connection))
    await connection.close()
    await asyncio.gather(*tasks)
    return samples, responses


async def _status(connection: Connection, call: Awaitable[Response], timeout_sec: float = TIMEOUT_SEC) -> str:
    """Return the status of a response; without one, close the connection and return ``late`` or ``lost``."""
    try:
        return str((await asyncio.wait_for(call, timeout_sec)).status)
    except TimeoutError:
        status = "late"
    except (OSError, asyncio.IncompleteReadError):
        status = "lost"
    await connection.close()
    return status


async def _reads(server: Served, path: str, pause: float, until: float, responses: Counter[str]) -> None:
    connection = Connection(server.port, server.token)
    while time.monotonic() < until:
        responses[f"{path.partition('?')[0]} {await _status(connection, connection.get(path))}"] += 1
        await asyncio.sleep(pause)
    await connection.close()


async def _scans(server: Served, until: float, responses: Counter[str]) -> None:
    chance = random.Random(1)  # noqa: S311 - a seed, no secret
    connection = Connection(server.port, server.token)
    while time.monotonic() < until:
        # Every tenth client disconnects in the middle, which cancels the run.
        disconnects = chance.random() < 0.1
        ports = "1-60000" if disconnects else "1-100"
        call = connection.post("/tools/nmap/execute", {"target": f"127.0.0.{chance.randint(1, 254)}", "ports": ports})
        status = await _status(connection, call, DISCONNECT_SEC if disconnects else TIMEOUT_SEC)
        responses["scan disconnected" if disconnects and status == "late" else f"scan {status}"] += 1
        await asyncio.sleep(SCAN_PAUSE_SEC)
    await connection.close()


async def _refusals(server: Served, until: float, responses: Counter[str]) -> None:
    connection = Connection(server.port, server.token)
    while time.monotonic() < until:
        call = connection.post("/tools/nmap/execute", {"target": "8.8.8.8"})
        responses[f"refused {await _status(connection, call)}"] += 1
        await asyncio.sleep(REFUSED_PAUSE_SEC)
    await connection.close()


async def _event_readers(server: Served, until: float, responses: Counter[str]) -> None:
    """Connect to the event stream, read for a while and disconnect, again and again."""
    while time.monotonic() < until:
        responses[f"events {await _listen(server)}"] += 1


async def _listen(server: Served) -> str:
    head = f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {server.token}\r\n\r\n"
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head.encode())
        words = (await asyncio.wait_for(reader.readline(), TIMEOUT_SEC)).split()
    except TimeoutError:
        words = [b"", b"late"]
    except OSError:
        words = []
    await asyncio.sleep(DISCONNECT_SEC)
    if writer is not None:
        writer.close()
    return words[1].decode() if len(words) > 1 else "lost"


def grown(samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """Return the values that have grown too much, each with the medians of the first and the last quarter."""
    after = samples[int(WARM_UP_SHARE * len(samples)) :]
    quarter = max(len(after) // 4, 1)
    found = {}
    for index, name in enumerate(each.name for each in fields(Sample)):
        early, late = (
            statistics.median(astuple(each)[index] for each in part) for part in (after[:quarter], after[-quarter:])
        )
        if late > early * (1 + MAY_GROW[name]) + SLACK[name]:
            found[name] = (early, late)
    return found


def unintended(responses: Mapping[str, int]) -> dict[str, int]:
    """Return the responses that are not in `INTENDED`."""
    return {what: count for what, count in sorted(responses.items()) if what not in INTENDED}


def verdict(samples: Sequence[Sample], responses: Mapping[str, int]) -> tuple[int, list[str]]:
    """Return the exit status and the lines with its reasons."""
    wrong, short = unintended(responses), len(samples) < LEAST_SAMPLES
    more = {} if short else grown(samples)
    lines = [f"NOT INTENDED: {what} x{count}" for what, count in wrong.items()]
    lines += [f"GROWN: {name} from {early:.1f} to {late:.1f}" for name, (early, late) in more.items()]
    lines.append("too short for a comparison" if short else "not flat" if more else "flat")
    if wrong or more:
        return 1, lines
    return 2 if short else 0, lines


def main(words: Sequence[str]) -> int:
    """Run for the given number of minutes, or for one."""
    seconds = 60 * float(words[0] if words else 1)
    with served() as server:
        samples, responses = asyncio.run(_soak(server, seconds))
    print(f"{'minute':>8}  " + "  ".join(f"{each.name:>12}" for each in fields(Sample)))
    for index in range(0, len(samples), max(len(samples) // 15, 1)):
        minute = (index + 1) / len(samples) * seconds / 60
        print(f"{minute:8.1f}  " + "  ".join(f"{value:12.1f}" for value in astuple(samples[index])))
    print("responses: " + ", ".join(f"{what} x{count}" for what, count in sorted(responses.items())))
    status, lines = verdict(samples, responses)
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
