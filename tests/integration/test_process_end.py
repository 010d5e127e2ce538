"""However a run ends, everything it started is gone, in every tier."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcp_server.errors import PlatformError, ToolError
from mcp_server.sandbox.executor import Executor, default_executor
from mcp_server.sandbox.process import ProcessLimits, run_process
from tests.support import processes
from tests.support.clock import SOON
from tests.support.processes import EXECUTORS, SHELL, alive, binary, detaching, idle, marker, run_script, until

ROOT = Path(__file__).parents[2]

SERVER = """
import asyncio, sys
from mcp_server.sandbox.process import Limits, run_process
from tests.support.processes import SHELL, place

with place(sys.argv[1]) as where:
    asyncio.run(run_process(("/bin/sh", "-c", sys.argv[2]), Limits(60),
        lambda data: print(data.decode(), end="", flush=True), place=where, sandbox=SHELL))
"""


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with processes.executor(request.param) as where:
        yield where


async def test_time_limit_ends_the_whole_tree(executor: Executor) -> None:
    mark = marker()
    started = time.monotonic()
    ended, output = await run_script(detaching(mark), ProcessLimits(1), executor)
    assert time.monotonic() - started < SOON
    assert (ended.returncode, ended.timed_out, output) == (124, True, b"ready\n")
    assert ended.stderr == b""
    assert alive(mark) == []


async def test_cancellation_ends_the_whole_tree_and_is_raised_afterwards(executor: Executor) -> None:
    mark, output = marker(), bytearray()
    task = asyncio.create_task(
        run_process(
            (binary("sh"), "-c", detaching(mark)), ProcessLimits(30), output.extend, executor=executor, sandbox=SHELL
        )
    )
    while not output:
        await asyncio.sleep(0.02)
    assert until(mark, 4) == 4
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert alive(mark) == []


async def test_a_second_cancellation_does_not_leave_anything_behind(executor: Executor) -> None:
    mark, output = marker(), bytearray()
    script = f"trap '' TERM; {detaching(mark)}"
    argv = (binary("sh"), "-c", script)
    task = asyncio.create_task(run_process(argv, ProcessLimits(30), output.extend, executor=executor, sandbox=SHELL))
    while not output:
        await asyncio.sleep(0.02)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.01)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert alive(mark) == []


async def test_cancelled_right_after_the_spawn(executor: Executor) -> None:
    mark = marker()
    for delay in (0.0, 0.001, 0.002, 0.004, 0.008, 0.016):
        task = asyncio.create_task(
            run_process((binary("sleep"), mark), ProcessLimits(30), lambda _: None, executor=executor)
        )
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert alive(mark) == []


async def test_a_program_that_ends_leaves_nothing_and_does_not_hang_on_its_pipe(executor: Executor) -> None:
    mark = marker()
    ended, output = await run_script(f"setsid sleep {mark} & sleep 0.1; echo done", ProcessLimits(30), executor)
    assert (ended.returncode, output) == (0, b"done\n")
    assert ended.seconds < 5
    assert alive(mark) == []


async def test_sigterm_comes_first_and_its_output_is_kept(executor: Executor) -> None:
    script = "trap 'echo flushed; exit 3' TERM; while :; do sleep 0.05; done"
    ended, output = await run_script(script, ProcessLimits(1), executor)
    assert output == b"flushed\n"
    assert (ended.returncode, ended.timed_out) == (124, True)


async def test_a_program_deaf_to_sigterm_is_killed_within_the_limit(executor: Executor) -> None:
    started = time.monotonic()
    ended, _ = await run_script("trap '' TERM; while :; do sleep 0.05; done", ProcessLimits(1), executor)
    assert ended.timed_out
    assert 0.9 < time.monotonic() - started < SOON


async def test_death_by_signal_is_128_and_its_number(executor: Executor) -> None:
    for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL, signal.SIGPIPE):
        ended, _ = await run_script(f"kill -{number} $$", ProcessLimits(10), executor)
        assert ended.returncode == 128 + number


async def test_exit_codes_pass_unchanged(executor: Executor) -> None:
    for code in (0, 1, 42, 124, 126, 127, 255):
        ended, _ = await run_script(f"exit {code}", ProcessLimits(10), executor)
        assert (ended.returncode, ended.timed_out) == (code, False)


@pytest.mark.parametrize("kind", EXECUTORS)
def test_nothing_is_left_when_the_server_is_killed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    mark = marker()
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, kind, detaching(mark)], stdout=subprocess.PIPE, cwd=ROOT
    ) as server:
        assert server.stdout is not None
        ready = server.stdout.readline()
        before = until(mark, 4)
        server.kill()
    assert (ready, before) == (b"ready\n", 4)
    assert until(mark, 0) == 0
    end = time.monotonic() + SOON
    while list(tmp_path.iterdir()) and time.monotonic() < end:
        time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []  # the scratch folder, too


@pytest.mark.parametrize("kind", EXECUTORS)
def test_nothing_is_left_when_the_server_is_killed_at_a_random_moment(kind: str) -> None:
    """40 servers of each tier, each killed within the first 12 milliseconds of a spawn."""
    mark = marker()
    script = f"setsid sleep {mark} & (setsid setsid sleep {mark} &); exec sleep {mark}"
    first = """
    asyncio.run(run_process(("/bin/true",), Limits(60), print, place=where))
    print(flush=True)
"""
    ready = SERVER.replace("as where:\n", f"as where:{first}")
    seen = 0
    for _ in range(40):
        with subprocess.Popen([sys.executable, "-c", ready, kind, script], stdout=subprocess.PIPE, cwd=ROOT) as server:
            assert server.stdout is not None
            server.stdout.readline()
            time.sleep(random.uniform(0, 0.012))  # noqa: S311 - a moment, not a secret
            seen += bool(alive(mark))
            server.kill()
    assert seen  # some were killed when all was running, or the moments are wrong
    assert until(mark, 0) == 0


@pytest.mark.parametrize("kind", EXECUTORS)
async def test_the_death_of_the_runner_ends_its_runs_and_is_an_error(kind: str) -> None:
    with processes.executor(kind) as where:
        mark, output = marker(), bytearray()
        task = asyncio.create_task(
            run_process(
                (binary("sh"), "-c", detaching(mark)), ProcessLimits(30), output.extend, executor=where, sandbox=SHELL
            )
        )
        while not output:
            await asyncio.sleep(0.02)
        assert until(mark, 4) == 4
        os.kill(processes.runner_of(where), signal.SIGKILL)
        with pytest.raises(ToolError, match="was lost"):
            await task
        assert until(mark, 0) == 0
        if kind == "root":
            ended, said = await run_script("echo again", ProcessLimits(10), where)
            assert (ended.returncode, said) == (0, b"again\n")
            return
        with pytest.raises(PlatformError) as caught:
            await run_script("echo again", ProcessLimits(10), where)
        assert caught.value.code == "guard_unavailable"


def test_nothing_is_left_when_the_server_leaves_without_cleaning_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    mark = marker()
    script = SERVER.replace("import asyncio, sys", "import asyncio, os, sys").replace(
        'print(data.decode(), end="", flush=True)', "os._exit(7)"
    )
    server = subprocess.run([sys.executable, "-c", script, "root", detaching(mark)], cwd=ROOT, check=False)
    assert server.returncode == 7
    assert until(mark, 0) == 0


async def test_no_zombie_and_no_descriptor_is_left_after_200_runs() -> None:
    await run_script("true", ProcessLimits(10))
    before = sorted(Path("/proc/self/fd").iterdir())
    runner = Path(f"/proc/{default_executor().runner_pid}/fd")
    held = len(list(runner.iterdir()))
    for turn in range(200):
        ended, _ = await run_script(f"setsid true & exit {turn % 2}", ProcessLimits(10))
        assert ended.returncode == turn % 2
    assert sorted(Path("/proc/self/fd").iterdir()) == before
    assert idle(default_executor())
    assert len(list(runner.iterdir())) == held


async def test_twenty_runs_at_once_do_not_mix(executor: Executor) -> None:
    async def one(number: int) -> tuple[int, bytes]:
        script = f"echo {number}; sleep 0.1; echo {number}; exit {number}"
        ended, output = await run_script(script, ProcessLimits(30), executor)
        return ended.returncode, output

    results = await asyncio.gather(*(one(number) for number in range(20)))
    assert results == [(number, f"{number}\n{number}\n".encode()) for number in range(20)]
