"""Step 5, run: the process, its output spooled, parsed and folded as it comes; progress while it goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from mcp_server.model.digest import HostDigest
from mcp_server.model.run import Raw
from mcp_server.observability import tracing
from mcp_server.pipeline.authorize import AuthorizedPlan
from mcp_server.pipeline.record import Recorder
from mcp_server.sandbox.process import Exit, run_process
from mcp_server.tools.base import OutputParser, Parsed

if TYPE_CHECKING:
    from mcp_server.store.blobs import RawSpool

T = TypeVar("T")

Progress = Callable[[float, str], Awaitable[None]]
"""Takes the share done (0.0-1.0, never falling) and a sentence of our own words, nothing from a target."""

TICK_SEC = 1.0


@dataclass(frozen=True, slots=True)
class ProgressUpdate:
    """How far a run is: the share done (0.0-1.0, never falling), seconds since its start, hosts that were up."""

    share: float
    elapsed: float
    up: int | None

    def sentence(self, tool: str) -> str:
        """The beat in our own words, nothing from a target."""
        found = "" if self.up is None else f", {self.up} up"
        return f"{tool}: {self.elapsed:.0f} s{found}"


@dataclass(frozen=True, slots=True)
class Execution:
    """What running gave: how the process ended, what the parser knows, the folded hosts, the head of stdout."""

    exit: Exit
    parsed: Parsed | None
    digest: HostDigest | None
    stdout: bytes
    truncated_stdout: bool
    raw: Raw


class _OutputCollector:
    """Receives standard output: whole to the spool and the parser, its first bytes for the answer."""

    def __init__(self, parser: OutputParser | None, recorder: Recorder, spool: RawSpool, head_bytes: int) -> None:
        self.parser = parser
        self.digest = HostDigest() if parser else None
        self.head = bytearray()
        self.truncated = False
        self.parse_sec = 0.0
        self._recorder = recorder
        self._spool = spool
        self._head_bytes = head_bytes

    def take(self, data: bytes) -> None:
        self._spool.write(data)
        room = self._head_bytes - len(self.head)
        self.head += data[:room]
        self.truncated |= len(data) > room
        if self.parser is not None and self.digest is not None:
            begun = time.perf_counter()
            hosts = list(self.parser.feed(data))
            for host in hosts:
                self.digest.add(host)
            self.parse_sec += time.perf_counter() - begun
            self._recorder.see(hosts)


async def run(
    authorized: AuthorizedPlan,
    recorder: Recorder,
    spool: RawSpool,
    *,
    head_bytes: int,
    on_update: Callable[[ProgressUpdate], Awaitable[None]],
) -> Execution:
    """Run an authorized plan to its end; raises PlatformError where the process cannot be started.

    ``on_update`` is awaited once a second; what it raises ends the run and is raised here. On that and on cancellation
    the whole process tree is gone, and what was collected is in the recorder, when this raises.
    """
    plan = authorized.plan
    parser = plan.call.tool.parser(plan.call.parameters, plan.targets, plan.command)
    collector = _OutputCollector(parser, recorder, spool, head_bytes)
    try:
        with tracing.span("parse") as span:  # output is parsed as it comes, so beside the program
            process = run_process(plan.argv, plan.limits, collector.take, executor=plan.executor, sandbox=plan.sandbox)
            exit_ = await _with(
                process, recorder.keep_writing(), _report_progress(collector, plan.limits.timeout_sec, on_update)
            )
            if collector.digest:
                span.set(
                    **{
                        "mcp_network_tools.parse_sec": collector.parse_sec,
                        "mcp_network_tools.hosts_up": collector.digest.up,
                        "mcp_network_tools.open_ports": collector.digest.open_ports,
                    }
                )
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


async def _report_progress(
    collector: _OutputCollector, timeout_sec: float, on_update: Callable[[ProgressUpdate], Awaitable[None]]
) -> None:
    """Say how far the run is, once a second, until cancelled."""
    loop = asyncio.get_running_loop()
    started, shown = loop.time(), 0.0
    while True:
        await asyncio.sleep(TICK_SEC)
        done = collector.parser.progress if collector.parser else None
        elapsed = loop.time() - started
        # A tool that does not say how far it is shows the share of its time limit instead.
        shown = max(shown, min(done if done is not None else elapsed / timeout_sec, 0.99))
        await on_update(ProgressUpdate(shown, elapsed, collector.digest.up if collector.digest else None))


async def _with(work: Coroutine[Any, Any, T], *beside: Coroutine[Any, Any, None]) -> T:
    """Do ``work`` with others beside it, which end with it; one of them that fails ends it, and is what is raised."""
    working = asyncio.create_task(work)
    tasks = [asyncio.create_task(each) for each in beside]
    for task in tasks:
        task.add_done_callback(lambda task: None if task.cancelled() or not task.exception() else working.cancel())
    try:
        return await working
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        failure = next((end for end in ends if isinstance(end, Exception)), None)
        this = asyncio.current_task()
        if failure is not None and not (this and this.cancelling()):
            raise failure
