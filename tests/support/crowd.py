"""Calls that hold a slot of an `Admission` until a test ends them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from ipaddress import ip_network

from mcp_server.limits.admission import Admission, Caps, QueuePosition, Ticket


@dataclass
class Numbers:
    """Limits that a test can change, as a reload does."""

    total: int = 100
    per_tool: int = 2
    per_actor: int = 100
    per_host: int = 1
    max_waiting: int = 64

    def caps(self) -> Caps:
        return Caps(
            total=lambda: self.total,
            per_tool=lambda _: self.per_tool,
            per_actor=lambda: self.per_actor,
            per_host=lambda: self.per_host,
            max_waiting=lambda: self.max_waiting,
        )


class Clock:
    """A clock in seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ticket(
    tool: str = "nmap", *, actor: str = "", at: str = "", exclusive: tuple[str, ...] = (), sec: float = 0.0
) -> Ticket:
    return Ticket(tool, actor, tuple(map(ip_network, at.split())), exclusive, sec)


class Crowd:
    """Calls that hold their slot until a test ends them, and the order in which they got a slot."""

    def __init__(self, numbers: Numbers | None = None) -> None:
        self.numbers = numbers or Numbers()
        self.clock = Clock()
        self.admission = Admission(self.numbers.caps(), clock=self.clock)
        self.inside: list[str] = []
        self.entered: list[str] = []
        self.waited: dict[str, float] = {}
        self.positions: dict[str, list[QueuePosition]] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._go: dict[str, asyncio.Event] = {}

    def call(self, name: str, asked: Ticket | None = None) -> asyncio.Task[None]:
        self._go[name] = asyncio.Event()
        self.positions[name] = []
        self.tasks[name] = asyncio.create_task(self._call(name, asked or ticket()))
        return self.tasks[name]

    async def end(self, *names: str) -> None:
        for name in names:
            self._go[name].set()
            await settle()

    async def end_all(self) -> None:
        for event in self._go.values():
            event.set()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    async def _call(self, name: str, asked: Ticket) -> None:
        async with self.admission.slot(asked, self.positions[name].append) as admitted:
            self.inside.append(name)
            self.entered.append(name)
            self.waited[name] = admitted.waited
            await self._go[name].wait()
            self.inside.remove(name)


async def settle() -> None:
    """Let tasks run that are ready."""
    for _ in range(5):
        await asyncio.sleep(0)
