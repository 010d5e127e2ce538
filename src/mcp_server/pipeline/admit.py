"""Step 4, admit: rate limits, circuit breakers, and a slot for the run.

Rate limits and breakers are checked during validation, before any name is looked up. The slot is taken after the call
was authorized.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from mcp_server.errors import BusyError, NetworkToolsError
from mcp_server.limits.admission import Admission, Admitted, QueuePosition, Ticket
from mcp_server.limits.circuit_breaker import Breakers, Permit
from mcp_server.limits.rate_limit import RateLimiter
from mcp_server.model.run import Actor
from mcp_server.pipeline.authorize import AuthorizedPlan
from mcp_server.pipeline.execute import Progress
from mcp_server.pipeline.plan import Plan
from mcp_server.pipeline.signals import Signals

REFUSAL_PAUSE_SEC: Final = 0.1
"""Seconds by which the refusal of a call over its rate limit is delayed."""
FAULTS: Final = frozenset({"binary_not_found", "binary_changed", "tool_failed", "timeout"})
"""Codes of errors that count as failures of the tool. `judge` leaves out timeouts that the caller caused."""


class AdmissionController:
    """Decides whether a call may start now: by the rate limits, the circuit breakers, and the free slots."""

    def __init__(self, limiter: RateLimiter, breakers: Breakers, admission: Admission, signals: Signals) -> None:
        self._limiter = limiter
        self._breakers = breakers
        self._admission = admission
        self._signals = signals
        self._notifying: set[asyncio.Task[None]] = set()

    async def count(self, tool: str, actor: Actor) -> None:
        """Count the call against the rate limits. Raises BusyError ``rate_limited``, after a short pause."""
        try:
            await self._limiter.hit(actor.name, tool, actor.access.calls_per_minute)
        except BusyError:
            # A caller that calls again at once after each refusal must not use up the processor.
            await asyncio.sleep(REFUSAL_PAUSE_SEC)
            raise

    @contextmanager
    def attempt(self, tool: str) -> Iterator[Permit]:
        """Let a call of a tool through its breaker for the length of the block.

        Raises BusyError ``circuit_open`` if the tool has failed too often. An error in the block counts as a failure
        of the tool if its code is in `FAULTS`, and is not counted otherwise. `judge` counts the result of a run.
        """
        with self._breakers.of(tool).permit() as permit:
            try:
                yield permit
            except NetworkToolsError as error:
                if error.code in FAULTS:
                    permit.failure()
                raise

    @asynccontextmanager
    async def slot(self, authorized: AuthorizedPlan, progress: Progress | None) -> AsyncIterator[Admitted]:
        """Hold a slot for a run, after waiting for it in the queue. ``progress`` gets the position in the queue."""
        plan, call = authorized.plan, authorized.plan.call
        ticket = Ticket(
            tool=call.tool.tool_name(),
            actor=call.actor.name,
            targets=plan.targets.networks,
            exclusive=authorized.exclusive,
            estimate_sec=plan.command.estimate.seconds,
        )

        def on_wait(at: QueuePosition) -> None:
            self._signals.queued(call, at)
            if progress is not None:
                sentence = f"{ticket.tool}: position {at.position} in the queue, about {at.expected_sec} s"
                task = asyncio.create_task(_notify(progress, sentence))
                self._notifying.add(task)
                task.add_done_callback(self._notifying.discard)

        try:
            async with self._admission.slot(ticket, on_wait) as admitted:
                self._signals.admitted(call, admitted.waited)
                yield admitted
        finally:
            self._signals.slot_released(ticket.tool)


async def _notify(progress: Progress, sentence: str) -> None:
    await progress(0.0, sentence)


def judge(permit: Permit, plan: Plan, error: NetworkToolsError | None) -> None:
    """Report to the breaker whether a finished run was a success or a failure of its tool."""
    if error is None:
        permit.success()
    elif error.code in FAULTS and not (error.code == "timeout" and _timeout_was_expected(plan)):
        permit.failure()


def _timeout_was_expected(plan: Plan) -> bool:
    """Return whether the caller caused a timeout, by a short time limit or by more work than fits into the limit.

    Without this rule, one caller could open the breaker of a tool for all other callers.
    """
    limit = plan.limits.timeout_sec
    shortened = limit < plan.usual_timeout_sec
    return shortened or plan.command.estimate.seconds > limit or bool(plan.call.parameters.extra_args)
