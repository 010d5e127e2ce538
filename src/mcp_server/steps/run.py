"""Step 5, run: the process, its output spooled, parsed and folded as it comes; progress while it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mcp_server.base_tool import OutputParser, Parsed
from mcp_server.execution.process import Exit, run_process
from mcp_server.model.digest import HostDigest
from mcp_server.model.run import Raw
from mcp_server.steps.authorise import Authorised
from mcp_server.steps.remember import Recorder

if TYPE_CHECKING:
    from mcp_server.store.blobs import RawSpool

Progress = Callable[[float, str], Awaitable[None]]
"""Takes the share done (0.0-1.0, never falling) and a sentence of our own words, nothing from a target."""

TICK_SEC = 1.0


@dataclass(frozen=True, slots=True)
class Execution:
    """What running gave: how the process ended, what the parser knows, the folded hosts, the head of stdout."""

    exit: Exit
    parsed: Parsed | None
    digest: HostDigest | None
    stdout: bytes
    truncated_stdout: bool
    raw: Raw


class _Collector:
    """Receives standard output: whole to the spool and the parser, its first bytes for the answer."""

    def __init__(self, parser: OutputParser | None, recorder: Recorder, spool: RawSpool, head_bytes: int) -> None:
        self.parser = parser
        self.digest = HostDigest() if parser else None
        self.head = bytearray()
        self.truncated = False
        self._recorder = recorder
        self._spool = spool
        self._head_bytes = head_bytes

    def take(self, data: bytes) -> None:
        self._spool.write(data)
        room = self._head_bytes - len(self.head)
        self.head += data[:room]
        self.truncated |= len(data) > room
        if self.parser is not None and self.digest is not None:
            hosts = list(self.parser.feed(data))
            for host in hosts:
                self.digest.add(host)
            self._recorder.see(hosts)


async def run(
    authorised: Authorised, recorder: Recorder, spool: RawSpool, *, head_bytes: int, progress: Progress | None
) -> Execution:
    """Run an authorised plan to its end; raises PlatformError where the process cannot be started.

    On cancellation the whole process tree is gone, and what was collected is in the recorder, when this raises.
    """
    plan = authorised.plan
    parser = plan.call.tool.parser(plan.call.parameters, plan.targets, plan.invocation)
    collector = _Collector(parser, recorder, spool, head_bytes)
    try:
        async with _beside(recorder.keep_writing(), _report(collector, recorder, plan.limits.timeout_sec, progress)):
            exit_ = await run_process(plan.argv, plan.limits, collector.take, place=plan.place, sandbox=plan.sandbox)
    except BaseException:
        if parser and collector.digest:
            recorder.cut_short(parser.close().coverage, collector.digest)
        raise
    return Execution(
        exit=exit_,
        parsed=parser.close() if parser else None,
        digest=collector.digest,
        stdout=bytes(collector.head),
        truncated_stdout=collector.truncated,
        raw=spool.finish(),
    )


async def _report(collector: _Collector, recorder: Recorder, timeout_sec: float, progress: Progress | None) -> None:
    """Tell how far the run is, once a second, until cancelled."""
    if progress is None:
        return
    loop = asyncio.get_running_loop()
    started, shown = loop.time(), 0.0
    while True:
        await asyncio.sleep(TICK_SEC)
        done = collector.parser.progress if collector.parser else None
        elapsed = loop.time() - started
        # A tool that does not say how far it is shows the share of its time limit instead.
        shown = max(shown, min(done if done is not None else elapsed / timeout_sec, 0.99))
        found = f", {collector.digest.up} up" if collector.digest else ""
        await progress(shown, f"{recorder.run.tool}: {elapsed:.0f} s{found}")


@asynccontextmanager
async def _beside(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do ``work`` while the block runs, and stop it then; what made one of them fail is raised at the end."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):
            raise end
