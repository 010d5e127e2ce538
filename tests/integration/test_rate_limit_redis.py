"""Rate limits in a real Redis: processes share them, and an outage does not stop calls and is reported."""

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
    allowed = 0
    for _ in range(40):
        try:
            await limiter.hit("ann", "nmap")
            allowed += 1
        except BusyError as error:
            assert 1 <= error.details["retry_after"] <= 60, error.details
    print(json.dumps([allowed, limiter.problem]), flush=True)
    await limiter.close()

asyncio.run(main())
"""


class RedisServer:
    """A redis-server on a free loopback port, in memory only. A test can stop, freeze and restart it."""

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
    """A clock that a test can advance."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def limiter(
    url: str, per_caller: int = 10, total: int = 0, clock: Clock | None = None
) -> AsyncIterator[RateLimiter]:
    """Yield a rate limiter with limits per minute for one caller and in total."""
    settings = RateLimitConfig(calls_per_minute=per_caller, total_calls_per_minute=total, storage_url=url)
    made = RateLimiter(lambda: settings, clock=clock or Clock())
    try:
        yield made
    finally:
        await made.close()


async def allowed_calls(made: RateLimiter, calls: int, actor: str = "ann") -> int:
    """Make calls at the same time and return how many are allowed; the others must be rate limited."""
    results = await asyncio.gather(*(made.hit(actor, "nmap") for _ in range(calls)), return_exceptions=True)
    for error in results:
        if error is not None:
            assert isinstance(error, BusyError), repr(error)
            assert error.code == "rate_limited"
            assert 1 <= error.details["retry_after"] <= 60
    return results.count(None)


def test_two_processes_together_allow_as_many_calls_as_one(redis: RedisServer) -> None:
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
    for child in children:  # both are ready, so they now make their calls at the same time
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        out, _ = child.communicate(timeout=60)
        assert child.returncode == 0, out
        outcomes.append(json.loads(out))
    assert [problem for _, problem in outcomes] == [None, None]
    assert sum(allowed for allowed, _ in outcomes) == 40


async def test_two_servers_share_the_count_even_with_different_limits(redis: RedisServer) -> None:
    async with limiter(redis.url, per_caller=10) as one, limiter(redis.url, per_caller=12) as other:
        assert await allowed_calls(one, 8) == 8
        assert await allowed_calls(other, 9) == 4
        assert await allowed_calls(one, 1) == 0
        assert await allowed_calls(one, 1, "bob") == 1


async def test_the_limit_of_all_callers_is_shared(redis: RedisServer) -> None:
    async with limiter(redis.url, per_caller=4, total=6) as one, limiter(redis.url, per_caller=4, total=6) as other:
        assert await allowed_calls(one, 4, "ann") == 4
        assert [await allowed_calls(other, 1, actor) for actor in ("bob", "cid", "dan")] == [1, 1, 0]


async def test_during_an_outage_the_server_counts_alone_from_its_own_calls_and_reports_it(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    async with limiter(redis.url, per_caller=10, clock=clock) as made, limiter(redis.url, per_caller=10) as other:
        assert await allowed_calls(made, 4) == 4
        assert await allowed_calls(other, 2) == 2
        assert made.problem is None
        redis.stop()
        with caplog.at_level(logging.INFO):
            assert await allowed_calls(made, 20) == 6  # it had made 4 of the 10 calls itself
        assert made.problem is not None
        assert made.problem.startswith("Calls are counted in this process only: Redis failed:")
        assert str(redis.port) in made.problem
        assert PASSWORD not in made.problem + caplog.text
        assert caplog.text.count("rate_limit.counting_in_memory") == 1
        redis.start()
        assert await allowed_calls(made, 1, "bob") == 1
        assert made.problem is not None  # Redis is not tried again until RETRY_SEC have passed
        clock.now += RETRY_SEC
        with caplog.at_level(logging.INFO):
            assert await allowed_calls(made, 1) == 1  # the new Redis has counted nothing
        assert await allowed_calls(made, 12) == 9
        assert made.problem is None
        assert "rate_limit.counting_in_redis" in caplog.text


async def test_a_hanging_redis_delays_calls_only_once(redis: RedisServer) -> None:
    clock = Clock()
    async with limiter(redis.url, per_caller=10, clock=clock) as made:
        assert await allowed_calls(made, 1) == 1
        redis.signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert await allowed_calls(made, 20) == 9
            # The driver tries twice, and the machine may be busy. One try per call would take 20 times ANSWER_SEC.
            assert time.monotonic() - began < 5 * ANSWER_SEC, "every call waited for Redis"
            assert made.problem is not None
        finally:
            redis.signal(signal.SIGCONT)
        clock.now += RETRY_SEC
        assert await made.check() is None


async def test_the_check_of_the_limiter_finds_an_outage_and_its_end_without_a_call(redis: RedisServer) -> None:
    clock = Clock()
    async with limiter(redis.url, clock=clock) as made:
        assert await made.check() is None
        redis.stop()
        assert "Redis failed" in (await made.check() or "")
        redis.start()
        clock.now += RETRY_SEC
        assert await made.check() is None


async def test_the_health_of_an_idle_server_reports_an_outage_of_redis(redis: RedisServer, tmp_path: Path) -> None:
    server = EnhancedMCPServer(load_config(env=environment(tmp_path / "state", MCP_RATE_LIMIT_STORAGE_URL=redis.url)))
    redis.stop()
    try:
        found = {result.name: result for result in (await server.services.health().check()).results}["rate limit"]
        assert found.status is HealthStatus.DEGRADED
        assert "Redis failed" in found.detail
    finally:
        await server.cleanup()


async def test_an_invalid_url_is_reported_without_its_password() -> None:
    async with limiter(f"redis://:{PASSWORD}@127.0.0.1:port/0", per_caller=2) as made:
        assert await allowed_calls(made, 5) == 2
        assert made.problem == "Calls are counted in this process only: rate_limit.storage_url cannot be read."


async def test_a_wrong_password_is_reported_without_the_password(redis: RedisServer) -> None:
    async with limiter(redis.url.replace(PASSWORD, "another"), per_caller=2) as made:
        assert await allowed_calls(made, 5) == 2
        assert "Redis failed: " in (made.problem or "")
        assert "another" not in (made.problem or "")


async def test_a_reload_can_change_or_remove_the_redis_server(redis: RedisServer) -> None:
    settings = [RateLimitConfig(calls_per_minute=5, storage_url="redis://127.0.0.1:1/0")]
    made = RateLimiter(lambda: settings[0])
    try:
        assert await allowed_calls(made, 2) == 2
        assert made.problem is not None
        settings[0] = RateLimitConfig(calls_per_minute=5, storage_url=redis.url)
        assert await allowed_calls(made, 1) == 1  # another server is tried at once
        assert made.problem is None
        settings[0] = RateLimitConfig(calls_per_minute=5)
        assert await allowed_calls(made, 5) == 2
    finally:
        await made.close()
        await made.close()
