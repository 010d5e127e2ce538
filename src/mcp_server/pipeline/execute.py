"""Step 5, execute: run the program, keep its output, and parse it as it arrives. Progress is reported once a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from mcp_server.model.run import Raw
from mcp_server.observability import tracing
from mcp_server.pipeline.authorize import AuthorizedPlan
from mcp_server.pipeline.record import Recorder
from mcp_server.sandbox.process import Exit, run_process
from mcp_server.tools.results import Digest, OutputParser, Parsed

if TYPE_CHECKING:
    from mcp_server.store.blobs import RawSpool

T = TypeVar("T")

Progress = Callable[[float, str], Awaitable[None]]
"""Gets the share of the run that is done (0.0 to 1.0, never falling) and a sentence without text from a target."""

TICK_SEC = 1.0


@dataclass(frozen=True, slots=True)
class ProgressUpdate:
    """The progress of a run: the share done (0.0 to 1.0, never falling), seconds since its start, and its counts.

    ``summary`` describes the counts in words. Counts and summary are empty for a tool without a digest.
    """

    share: float
    elapsed: float
    counts: Mapping[str, int]
    summary: str

    def sentence(self, tool: str) -> str:
        """Return the progress as a sentence without any text from a target."""
        return f"{tool}: {self.elapsed:.0f} s" + (f", {self.summary}" if self.summary else "")


@dataclass(frozen=True, slots=True)
class Execution:
    """The result of a process: how it ended, the parser's result, the digest, and the first bytes of its output."""

    exit: Exit
    parsed: Parsed | None
    digest: Digest | None
    stdout: bytes
    truncated_stdout: bool
    raw: Raw


class _OutputCollector:
    """Passes standard output to the spool and to the parser, and keeps its first bytes for the answer."""

    def __init__(
        self,
        parser: OutputParser | None,
        digest: Digest | None,
        recorder: Recorder,
        spool: RawSpool,
        head_bytes: int,
    ) -> None:
        self.parser = parser
        self.digest = digest
        self.head = bytearray()
        self.truncated = False
        self.parse_sec = 0.0
        self._recorder = recorder
        self._spool = spool
        self._head_bytes = head_bytes

    def take(self, data: bytes) -> None:
        self._spool.write(data)
        missing = self._head_bytes - len(self.head)
        self.head += data[:missing]
        self.truncated |= len(data) > missing
        if self.parser is not None and self.digest is not None:
            started = time.perf_counter()
            observations = list(self.parser.feed(data))
            for observation in observations:
                self.digest.add(observation)
            self.parse_sec += time.perf_counter() - started
            self._recorder.see(observations)


async def run(
    authorized: AuthorizedPlan,
    recorder: Recorder,
    spool: RawSpool,
    *,
    head_bytes: int,
    on_update: Callable[[ProgressUpdate], Awaitable[None]],
) -> Execution:
    """Run an authorized plan to its end. Raises PlatformError if the process cannot be started.

    ``on_update`` is awaited once a second. If it raises, the run ends and the error is raised here. If this function
    raises or is cancelled, every process of the run has ended, and the recorder has the data collected until then.
    """
    plan = authorized.plan
    tool = plan.call.tool
    parser = tool.parser(plan.call.prepared, plan.targets, plan.command)
    collector = _OutputCollector(parser, tool.digest(), recorder, spool, head_bytes)
    try:
        with tracing.span("parse") as span:  # output is parsed while the program runs
            process = run_process(plan.argv, plan.limits, collector.take, executor=plan.executor, sandbox=plan.sandbox)
            exit_ = await _with_background(
                process, recorder.keep_writing(), _report_progress(collector, plan.limits.timeout_sec, on_update)
            )
            if collector.digest:
                counts = {f"mcp_network_tools.{name}": count for name, count in collector.digest.counts.items()}
                span.set(**{"mcp_network_tools.parse_sec": collector.parse_sec}, **counts)
    except BaseException:
        if parser and collector.digest:
            recorder.cut_short(parser.close().coverage, collector.digest.counts)
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
    """Report the progress of the run once a second, until cancelled."""
    loop = asyncio.get_running_loop()
    started, shown = loop.time(), 0.0
    while True:
        await asyncio.sleep(TICK_SEC)
        done = collector.parser.progress if collector.parser else None
        elapsed = loop.time() - started
        # For a tool that does not report its progress, the share of the time limit is shown.
        shown = max(shown, min(done if done is not None else elapsed / timeout_sec, 0.99))
        digest = collector.digest
        counts, summary = (digest.counts, digest.summary) if digest else ({}, "")
        await on_update(ProgressUpdate(shown, elapsed, counts, summary))


async def _with_background(work: Coroutine[Any, Any, T], *background: Coroutine[Any, Any, None]) -> T:
    """Await ``work`` while the ``background`` coroutines run, and cancel them at its end.

    If one of them fails, ``work`` is cancelled and that error is raised.
    """
    working = asyncio.create_task(work)
    tasks = [asyncio.create_task(each) for each in background]
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
