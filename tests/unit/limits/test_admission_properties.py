"""For any calls in any order: no cap is exceeded, no slot is lost, and every call ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_server.errors import BusyError
from mcp_server.limits.admission import Admission, Caps, Ticket
from mcp_server.model.target import Network
from mcp_server.scope.address_ranges import AddressRanges

TOOLS, ACTORS, KEYS = ("nmap", "dig", "fping"), ("ann", "bob"), ("x", "y")
BASE = int(IPv4Network("10.0.0.0/24").network_address)

networks = st.builds(
    lambda at, bits: IPv4Network((BASE + (at >> bits << bits), 32 - bits)), st.integers(0, 31), st.integers(0, 4)
)
tickets = st.builds(
    Ticket,
    st.sampled_from(TOOLS),
    st.sampled_from(ACTORS),
    st.lists(networks, max_size=3).map(tuple),
    st.sets(st.sampled_from(KEYS), max_size=2).map(tuple),
    st.floats(0, 1000),
)
moves = st.one_of(
    st.tuples(st.just("call"), tickets),
    st.tuples(st.just("end"), st.integers(0, 99)),
    st.tuples(st.just("fail"), st.integers(0, 99)),
    st.tuples(st.just("cancel"), st.integers(0, 99)),
    st.tuples(st.just("turn"), st.integers(1, 3)),
    st.tuples(st.just("cap"), st.tuples(st.sampled_from(("total", "per_tool", "per_actor")), st.integers(1, 4))),
)


@dataclass
class Numbers:
    total: int
    per_tool: int
    per_actor: int
    per_host: int
    max_waiting: int


numbers = st.builds(
    Numbers, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 5)
)


class World:
    """Active calls, their results, and a check of every cap whenever a call gets a slot."""

    def __init__(self, caps: Numbers) -> None:
        self.caps = caps
        self.admission = Admission(
            Caps(
                lambda: caps.total,
                lambda _: caps.per_tool,
                lambda: caps.per_actor,
                lambda: caps.per_host,
                lambda: caps.max_waiting,
            )
        )
        self.inside: dict[int, Ticket] = {}
        self.ends: dict[int, asyncio.Future[None]] = {}
        self.tasks: list[asyncio.Task[str]] = []
        self.most = dict(vars(caps))
        self.loose = False

    async def call(self, number: int, ticket: Ticket) -> str:
        try:
            async with self.admission.slot(ticket, lambda _: None):
                self.inside[number] = ticket
                self.check()
                end = self.ends[number] = asyncio.get_running_loop().create_future()
                try:
                    await end
                finally:
                    del self.inside[number]
                return "ran"
        except BusyError as error:
            return "refused" if error.details["retry_after"] >= 1 else "refused without a time to call again"
        except KeyError:
            return "failed"

    def check(self) -> None:
        inside = list(self.inside.values())
        # A lowered cap applies only to later calls, so the check uses the highest value so far.
        assert len(inside) <= self.most["total"]
        assert max(Counter(each.tool for each in inside).values()) <= self.most["per_tool"]
        assert max(Counter(each.actor for each in inside).values()) <= self.most["per_actor"]
        assert max(Counter(key for each in inside for key in each.exclusive).values(), default=0) <= 1
        touched: Counter[int] = Counter()
        for each in inside:
            touched.update({int(address) for network in each.targets for address in network})
        assert max(touched.values(), default=0) <= self.caps.per_host

    async def move(self, kind: str, what: Any) -> None:
        if kind == "call":
            self.tasks.append(asyncio.create_task(self.call(len(self.tasks), what)))
        elif kind == "turn":
            for _ in range(what):
                await asyncio.sleep(0)
        elif kind == "cap":
            setattr(self.caps, *what)
            self.most[what[0]] = max(self.most[what[0]], what[1])
            self.admission.refresh()
        elif kind == "cancel" and self.tasks:
            self.tasks[what % len(self.tasks)].cancel()
        elif self.inside:
            self.end(sorted(self.inside)[what % len(self.inside)], failed=kind == "fail")

    def end(self, number: int, *, failed: bool = False) -> None:
        if not self.ends[number].done():
            if failed:
                self.ends[number].set_exception(KeyError())
            else:
                self.ends[number].set_result(None)


@settings(max_examples=300, deadline=None)
@given(numbers, st.lists(moves, max_size=60))
def test_no_cap_is_exceeded_no_slot_is_lost_and_every_call_ends(caps: Numbers, steps: list[tuple[str, Any]]) -> None:
    async def play() -> None:
        world = World(caps)
        for kind, what in steps:
            await world.move(kind, what)
        # When runs end and nothing else happens, every waiting call gets a slot.
        for _ in range(20 * len(world.tasks) + 20):
            await asyncio.sleep(0)
            for number in list(world.inside):
                world.end(number)
        ended = await asyncio.wait_for(asyncio.gather(*world.tasks, return_exceptions=True), 5)
        assert {each if isinstance(each, str) else type(each) for each in ended} <= {
            "ran",
            "refused",
            "failed",
            asyncio.CancelledError,
        }
        assert world.admission.snapshot() == {}
        for queue in world.admission._queues.values():
            state = (queue.running, queue.waiting, queue.running_of, queue.waiting_of, queue._actors, queue._held)
            assert not any(state), "the queue is empty"

    asyncio.run(play())


def addresses(targets: tuple[Network, ...]) -> set[int]:
    return {int(address) for network in targets for address in network}


targets = st.lists(networks, max_size=6).map(tuple)


@given(targets, targets)
def test_ranges_overlap_if_their_address_lists_do(one: tuple[Network, ...], other: tuple[Network, ...]) -> None:
    assert AddressRanges.of(one).overlaps(AddressRanges.of(other)) is bool(addresses(one) & addresses(other))


@given(targets, st.lists(targets, max_size=5), st.integers(1, 4))
def test_ranges_are_crowded_if_an_address_is(
    mine: tuple[Network, ...], others: list[tuple[Network, ...]], limit: int
) -> None:
    depth = Counter(address for each in others for address in addresses(each) & addresses(mine))
    assert AddressRanges.of(mine).crowded([AddressRanges.of(each) for each in others], limit) is (
        max(depth.values(), default=0) >= limit
    )
