"""Rate limits in a real Redis: two processes share them, and an outage neither stops calls nor stays unsaid."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mcp_server.config import load_config
from mcp_server.config.sections import RateLimitConfig
from mcp_server.errors import BusyError
from mcp_server.health import HealthStatus
from mcp_server.limits.rate_limit import ANSWER_SEC, RETRY_SEC, RateLimiter
from mcp_server.server import EnhancedMCPServer
from tests.support.interfaces import environment

PASSWORD = "kept-to-itself"
CHILD = """
import asyncio, json, sys
from mcp_server.config.sections import RateLimitConfig
from mcp_server.errors import BusyError
from mcp_server.limits.rate_limit import RateLimiter

async def main():
    settings = RateLimitConfig(calls_per_minute=40, total_calls_per_minute=0, storage_url=sys.argv[1])
    limiter = RateLimiter(lambda: settings)
    print(json.dumps(await limiter.check()), flush=True)
    sys.stdin.readline()
    let = 0
    for _ in range(40):
        try:
            await limiter.hit("ann", "nmap")
            let += 1
        except BusyError as error:
            assert 1 <= error.details["retry_after"] <= 60, error.details
    print(json.dumps([let, limiter.problem]), flush=True)
    await limiter.close()

asyncio.run(main())
"""


class RedisServer:
    """Debian's redis-server on a free loopback port, in memory only; may be stopped, frozen and started again."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise FileNotFoundError("Redis is not installed: apt-get install redis-server")
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port: int = listener.getsockname()[1]
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"
        self._folder = folder
        self._argv = [program, "--bind", "127.0.0.1", "--port", str(self.port), "--requirepass", PASSWORD]
        self._argv += ["--save", "", "--appendonly", "no", "--dir", str(folder)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(self._argv, stdout=log, stderr=log)
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                if time.monotonic() > until or self._process.poll() is not None:
                    raise RuntimeError((self._folder / "redis.log").read_text()) from None
                time.sleep(0.02)
            else:
                return

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)
            self._process = None


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Clock:
    """The limiter's own clock, which a test moves past the pause after a failure."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def limiter(url: str, own: int = 10, total: int = 0, clock: Clock | None = None) -> AsyncIterator[RateLimiter]:
    settings = RateLimitConfig(calls_per_minute=own, total_calls_per_minute=total, storage_url=url)
    made = RateLimiter(lambda: settings, clock=clock or Clock())
    try:
        yield made
    finally:
        await made.close()


async def let_through(made: RateLimiter, calls: int, actor: str = "ann") -> int:
    results = await asyncio.gather(*(made.hit(actor, "nmap") for _ in range(calls)), return_exceptions=True)
    for error in results:
        if error is not None:
            assert isinstance(error, BusyError)
            assert error.code == "rate_limited"
            assert 1 <= error.details["retry_after"] <= 60
    return results.count(None)


def test_two_processes_together_let_through_no_more_than_one_may(redis: RedisServer) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, redis.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for child in children:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline()) is None
    outcomes = []
    for child in children:  # both are ready: let them loose
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        out, _ = child.communicate(timeout=60)
        assert child.returncode == 0
        outcomes.append(json.loads(out))
    assert [problem for _, problem in outcomes] == [None, None]
    assert sum(let for let, _ in outcomes) == 40


async def test_one_server_goes_on_where_the_other_left_off_and_a_new_limit_keeps_the_count(redis: RedisServer) -> None:
    async with limiter(redis.url, own=10) as one, limiter(redis.url, own=12) as other:
        assert await let_through(one, 8) == 8
        assert await let_through(other, 9) == 4
        assert await let_through(one, 1) == 0
        assert await let_through(one, 1, "bob") == 1


async def test_the_limit_of_all_calls_is_shared(redis: RedisServer) -> None:
    async with limiter(redis.url, own=4, total=6) as one, limiter(redis.url, own=4, total=6) as other:
        assert await let_through(one, 4, "ann") == 4
        assert [await let_through(other, 1, actor) for actor in ("bob", "cid", "dan")] == [1, 1, 0]


async def test_without_redis_calls_are_counted_here_from_what_was_let_through_and_that_is_said(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    async with limiter(redis.url, own=10, clock=clock) as made, limiter(redis.url, own=10) as other:
        assert await let_through(made, 4) == 4
        assert await let_through(other, 2) == 2
        assert made.problem is None
        redis.stop()
        with caplog.at_level(logging.INFO):
            assert await let_through(made, 20) == 6  # 4 of the 10 were its own
        assert made.problem is not None
        assert made.problem.startswith("Calls are counted in this process only: Redis failed:")
        assert str(redis.port) in made.problem
        assert PASSWORD not in made.problem + caplog.text
        assert caplog.text.count("rate_limit.counting_in_memory") == 1
        redis.start()
        assert await let_through(made, 1, "bob") == 1
        assert made.problem is not None  # it is left alone for a while
        clock.now += RETRY_SEC
        with caplog.at_level(logging.INFO):
            assert await let_through(made, 1) == 1  # the new Redis has counted nothing
        assert await let_through(made, 12) == 9
        assert made.problem is None
        assert "rate_limit.counting_in_redis" in caplog.text


async def test_a_redis_that_hangs_holds_calls_up_once_and_briefly(redis: RedisServer) -> None:
    clock = Clock()
    async with limiter(redis.url, own=10, clock=clock) as made:
        assert await let_through(made, 1) == 1
        redis.signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert await let_through(made, 20) == 9
            # Both tries of the driver, and room for a busy machine; a call for each after the other would take twenty.
            assert time.monotonic() - began < 5 * ANSWER_SEC
            assert made.problem is not None
        finally:
            redis.signal(signal.SIGCONT)
        clock.now += RETRY_SEC
        assert await made.check() is None


async def test_the_health_check_finds_an_outage_and_its_end_without_a_call(redis: RedisServer) -> None:
    clock = Clock()
    async with limiter(redis.url, clock=clock) as made:
        assert await made.check() is None
        redis.stop()
        assert "Redis failed" in (await made.check() or "")
        redis.start()
        clock.now += RETRY_SEC
        assert await made.check() is None


async def test_the_health_of_a_server_that_nobody_calls_says_that_redis_is_away(
    redis: RedisServer, tmp_path: Path
) -> None:
    server = EnhancedMCPServer(load_config(env=environment(tmp_path / "state", MCP_RATE_LIMIT_STORAGE_URL=redis.url)))
    redis.stop()
    try:
        found = {result.name: result for result in (await server.services.health().check()).results}["rate limit"]
        assert found.status is HealthStatus.DEGRADED
        assert "Redis failed" in found.detail
    finally:
        await server.cleanup()


async def test_a_url_that_cannot_be_read_is_a_problem_that_does_not_repeat_it() -> None:
    async with limiter(f"redis://:{PASSWORD}@127.0.0.1:port/0", own=2) as made:
        assert await let_through(made, 5) == 2
        assert made.problem == "Calls are counted in this process only: rate_limit.storage_url cannot be read."


async def test_a_wrong_password_is_a_problem_that_does_not_repeat_it(redis: RedisServer) -> None:
    async with limiter(redis.url.replace(PASSWORD, "another"), own=2) as made:
        assert await let_through(made, 5) == 2
        assert "Redis failed: " in (made.problem or "")
        assert "another" not in (made.problem or "")


async def test_a_reload_may_name_another_redis_or_none(redis: RedisServer) -> None:
    settings = [RateLimitConfig(calls_per_minute=5, storage_url="redis://127.0.0.1:1/0")]
    made = RateLimiter(lambda: settings[0])
    try:
        assert await let_through(made, 2) == 2
        assert made.problem is not None
        settings[0] = RateLimitConfig(calls_per_minute=5, storage_url=redis.url)
        assert await let_through(made, 1) == 1  # at once, however lately the other one failed
        assert made.problem is None
        settings[0] = RateLimitConfig(calls_per_minute=5)
        assert await let_through(made, 5) == 2
    finally:
        await made.close()
        await made.close()
