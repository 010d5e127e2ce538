"""The environment, folder, descriptors and limits of a program, and the errors if it cannot start."""

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
    with processes.executor(request.param) as found:
        yield found


async def test_the_environment_has_two_variables(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NMAPDIR", "LD_PRELOAD", "PYTHONPATH", "TIMEOUT", "HOME"):
        monkeypatch.setenv(name, "")
    output = bytearray()
    await run_process((binary("env"),), ProcessLimits(10), output.extend, executor=executor)
    assert sorted(output.decode().splitlines()) == ["LC_ALL=C", f"PATH={SYSTEM_PATH}"]


async def test_the_working_directory_is_empty_and_removed_with_its_content(executor: Executor) -> None:
    script = """
ls -A; stat -c %a .; pwd
mkdir -p a/b; : > a/b/c
deep=$(printf 'd/%.0s' $(seq 400)); for n in 1 2 3 4 5 6; do mkdir -p $deep; cd $deep; done; : > end
"""
    _, output = await run_script(script, ProcessLimits(30), executor)
    mode, pwd = output.decode().splitlines()
    assert mode == "700"
    assert not Path(pwd).exists()


async def test_the_pid_is_the_one_in_proc(executor: Executor) -> None:
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
    assert output.decode().split() == ["/dev/null", "4", "1"]  # ls opens the folder as the fourth


async def test_the_kernel_enforces_the_limits(executor: Executor) -> None:
    limits = ProcessLimits(10, memory_bytes=100 << 20, file_descriptors=33, cpu_sec=7, file_bytes=4096)
    _, output = await run_script("cat /proc/self/limits", limits, executor)
    table = {line[:25].strip(): line[25:].split()[:2] for line in output.decode().splitlines()}
    assert table["Max cpu time"] == ["7", "7"]
    assert table["Max address space"] == [str(100 << 20)] * 2
    assert table["Max open files"] == ["33", "33"]
    assert table["Max core file size"] == ["0", "0"]
    assert table["Max file size"] == ["4096", "4096"]


async def test_signals_have_their_default_actions(executor: Executor) -> None:
    _, output = await run_script("grep -E 'Sig(Blk|Ign)' /proc/self/status", ProcessLimits(10), executor)
    _, blocked, _, ignored = output.decode().split()
    # Only signals 1 to 31, because the C library reserves 32 and 33, and no program can set them (nptl(7)).
    assert [int(mask, 16) & 0x7FFFFFFF for mask in (blocked, ignored)] == [0, 0]


async def test_a_program_that_exceeds_its_file_size_or_cpu_limit_is_stopped(executor: Executor) -> None:
    ended, listing = await run_script(
        "head -c 100000 /dev/zero > file; ls -l file", ProcessLimits(10, file_bytes=4096), executor
    )
    assert b"File size limit exceeded" in ended.stderr
    assert listing.split()[4] == b"4096"
    busy, _ = await run_script("while :; do :; done", ProcessLimits(30, cpu_sec=1), executor)
    assert busy.returncode in {137, 152}
    assert busy.seconds < 10


async def test_a_program_that_is_missing_or_cannot_be_executed_is_a_typed_error(executor: Executor) -> None:
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


async def test_invalid_arguments_are_refused() -> None:
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


async def test_a_server_without_free_descriptors_raises_busy() -> None:
    script = """
import asyncio, resource
from mcp_server.errors import BusyError
from mcp_server.sandbox.process import ProcessLimits, run_process

async def main():
    await run_process(("/bin/true",), ProcessLimits(10), print)
    held = [open("/dev/null") for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(f.fileno() for f in held) + 2,) * 2)
    try:
        await run_process(("/bin/true",), ProcessLimits(10), print)
    except BusyError as error:
        print(error.code, error.message)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "too_many_requests /bin/true was not started: Too many open files.\n"
    assert done.stderr == ""


async def test_an_error_names_the_folder_if_no_scratch_folder_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    with processes.executor("root") as executor, pytest.raises(PlatformError) as caught:
        await run_process((binary("true"),), ProcessLimits(10), lambda _: None, executor=executor)
    assert "/proc" in caught.value.message


async def test_on_other_systems_than_linux_a_program_is_still_limited_and_ended() -> None:
    with processes.executor("elsewhere") as executor:
        ended, output = await run_script("echo hello; exit 5", ProcessLimits(10), executor)
        assert (ended.returncode, output) == (5, b"hello\n")
        late, _ = await run_script("sleep 60 & sleep 60", ProcessLimits(0.5), executor)
        assert (late.returncode, late.timed_out) == (124, True)
        assert idle(executor)


def test_runs_work_on_an_event_loop_in_another_thread() -> None:
    codes: list[int] = []

    async def run() -> None:
        codes.append((await run_script("exit 9", ProcessLimits(10)))[0].returncode)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    thread.join()
    assert codes == [9]


def test_a_server_that_ignores_sigchld_still_gets_the_return_code() -> None:
    script = """
import asyncio, signal
from mcp_server.sandbox.process import ProcessLimits, run_process
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print(asyncio.run(run_process(("/bin/false",), ProcessLimits(10), print)).returncode)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize(("kind", "own"), [("root", {"pid"}), ("nobody", {"pid", "user"}), ("nobody-raw", set())])
async def test_the_namespaces_of_a_run_are_those_of_its_tier(kind: str, own: set[str]) -> None:
    names = ("pid", "user", "net", "mnt")
    with processes.executor(kind) as executor:
        _, output = await run_script(
            "".join(f"readlink /proc/self/ns/{n};" for n in names), ProcessLimits(10), executor
        )
        _, again = await run_script("readlink /proc/self/ns/pid", ProcessLimits(10), executor)
    seen = dict(zip(names, output.decode().split(), strict=True))
    assert {n for n in names if seen[n] != str(Path(f"/proc/self/ns/{n}").readlink())} == own
    assert (seen["pid"] != again.decode().strip()) == ("pid" in own)


def test_root_contains_runs_completely() -> None:
    found = containment()
    assert (found.tier, found.files_confined, found.remedy) == (Tier.PID_NAMESPACE, True, "")


async def test_a_program_has_a_lower_priority_than_the_server(executor: Executor) -> None:
    output = bytearray()
    await run_process((binary("nice"),), ProcessLimits(10), output.extend, executor=executor)
    assert int(output) == min(os.nice(0) + NICENESS, 19)


async def test_nmap_sends_raw_packets_as_root() -> None:
    output = bytearray()
    argv = (binary("nmap"), "-n", "-sS", "-p1", "-oX", "-", "127.0.0.1")
    ended = await run_process(argv, ProcessLimits(30), output.extend)
    assert ended.returncode == 0, ended.stderr
    assert b'reason="reset"' in output


async def test_nmap_makes_connect_scans_without_raw_sockets() -> None:
    output = bytearray()
    argv = (binary("nmap"), "-n", "--unprivileged", "-p1", "-oX", "-", "127.0.0.1")
    with processes.executor("nobody") as executor:
        ended = await run_process(argv, ProcessLimits(30), output.extend, executor=executor)
    assert ended.returncode == 0, ended.stderr
    assert b'reason="conn-refused"' in output


def test_a_lack_of_resources_can_be_retried() -> None:
    error = process._unusable("/bin/true", OSError(errno.EAGAIN, "no free process"))
    assert isinstance(error, BusyError)
    assert error.retryable
