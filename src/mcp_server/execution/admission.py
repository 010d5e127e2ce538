"""How many runs go on at once: a cap per tool, a cap over all, and a bounded queue in front."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

from mcp_server.errors import BusyError

MAX_WAITING: Final = 64


@dataclass(frozen=True, slots=True)
class Load:
    """How many calls of one tool run and wait on one event loop."""

    running: int
    waiting: int


@dataclass(slots=True)
class _State:
    """Who runs and who waits on one event loop. Only that loop's thread touches it."""

    running: Counter[str] = field(default_factory=Counter)
    waiting: deque[tuple[str, asyncio.Future[None]]] = field(default_factory=deque)

    def waiting_for(self, tool: str) -> int:
        return sum(name == tool for name, _ in self.waiting)


class Admission:
    """Lets a bounded number of runs through; the rest wait in order, and those beyond the queue are refused.

    ``per_tool`` gives the cap of a tool and ``total`` the cap over all tools, if any; both are asked at every decision,
    so a reloaded configuration holds from the next call on. ``max_waiting`` bounds the queue of each tool, so
    that a busy tool cannot shut the others out. Caps count per event loop, and a loop's state goes with it.
    """

    def __init__(
        self, per_tool: Callable[[str], int], total: Callable[[], int] | None = None, *, max_waiting: int = MAX_WAITING
    ) -> None:
        self._per_tool = per_tool
        self._total = total
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._states: WeakKeyDictionary[asyncio.AbstractEventLoop, _State] = WeakKeyDictionary()

    @asynccontextmanager
    async def slot(self, tool: str) -> AsyncIterator[None]:
        """Hold one of the tool's places for the length of the block, waiting for it in turn.

        Raises BusyError ``too_many_requests`` at once where the tool's queue is full. A cancelled wait leaves
        the queue; a place that was granted in the same moment is given back.
        """
        state = self._state()
        await self._enter(state, tool)
        try:
            yield
        finally:
            self._leave(state, tool)

    def load(self, tool: str) -> Load:
        """How many calls of the tool run and wait on the running event loop."""
        state = self._state()
        return Load(state.running[tool], state.waiting_for(tool))

    async def _enter(self, state: _State, tool: str) -> None:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        state.waiting.append((tool, granted))
        self._grant(state)
        if granted.done():
            return
        waiting = state.waiting_for(tool) - 1
        if waiting >= self._max_waiting:
            state.waiting.remove((tool, granted))
            raise BusyError(
                f"{tool}: {state.running[tool]} calls are running and {waiting} are waiting; the queue is full",
                tool=tool,
                running=state.running[tool],
                waiting=waiting,
            )
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self._leave(state, tool)
            else:
                state.waiting.remove((tool, granted))
            raise

    def _leave(self, state: _State, tool: str) -> None:
        state.running[tool] -= 1
        self._grant(state)

    def _grant(self, state: _State) -> None:
        """Give free places to those who wait, first come first; a full tool does not hold up the others."""
        kept: deque[tuple[str, asyncio.Future[None]]] = deque()
        while state.waiting:
            tool, granted = state.waiting.popleft()
            free = self._total is None or state.running.total() < self._total()
            able = not granted.done() and not granted.get_loop().is_closed()
            if able and free and state.running[tool] < self._per_tool(tool):
                state.running[tool] += 1
                granted.set_result(None)
            else:
                kept.append((tool, granted))
        state.waiting = kept

    def _state(self) -> _State:
        """The state of the running loop. Waiters hold their loop, so those of closed loops are dropped by hand."""
        loop = asyncio.get_running_loop()
        with self._lock:
            state = self._states.get(loop)
            if state is None:
                for other in [known for known in self._states if known.is_closed()]:
                    del self._states[other]
                state = self._states[loop] = _State()
            return state
