"""``python -m bench.load.soak MINUTES``: one server under a steady mix, and whether what it holds stays the same.

Every ten seconds the memory, descriptors, threads, tasks and children of the server are read. Of the time after the
first fifth, in which caches fill, the first quarter is compared with the last. The status is 1 where one has grown, and
where a request was answered otherwise than intended or not at all; 2 where the time was too short to compare.
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

from bench.load.http import Answer, Connection, Served, served
from bench.memory import Held

SAMPLE_SEC: Final = 10.0
PAUSES: Final = {"/health": 1.0, "/runs?limit=50": 0.5, "/scope?target=127.0.0.1": 0.5, "/metrics": 5.0}
SCAN_PAUSE_SEC: Final = 2.0
REFUSED_PAUSE_SEC: Final = 1.0
LEAVES_SEC: Final = 3.0
PATIENCE_SEC: Final = 60.0
WARM_UP_SHARE: Final = 0.2
MAY_GROW: Final = {"resident_mb": 0.05, "files": 0.0, "threads": 0.0, "tasks": 0.0, "children": 0.0}
"""By which share each may be more at the end; descriptors, threads, tasks and children go up and down by `SLACK`."""
SLACK: Final = {"resident_mb": 0.0, "files": 3.0, "threads": 2.0, "tasks": 6.0, "children": 1.0}
LEAST_SAMPLES: Final = 8
INTENDED: Final = frozenset(
    {*(f"{path.partition('?')[0]} 200" for path in PAUSES), "scan 200", "scan left", "refused 400", "events 200"}
)
"""What may be counted. There is one scan at a time and no rate limit, so that none is told to wait."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the server held at one moment."""

    resident_mb: float
    files: float
    threads: float
    tasks: float
    children: float

    @classmethod
    async def of(cls, server: Served, connection: Connection) -> Sample:
        """What it holds now; its tasks as its own check of the process counted them last."""
        held, threads = Held.by(server.pid), _threads(server.pid)
        tasks = re.search(r"(\d+) tasks", (await connection.get("/health")).body.decode())
        return cls(held.resident / 1e6, held.files, threads, int(tasks[1]) if tasks else 0, held.children)


def _threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


async def _soak(server: Served, seconds: float) -> tuple[list[Sample], Counter[str]]:
    until = time.monotonic() + seconds
    answers: Counter[str] = Counter()
    work = [_reads(server, path, pause, until, answers) for path, pause in PAUSES.items()]
    work += [_scans(server, until, answers), _refusals(server, until, answers), _listeners(server, until, answers)]
    tasks = [asyncio.create_task(each) for each in work]
    samples, connection = [], Connection(server.port, server.token)
    while time.monotonic() < until:
        await asyncio.sleep(min(SAMPLE_SEC, seconds / 20))
        samples.append(await Sample.of(server, connection))
    await connection.close()
    await asyncio.gather(*tasks)
    return samples, answers


async def _told(connection: Connection, call: Awaitable[Answer], patience: float = PATIENCE_SEC) -> str:
    """The status of an answer; ``late`` or ``lost`` where none came, and the connection is closed then."""
    try:
        return str((await asyncio.wait_for(call, patience)).status)
    except TimeoutError:
        said = "late"
    except (OSError, asyncio.IncompleteReadError):
        said = "lost"
    await connection.close()
    return said


async def _reads(server: Served, path: str, pause: float, until: float, answers: Counter[str]) -> None:
    connection = Connection(server.port, server.token)
    while time.monotonic() < until:
        answers[f"{path.partition('?')[0]} {await _told(connection, connection.get(path))}"] += 1
        await asyncio.sleep(pause)
    await connection.close()


async def _scans(server: Served, until: float, answers: Counter[str]) -> None:
    chance = random.Random(1)  # noqa: S311 - a seed, no secret
    connection = Connection(server.port, server.token)
    while time.monotonic() < until:
        # A client that goes away in the middle now and then; the run is cancelled.
        leaves = chance.random() < 0.1
        ports = "1-60000" if leaves else "1-100"
        call = connection.post("/tools/nmap/execute", {"target": f"127.0.0.{chance.randint(1, 254)}", "ports": ports})
        said = await _told(connection, call, LEAVES_SEC if leaves else PATIENCE_SEC)
        answers["scan left" if leaves and said == "late" else f"scan {said}"] += 1
        await asyncio.sleep(SCAN_PAUSE_SEC)
    await connection.close()


async def _refusals(server: Served, until: float, answers: Counter[str]) -> None:
    connection = Connection(server.port, server.token)
    while time.monotonic() < until:
        call = connection.post("/tools/nmap/execute", {"target": "8.8.8.8"})
        answers[f"refused {await _told(connection, call)}"] += 1
        await asyncio.sleep(REFUSED_PAUSE_SEC)
    await connection.close()


async def _listeners(server: Served, until: float, answers: Counter[str]) -> None:
    """Readers of events who come, listen for a while and go without a word."""
    while time.monotonic() < until:
        answers[f"events {await _listen(server)}"] += 1


async def _listen(server: Served) -> str:
    head = f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {server.token}\r\n\r\n"
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head.encode())
        words = (await asyncio.wait_for(reader.readline(), PATIENCE_SEC)).split()
    except TimeoutError:
        words = [b"", b"late"]
    except OSError:
        words = []
    await asyncio.sleep(LEAVES_SEC)
    if writer is not None:
        writer.close()
    return words[1].decode() if len(words) > 1 else "lost"


def grown(samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """What is more at the end than it may be: its name, the median of the first quarter and that of the last."""
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


def unintended(answers: Mapping[str, int]) -> dict[str, int]:
    """What was counted that is not among `INTENDED`."""
    return {what: count for what, count in sorted(answers.items()) if what not in INTENDED}


def verdict(samples: Sequence[Sample], answers: Mapping[str, int]) -> tuple[int, list[str]]:
    """The status to end with, and the lines that say why."""
    wrong, short = unintended(answers), len(samples) < LEAST_SAMPLES
    more = {} if short else grown(samples)
    lines = [f"NOT INTENDED: {what} x{count}" for what, count in wrong.items()]
    lines += [f"GROWN: {name} from {early:.1f} to {late:.1f}" for name, (early, late) in more.items()]
    lines.append("too short to say whether it grows" if short else "not flat" if more else "flat")
    if wrong or more:
        return 1, lines
    return 2 if short else 0, lines


def main(words: Sequence[str]) -> int:
    """Soak for as many minutes as the first word says, one without any."""
    seconds = 60 * float(words[0] if words else 1)
    with served() as server:
        samples, answers = asyncio.run(_soak(server, seconds))
    print(f"{'minute':>8}  " + "  ".join(f"{each.name:>12}" for each in fields(Sample)))
    for index in range(0, len(samples), max(len(samples) // 15, 1)):
        minute = (index + 1) / len(samples) * seconds / 60
        print(f"{minute:8.1f}  " + "  ".join(f"{value:12.1f}" for value in astuple(samples[index])))
    print("answers: " + ", ".join(f"{what} x{count}" for what, count in sorted(answers.items())))
    status, lines = verdict(samples, answers)
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
