"""Step 4, admit: how often, whether the tool is fit, and a place among what runs.

How often and whether the tool is fit is asked first of all, before a name is looked up for the call; a place is asked
for when the call has been decided on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

from mcp_server.errors import BusyError, NetworkToolsError
from mcp_server.limits.admission import Admission, Admitted, Ticket, Waiting
from mcp_server.limits.circuit_breaker import Breakers, Permit
from mcp_server.limits.rate_limit import RateLimiter
from mcp_server.model.run import Actor

if TYPE_CHECKING:
    from mcp_server.pipeline.authorize import AuthorizedPlan
    from mcp_server.pipeline.execute import Progress
    from mcp_server.pipeline.plan import Plan
    from mcp_server.pipeline.signals import Signals

REFUSAL_PAUSE_SEC: Final = 0.1
"""How long a call over its rate limit waits for the refusal."""
FAULTS: Final = frozenset({"binary_not_found", "binary_changed", "tool_failed", "timeout"})
"""Codes of failures that are the tool's; a time-out only where it is not the caller's doing."""


class AdmissionController:
    """What lets calls in: the rate limits, the breakers, the places."""

    def __init__(self, limiter: RateLimiter, breakers: Breakers, admission: Admission, signals: Signals) -> None:
        self._limiter = limiter
        self._breakers = breakers
        self._admission = admission
        self._signals = signals
        self._notifying: set[asyncio.Task[None]] = set()

    async def count(self, tool: str, actor: Actor) -> None:
        """Count the call; raises BusyError ``rate_limited``, a moment later than it could."""
        try:
            await self._limiter.hit(actor.name, tool, actor.access.calls_per_minute)
        except BusyError:
            # Who calls again at once after each refusal must not take the processor from everybody else.
            await asyncio.sleep(REFUSAL_PAUSE_SEC)
            raise

    @contextmanager
    def attempt(self, tool: str) -> Iterator[Permit]:
        """Try a tool; raises BusyError ``circuit_open`` where it has failed too often.

        An error inside that is the tool's counts as its failure, any other as neither. `judge` takes an answer.
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
        """Hold a place for the run, waiting for it in line; the caller is told where it stands."""
        plan, call = authorized.plan, authorized.plan.call
        ticket = Ticket(
            tool=call.tool.tool_name(),
            actor=call.actor.name,
            targets=tuple(network for target in plan.targets.items for network in target.networks),
            exclusive=authorized.exclusive,
            estimate_sec=plan.command.estimate.seconds,
        )

        def on_wait(waiting: Waiting) -> None:
            self._signals.queued(call, waiting)
            if progress is not None:
                sentence = f"{ticket.tool}: place {waiting.position} in line, about {waiting.expected_sec} s"
                task = asyncio.create_task(_notify(progress, sentence))
                self._notifying.add(task)
                task.add_done_callback(self._notifying.discard)

        try:
            async with self._admission.slot(ticket, on_wait) as admitted:
                self._signals.placed(call, admitted.waited)
                yield admitted
        finally:
            self._signals.left(ticket.tool)


async def _notify(progress: Progress, sentence: str) -> None:
    await progress(0.0, sentence)


def judge(permit: Permit, plan: Plan, error: NetworkToolsError | None) -> None:
    """Tell the breaker what a finished run says of its tool."""
    if error is None:
        permit.success()
    elif error.code in FAULTS and not (error.code == "timeout" and _was_to_be_expected(plan)):
        permit.failure()


def _was_to_be_expected(plan: Plan) -> bool:
    """Whether a time-out is the caller's doing, who asked for less time than is usual, or for more than fits into it.

    Else one caller could have the breaker take a tool from all the others.
    """
    limit = plan.limits.timeout_sec
    shortened = limit < plan.usual_timeout_sec
    return shortened or plan.command.estimate.seconds > limit or bool(plan.call.parameters.extra_args)
