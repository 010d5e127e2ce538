"""Rate limits in memory: exact within any minute, per caller and tool, kept across reloads, removed when idle."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.config.sections import RateLimitConfig
from mcp_server.errors import BusyError
from mcp_server.limits.rate_limit import RateLimiter


def limits(own: int = 10, total: int = 0) -> RateLimitConfig:
    return RateLimitConfig(calls_per_minute=own, total_calls_per_minute=total)


@dataclass
class World:
    """A limiter whose clock and settings a test changes."""

    settings: RateLimitConfig = field(default_factory=limits)
    now: float = 5000.0

    def __post_init__(self) -> None:
        self.limiter = RateLimiter(lambda: self.settings, clock=lambda: self.now)

    @property
    def keys(self) -> int:
        """The number of keys in memory."""
        times = self.limiter._times
        return 0 if times is None else len(times)

    async def hit(self, actor: str = "ann", tool: str = "nmap") -> int:
        """Make a call. Return 0 if it is allowed, otherwise the seconds after which to retry."""
        try:
            await self.limiter.hit(actor, tool)
        except BusyError as error:
            assert error.code == "rate_limited"  # noqa: PT017 - which calls raise is what the caller compares
            return int(error.details["retry_after"])
        return 0


async def test_the_eleventh_call_within_a_minute_is_refused_with_a_time_to_retry() -> None:
    world = World()
    for _ in range(10):
        assert await world.hit() == 0
        world.now += 2
    with pytest.raises(BusyError, match="ann has called nmap 10 times within a minute") as caught:
        await world.limiter.hit("ann", "nmap")
    assert caught.value.code == "rate_limited"
    assert caught.value.details == {"tool": "nmap", "limit": 10, "retry_after": 40}
    assert await world.hit(actor="bob") == 0
    assert await world.hit(tool="dig") == 0
    world.now += 39.5
    assert await world.hit() == 1
    world.now += 0.5
    assert await world.hit() == 0
    assert await world.hit() == 2  # the second of the ten is 58 s old


async def test_refused_calls_are_not_counted() -> None:
    world = World(limits(1))
    assert await world.hit() == 0
    for second in range(1, 60):
        world.now += 1
        assert await world.hit() == 60 - second
    world.now += 1
    assert await world.hit() == 0


async def test_all_callers_together_have_a_limit_and_its_refusals_do_not_count_for_a_caller() -> None:
    world = World(limits(2, total=3))
    assert [await world.hit(actor) for actor in ("ann", "bob", "cid")] == [0, 0, 0]
    world.now += 30
    assert await world.hit("dan") == 30
    with pytest.raises(BusyError, match="Tools were called 3 times within a minute"):
        await world.limiter.hit("dan", "nmap")
    world.now += 30
    assert [await world.hit("dan") for _ in range(3)] == [0, 0, 60]
    assert await world.hit("ann") == 0


async def test_zero_means_no_limit() -> None:
    world = World(limits(0))
    assert {await world.hit() for _ in range(1000)} == {0}
    assert world.keys == 0
    world.settings = limits(0, total=5)
    assert [await world.hit() for _ in range(6)] == [0] * 5 + [60]


async def test_a_reload_changes_the_limit_and_keeps_the_counts() -> None:
    world = World(limits(10))
    for _ in range(8):
        await world.hit()
        world.now += 1
    world.settings = limits(3)
    assert await world.hit() == 57  # not before the sixth of the eight is a minute old
    world.settings = limits(9)
    assert [await world.hit(), await world.hit()] == [0, 52]


async def test_a_caller_that_was_idle_for_a_minute_is_removed() -> None:
    world = World(limits(10, total=100_000))
    for number in range(5000):
        await world.hit(f"caller {number}")
    assert world.keys == 5001
    world.now += 59.9
    await world.hit("still here")
    assert world.keys == 5002
    world.now += 0.1
    await world.hit("still here")
    assert world.keys == 2  # and the total of all


async def test_names_with_separators_have_different_keys() -> None:
    world = World(limits(1))
    assert await world.hit("a/b", "c") == 0
    assert await world.hit("a", "b/c") == 0
    assert await world.hit("a%2Fb", "c") == 0


async def test_simultaneous_calls_share_the_limit() -> None:
    world = World(limits(10))
    results = await asyncio.gather(*(world.hit() for _ in range(50)))
    assert sorted(results) == [0] * 10 + [60] * 40


@given(st.lists(st.tuples(st.floats(0, 30), st.sampled_from(["ann", "bob"])), max_size=60), st.integers(1, 4))
def test_no_minute_has_more_calls_than_the_limit(calls: list[tuple[float, str]], most: int) -> None:
    async def play() -> None:
        world = World(limits(most))
        allowed: dict[str, list[float]] = {"ann": [], "bob": []}
        for pause, actor in calls:
            world.now += pause
            within = [moment for moment in allowed[actor] if world.now - moment < 60]
            refused = await world.hit(actor)
            assert bool(refused) == (len(within) >= most)  # no call is refused without need, either
            if not refused:
                allowed[actor].append(world.now)

    asyncio.run(play())


def test_the_library_is_not_imported_before_the_first_call_and_then_not_on_the_loop() -> None:
    code = """
import asyncio, sys, threading
from mcp_server.config.sections import RateLimitConfig
from mcp_server.limits.rate_limit import RateLimiter
assert "limits" not in sys.modules
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "limits":
            assert threading.current_thread() is not threading.main_thread(), name
sys.meta_path.insert(0, Watch())
asyncio.run(RateLimiter(lambda: RateLimitConfig(calls_per_minute=0, total_calls_per_minute=0)).hit("ann", "nmap"))
assert "limits" not in sys.modules
asyncio.run(RateLimiter(RateLimitConfig).hit("ann", "nmap"))
assert "limits" in sys.modules and "redis" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


async def test_an_actor_may_have_a_lower_limit_and_never_a_higher_one() -> None:
    world = World()

    async def most(limit: int | None) -> int:
        world.now += 3600
        for number in range(30):
            try:
                await world.limiter.hit("ann", "nmap", limit)
            except BusyError as error:
                assert error.details["limit"] == number  # noqa: PT017 - the loop counts until it is raised
                return number
        return 30

    assert [await most(limit) for limit in (3, None, 20)] == [3, 10, 10]
    world.settings = limits(own=0)
    assert [await most(limit) for limit in (3, None)] == [3, 30], (
        "the limit of the actor applies also if there is no other"
    )
