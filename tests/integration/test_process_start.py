"""What a program is given: environment, folder, descriptors, limits; and what happens when it cannot start."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcp_server.errors import ArgumentError, BusyError, NetworkToolsError, PlatformError
from mcp_server.sandbox import process
from mcp_server.sandbox.confine import NICENESS, SYSTEM_PATH
from mcp_server.sandbox.containment import Tier, containment
from mcp_server.sandbox.executor import Executor
from mcp_server.sandbox.process import ProcessLimits, run_process
from tests.support import processes
from tests.support.processes import EXECUTORS, binary, idle, public_folder, run_script

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with processes.executor(request.param) as where:
        yield where


async def test_the_environment_is_two_variables(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NMAPDIR", "LD_PRELOAD", "PYTHONPATH", "TIMEOUT", "HOME"):
        monkeypatch.setenv(name, "")
    output = bytearray()
    await run_process((binary("env"),), ProcessLimits(10), output.extend, executor=executor)
    assert sorted(output.decode().splitlines()) == ["LC_ALL=C", f"PATH={SYSTEM_PATH}"]


async def test_the_folder_is_empty_and_removed_with_its_content(executor: Executor) -> None:
    script = """
ls -A; stat -c %a .; pwd
mkdir -p a/b; : > a/b/c
deep=$(printf 'd/%.0s' $(seq 400)); for n in 1 2 3 4 5 6; do mkdir -p $deep; cd $deep; done; : > end
"""
    _, output = await run_script(script, ProcessLimits(30), executor)
    mode, pwd = output.decode().splitlines()
    assert mode == "700"
    assert not Path(pwd).exists()


async def test_the_pid_is_the_one_that_proc_shows(executor: Executor) -> None:
    ended, output = await run_script(
        "readlink /proc/self; echo; exec stat -c %N /proc/self", ProcessLimits(10), executor
    )
    assert output.split()[-1] == f"'{ended.pid}'".encode()
    assert ended.bytes_out == len(output)


async def test_no_descriptor_is_inherited_and_input_is_empty(executor: Executor, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        script = (
            f"cat; readlink /proc/self/fd/0; ls /proc/self/fd | wc -l; test -e /proc/self/fd/{file.fileno()}; echo $?"
        )
        _, output = await run_script(script, ProcessLimits(10), executor)
    assert output.decode().split() == ["/dev/null", "4", "1"]  # the fourth is the folder that ls reads


async def test_the_kernel_holds_the_limits(executor: Executor) -> None:
    limits = ProcessLimits(10, memory_bytes=100 << 20, file_descriptors=33, cpu_sec=7, file_bytes=4096)
    _, output = await run_script("cat /proc/self/limits", limits, executor)
    table = {line[:25].strip(): line[25:].split()[:2] for line in output.decode().splitlines()}
    assert table["Max cpu time"] == ["7", "7"]
    assert table["Max address space"] == [str(100 << 20)] * 2
    assert table["Max open files"] == ["33", "33"]
    assert table["Max core file size"] == ["0", "0"]
    assert table["Max file size"] == ["4096", "4096"]


async def test_signals_are_at_their_defaults(executor: Executor) -> None:
    _, output = await run_script("grep -E 'Sig(Blk|Ign)' /proc/self/status", ProcessLimits(10), executor)
    _, blocked, _, ignored = output.decode().split()
    # Signals 1 to 31: 32 and 33 are the C library's own, and no program can set them (nptl(7)).
    assert [int(mask, 16) & 0x7FFFFFFF for mask in (blocked, ignored)] == [0, 0]


async def test_a_program_that_writes_too_much_or_eats_cpu_is_stopped(executor: Executor) -> None:
    ended, listing = await run_script(
        "head -c 100000 /dev/zero > file; ls -l file", ProcessLimits(10, file_bytes=4096), executor
    )
    assert b"File size limit exceeded" in ended.stderr
    assert listing.split()[4] == b"4096"
    busy, _ = await run_script("while :; do :; done", ProcessLimits(30, cpu_sec=1), executor)
    assert busy.returncode in {137, 152}
    assert busy.seconds < 10


async def test_a_missing_or_useless_program_is_a_typed_error(executor: Executor) -> None:
    with public_folder() as folder:
        plain, orphan, broken = (folder / name for name in ("plain", "orphan", "broken"))
        plain.write_text("#!/bin/sh\n")
        orphan.write_text("#!/no/such/interpreter\n")
        broken.write_bytes(b"\x7fELF nonsense")
        for path in (orphan, broken):
            path.chmod(0o755)
        for path, code, reason in (
            (folder / "missing", "binary_not_found", "No such file"),
            (folder, "binary_not_found", "No such file"),
            (plain, "permission_denied", "Permission denied"),
            (orphan, "binary_not_found", "No such file"),
            (broken, "permission_denied", "Exec format error"),
        ):
            with pytest.raises(PlatformError, match=reason) as caught:
                await run_process((str(path),), ProcessLimits(10), lambda _: None, executor=executor)
            assert caught.value.code == code
            assert str(path) in caught.value.message


async def test_words_that_cannot_be_arguments_are_refused() -> None:
    true = binary("true")
    cases: list[tuple[tuple[str, ...], type[NetworkToolsError]]] = [
        ((), PlatformError),
        (("true",), PlatformError),
        ((true, "a\0b"), ArgumentError),
        ((true, "a\ud800b"), ArgumentError),
        ((true, *["x" * 1000] * 5000), ArgumentError),
        ((true, "x" * (1 << 20)), ArgumentError),
    ]
    for argv, expected in cases:
        with pytest.raises(expected):
            await run_process(argv, ProcessLimits(10), lambda _: None)


async def test_a_full_table_of_descriptors_is_busy_and_not_a_crash() -> None:
    script = """
import asyncio, resource
from mcp_server.errors import BusyError
from mcp_server.sandbox.process import Limits, run_process

async def main():
    await run_process(("/bin/true",), Limits(10), print)
    held = [open("/dev/null") for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(f.fileno() for f in held) + 2,) * 2)
    try:
        await run_process(("/bin/true",), Limits(10), print)
    except BusyError as error:
        print(error.code, error.message)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"too_many_requests {'/bin/true'} was not started: Too many open files\n"
    assert done.stderr == ""


async def test_no_place_for_the_scratch_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    with processes.executor("root") as where, pytest.raises(PlatformError) as caught:
        await run_process((binary("true"),), ProcessLimits(10), lambda _: None, executor=where)
    assert "/proc" in caught.value.message


async def test_elsewhere_than_on_linux_a_reduced_runner_still_bounds_and_ends_a_program() -> None:
    with processes.executor("elsewhere") as where:
        ended, output = await run_script("echo hello; exit 5", ProcessLimits(10), where)
        assert (ended.returncode, output) == (5, b"hello\n")
        late, _ = await run_script("sleep 60 & sleep 60", ProcessLimits(0.5), where)
        assert (late.returncode, late.timed_out) == (124, True)
        assert idle(where)


def test_runs_work_on_a_loop_in_another_thread() -> None:
    codes: list[int] = []

    async def run() -> None:
        codes.append((await run_script("exit 9", ProcessLimits(10)))[0].returncode)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    thread.join()
    assert codes == [9]


def test_a_server_that_ignores_sigchld_does_not_lose_the_status() -> None:
    script = """
import asyncio, signal
from mcp_server.sandbox.process import Limits, run_process
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print(asyncio.run(run_process(("/bin/false",), Limits(10), print)).returncode)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize(("kind", "own"), [("root", {"pid"}), ("nobody", {"pid", "user"}), ("nobody-raw", set())])
async def test_the_namespaces_of_a_run_are_those_of_its_tier(kind: str, own: set[str]) -> None:
    names = ("pid", "user", "net", "mnt")
    with processes.executor(kind) as where:
        _, output = await run_script("".join(f"readlink /proc/self/ns/{n};" for n in names), ProcessLimits(10), where)
        _, again = await run_script("readlink /proc/self/ns/pid", ProcessLimits(10), where)
    seen = dict(zip(names, output.decode().split(), strict=True))
    assert {n for n in names if seen[n] != str(Path(f"/proc/self/ns/{n}").readlink())} == own
    assert (seen["pid"] != again.decode().strip()) == ("pid" in own)


def test_the_tier_of_this_process_is_told() -> None:
    found = containment()
    assert (found.tier, found.ends_detached, found.ends_with_server) == (Tier.PID_NAMESPACE, True, True)
    assert (found.files_confined, found.signals_confined, found.remedy) == (True, True, "")


async def test_a_program_stands_back_behind_the_server(executor: Executor) -> None:
    output = bytearray()
    await run_process((binary("nice"),), ProcessLimits(10), output.extend, executor=executor)
    assert int(output) == min(os.nice(0) + NICENESS, 19)


async def test_nmap_sends_raw_packets_as_root() -> None:
    output = bytearray()
    argv = (binary("nmap"), "-n", "-sS", "-p1", "-oX", "-", "127.0.0.1")
    ended = await run_process(argv, ProcessLimits(30), output.extend)
    assert ended.returncode == 0, ended.stderr
    assert b'reason="reset"' in output


async def test_nmap_connects_without_the_right_to_raw_sockets() -> None:
    output = bytearray()
    argv = (binary("nmap"), "-n", "--unprivileged", "-p1", "-oX", "-", "127.0.0.1")
    with processes.executor("nobody") as where:
        ended = await run_process(argv, ProcessLimits(30), output.extend, executor=where)
    assert ended.returncode == 0, ended.stderr
    assert b'reason="conn-refused"' in output


def test_busy_is_a_refusal() -> None:
    error = process._unusable("/bin/true", OSError(errno.EAGAIN, "no room"))
    assert isinstance(error, BusyError)
    assert error.retryable
