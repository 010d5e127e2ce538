"""Output is streamed and limited, and never kept in memory as a whole."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator

import pytest

from mcp_server.sandbox.executor import Executor
from mcp_server.sandbox.process import ProcessLimits, run_process
from tests.support import processes
from tests.support.processes import SHELL, alive, binary, marker, run_script

GIB = 1 << 30


@pytest.fixture(params=["root", "nobody-raw"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with processes.executor(request.param) as found:
        yield found


class ByteCounter:
    def __init__(self) -> None:
        self.total = self.largest = 0

    def __call__(self, data: bytes) -> None:
        self.total += len(data)
        self.largest = max(self.largest, len(data))


async def test_a_gigabyte_of_output_needs_no_more_memory() -> None:
    count = ByteCounter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    argv = (binary("head"), "-c", str(GIB), "/dev/zero")
    ended = await run_process(argv, ProcessLimits(60, output_bytes=GIB), count)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert (ended.returncode, ended.output_exceeded, count.total) == (0, False, GIB)
    assert count.largest <= 65536
    assert grown_kib < 4096


async def test_output_over_the_limit_is_truncated_exactly_and_ends_all_processes(executor: Executor) -> None:
    count, mark = ByteCounter(), marker()
    script = f"setsid sleep {mark} & cat /dev/zero"
    argv = (binary("sh"), "-c", script)
    ended = await run_process(argv, ProcessLimits(60, output_bytes=1_000_001), count, executor=executor, sandbox=SHELL)
    assert ended.output_exceeded
    assert ended.bytes_out == 1_000_001
    assert not ended.timed_out
    assert ended.returncode == 137
    assert ended.stderr == b""
    assert count.total == 1_000_001
    assert ended.seconds < 10
    assert alive(mark) == []


async def test_output_of_exactly_the_limit_is_complete() -> None:
    count = ByteCounter()
    ended = await run_process((binary("head"), "-c", "5000", "/dev/zero"), ProcessLimits(10, output_bytes=5000), count)
    assert (ended.returncode, ended.output_exceeded, count.total) == (0, False, 5000)


async def test_output_is_passed_on_while_the_program_runs() -> None:
    arrived: list[tuple[float, bytes]] = []
    argv = (binary("sh"), "-c", "echo one; sleep 0.4; echo two")
    await run_process(argv, ProcessLimits(10), lambda data: arrived.append((time.monotonic(), data)), sandbox=SHELL)
    assert [data for _, data in arrived] == [b"one\n", b"two\n"]
    assert arrived[1][0] - arrived[0][0] > 0.3


async def test_a_slow_callback_blocks_the_program_and_loses_no_output() -> None:
    count = ByteCounter()

    def slow(data: bytes) -> None:
        time.sleep(0.02)
        count(data)

    script = "head -c 1000000 /dev/zero; echo written >&2"
    started = time.monotonic()
    ended = await run_process((binary("sh"), "-c", script), ProcessLimits(30), slow, sandbox=SHELL)
    assert count.total == 1_000_000
    assert ended.stderr == b"written\n"
    assert time.monotonic() - started > 0.02 * 1_000_000 / 65536


async def test_the_beginning_of_stderr_is_kept_and_the_rest_is_read(executor: Executor) -> None:
    script = "echo first >&2; head -c 5000000 /dev/zero >&2; echo over"
    ended, output = await run_script(script, ProcessLimits(30, stderr_bytes=10), executor)
    assert output == b"over\n"
    assert ended.stderr == b"first\n\0\0\0\0"
    assert ended.stderr_truncated
    short, _ = await run_script("printf 0123456789 >&2", ProcessLimits(30, stderr_bytes=10), executor)
    assert (short.stderr, short.stderr_truncated) == (b"0123456789", False)


async def test_an_error_in_the_callback_ends_all_processes_and_is_raised(executor: Executor) -> None:
    mark = marker()

    def refuse(data: bytes) -> None:
        raise KeyError(data)

    argv = (binary("sh"), "-c", f"setsid sleep {mark} & echo x; sleep {mark}")
    with pytest.raises(KeyError) as caught:
        await run_process(argv, ProcessLimits(30), refuse, executor=executor, sandbox=SHELL)
    assert caught.value.args == (b"x\n",)
    assert alive(mark) == []


async def test_an_error_in_the_callback_is_raised_even_if_the_program_has_ended() -> None:
    def refuse(data: bytes) -> None:
        raise KeyError(data)

    with pytest.raises(KeyError):
        await run_process((binary("echo"), "x"), ProcessLimits(30), refuse)
