"""When a run ends, everything that it started has ended too, in every tier."""

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
from mcp_server.sandbox.process import ProcessLimits, run_process
from tests.support.processes import SHELL, executor

with executor(sys.argv[1]) as found:
    asyncio.run(run_process(("/bin/sh", "-c", sys.argv[2]), ProcessLimits(60),
        lambda data: print(data.decode(), end="", flush=True), executor=found, sandbox=SHELL))
"""


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with processes.executor(request.param) as found:
        yield found


async def test_the_time_limit_ends_all_processes(executor: Executor) -> None:
    mark = marker()
    started = time.monotonic()
    ended, output = await run_script(detaching(mark), ProcessLimits(1), executor)
    assert time.monotonic() - started < SOON
    assert (ended.returncode, ended.timed_out, output) == (124, True, b"ready\n")
    assert ended.stderr == b""
    assert alive(mark) == []


async def test_a_cancellation_ends_all_processes_before_it_is_raised(executor: Executor) -> None:
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


async def test_a_second_cancellation_leaves_no_process(executor: Executor) -> None:
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


async def test_a_cancellation_right_after_the_start_leaves_no_process(executor: Executor) -> None:
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


async def test_a_program_that_ends_leaves_no_process_that_holds_its_pipe(executor: Executor) -> None:
    mark = marker()
    ended, output = await run_script(f"setsid sleep {mark} & sleep 0.1; echo done", ProcessLimits(30), executor)
    assert (ended.returncode, output) == (0, b"done\n")
    assert ended.seconds < 5
    assert alive(mark) == []


async def test_sigterm_is_sent_first_and_the_output_after_it_is_kept(executor: Executor) -> None:
    script = "trap 'echo flushed; exit 3' TERM; while :; do sleep 0.05; done"
    ended, output = await run_script(script, ProcessLimits(1), executor)
    assert output == b"flushed\n"
    assert (ended.returncode, ended.timed_out) == (124, True)


async def test_a_program_that_ignores_sigterm_is_killed_within_the_time_limit(executor: Executor) -> None:
    started = time.monotonic()
    ended, _ = await run_script("trap '' TERM; while :; do sleep 0.05; done", ProcessLimits(1), executor)
    assert ended.timed_out
    assert 0.9 < time.monotonic() - started < SOON


async def test_the_return_code_after_a_signal_is_128_plus_its_number(executor: Executor) -> None:
    for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL, signal.SIGPIPE):
        ended, _ = await run_script(f"kill -{number} $$", ProcessLimits(10), executor)
        assert ended.returncode == 128 + number


async def test_exit_codes_are_not_changed(executor: Executor) -> None:
    for code in (0, 1, 42, 124, 126, 127, 255):
        ended, _ = await run_script(f"exit {code}", ProcessLimits(10), executor)
        assert (ended.returncode, ended.timed_out) == (code, False)


@pytest.mark.parametrize("kind", EXECUTORS)
def test_no_process_is_left_when_the_server_is_killed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert list(tmp_path.iterdir()) == [], "expected the scratch folder to be removed"


@pytest.mark.parametrize("kind", EXECUTORS)
def test_no_process_is_left_when_the_server_is_killed_at_a_random_moment(kind: str) -> None:
    """40 servers of each tier are killed, each within 12 ms of the start of a program."""
    mark = marker()
    script = f"setsid sleep {mark} & (setsid setsid sleep {mark} &); exec sleep {mark}"
    first = """
    asyncio.run(run_process(("/bin/true",), ProcessLimits(60), print, executor=found))
    print(flush=True)
"""
    ready = SERVER.replace("as found:\n", f"as found:{first}")
    seen = 0
    for _ in range(40):
        with subprocess.Popen([sys.executable, "-c", ready, kind, script], stdout=subprocess.PIPE, cwd=ROOT) as server:
            assert server.stdout is not None
            server.stdout.readline()
            time.sleep(random.uniform(0, 0.012))  # noqa: S311 - no cryptography
            seen += bool(alive(mark))
            server.kill()
    assert seen, "expected some programs to be running when their server was killed, found none"
    assert until(mark, 0) == 0


@pytest.mark.parametrize("kind", EXECUTORS)
async def test_a_killed_runner_ends_its_runs_with_an_error(kind: str) -> None:
    with processes.executor(kind) as executor:
        mark, output = marker(), bytearray()
        task = asyncio.create_task(
            run_process(
                (binary("sh"), "-c", detaching(mark)),
                ProcessLimits(30),
                output.extend,
                executor=executor,
                sandbox=SHELL,
            )
        )
        while not output:
            await asyncio.sleep(0.02)
        assert until(mark, 4) == 4
        os.kill(processes.runner_of(executor), signal.SIGKILL)
        with pytest.raises(ToolError, match="was lost"):
            await task
        assert until(mark, 0) == 0
        if kind == "root":
            ended, output_again = await run_script("echo again", ProcessLimits(10), executor)
            assert (ended.returncode, output_again) == (0, b"again\n")
            return
        with pytest.raises(PlatformError) as caught:
            await run_script("echo again", ProcessLimits(10), executor)
        assert caught.value.code == "guard_unavailable"


def test_no_process_is_left_when_the_server_exits_without_cleaning_up(
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


async def test_no_zombie_and_no_open_descriptor_is_left_after_200_runs() -> None:
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


async def test_twenty_concurrent_runs_do_not_mix_their_output(executor: Executor) -> None:
    async def one(number: int) -> tuple[int, bytes]:
        script = f"echo {number}; sleep 0.1; echo {number}; exit {number}"
        ended, output = await run_script(script, ProcessLimits(30), executor)
        return ended.returncode, output

    results = await asyncio.gather(*(one(number) for number in range(20)))
    assert results == [(number, f"{number}\n{number}\n".encode()) for number in range(20)]
