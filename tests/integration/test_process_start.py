"""What a program is given: environment, folder, descriptors, limits; and what happens when it cannot start."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from mcp_server.errors import ArgumentError, BusyError, NetworkToolsError, PlatformError
from mcp_server.execution import process
from mcp_server.execution.launcher import SYSTEM_PATH, Launcher, Tier
from mcp_server.execution.process import Limits, run_process
from tests.support import processes
from tests.support.processes import binary, run_script

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=[Tier.PID_NAMESPACE, Tier.USER_NAMESPACE, Tier.SUPERVISOR])
def launcher(request: pytest.FixtureRequest) -> Launcher:
    return processes.launcher(request.param)


async def test_the_environment_is_three_variables(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NMAPDIR", "LD_PRELOAD", "PYTHONPATH", "TIMEOUT"):
        monkeypatch.setenv(name, "")
    output = bytearray()
    await run_process((binary("env"),), Limits(10), output.extend, launcher=launcher)
    variables = dict(line.split("=", 1) for line in output.decode().splitlines())
    home = variables.pop("HOME")
    assert variables == {"PATH": SYSTEM_PATH, "LC_ALL": "C"}
    assert not Path(home).exists()


async def test_home_is_an_empty_folder_that_is_removed_with_its_content(launcher: Launcher) -> None:
    _, output = await run_script(
        "ls -A; stat -c %a .; mkdir -p a/b; touch a/b/c; pwd; echo $HOME", Limits(10), launcher
    )
    mode, pwd, home = output.decode().splitlines()
    assert (mode, pwd) == ("700", home)
    assert not Path(home).exists()


async def test_no_descriptor_is_inherited_and_input_is_empty(launcher: Launcher, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        script = (
            f"cat; readlink /proc/self/fd/0; ls /proc/self/fd | wc -l; test -e /proc/self/fd/{file.fileno()}; echo $?"
        )
        _, output = await run_script(script, Limits(10), launcher)
    assert output.decode().split() == ["/dev/null", "4", "1"]  # the fourth is the folder that ls reads


async def test_the_kernel_holds_the_limits(launcher: Launcher) -> None:
    limits = Limits(10, memory_bytes=100 << 20, file_descriptors=33, cpu_sec=7, file_bytes=4096)
    _, output = await run_script("cat /proc/self/limits", limits, launcher)
    table = {line[:25].strip(): line[25:].split()[:2] for line in output.decode().splitlines()}
    assert table["Max cpu time"] == ["7", "7"]
    assert table["Max address space"] == [str(100 << 20)] * 2
    assert table["Max open files"] == ["33", "33"]
    assert table["Max core file size"] == ["0", "0"]
    assert table["Max file size"] == ["4096", "4096"]


async def test_signals_are_at_their_defaults(launcher: Launcher) -> None:
    _, output = await run_script("grep -E 'Sig(Blk|Ign)' /proc/self/status", Limits(10), launcher)
    _, blocked, _, ignored = output.decode().split()
    # Signals 1 to 31: 32 and 33 are the C library's own, and no program can set them (nptl(7)).
    assert [int(mask, 16) & 0x7FFFFFFF for mask in (blocked, ignored)] == [0, 0]


async def test_a_program_that_writes_too_much_or_eats_cpu_is_stopped(launcher: Launcher) -> None:
    ended, listing = await run_script(
        "head -c 100000 /dev/zero > file; ls -l file", Limits(10, file_bytes=4096), launcher
    )
    assert b"File size limit exceeded" in ended.stderr
    assert listing.split()[4] == b"4096"
    busy, _ = await run_script("while :; do :; done", Limits(30, cpu_sec=1), launcher)
    assert busy.returncode in {137, 152}
    assert busy.seconds < 10


async def test_a_missing_or_useless_program_is_a_typed_error(tmp_path: Path, launcher: Launcher) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    orphan = tmp_path / "orphan"
    orphan.write_text("#!/no/such/interpreter\n")
    orphan.chmod(0o755)
    for path, code in (
        (tmp_path / "missing", "binary_not_found"),
        (tmp_path, "binary_not_found"),
        (plain, "permission_denied"),
        (orphan, "binary_not_found"),
    ):
        with pytest.raises(PlatformError) as caught:
            await run_process((str(path),), Limits(10), lambda _: None, launcher=launcher)
        assert caught.value.code == code
        assert str(path) in caught.value.message


async def test_a_file_that_is_no_program_never_looks_like_success(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)
    for tier in (Tier.PID_NAMESPACE, Tier.USER_NAMESPACE):  # timeout(1), as execvp(3) does, tries it as a script
        ended = await run_process((str(broken),), Limits(10), lambda _: None, launcher=processes.launcher(tier))
        assert ended.returncode != 0
    with pytest.raises(PlatformError) as caught:
        await run_process((str(broken),), Limits(10), lambda _: None, launcher=processes.launcher(Tier.SUPERVISOR))
    assert caught.value.code == "permission_denied"


async def test_words_that_cannot_be_arguments_are_refused() -> None:
    true = binary("true")
    cases: list[tuple[tuple[str, ...], type[NetworkToolsError]]] = [
        ((), PlatformError),
        (("true",), PlatformError),
        ((true, "a\0b"), ArgumentError),
        ((true, "x" * (1 << 20)), ArgumentError),
    ]
    for argv, expected in cases:
        with pytest.raises(expected):
            await run_process(argv, Limits(10), lambda _: None)


async def test_a_full_table_of_descriptors_is_busy_and_not_a_crash() -> None:
    script = """
import asyncio, resource
from mcp_server.errors import BusyError
from mcp_server.execution.process import Limits, run_process

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
    with pytest.raises(PlatformError) as caught:
        await run_process((binary("true"),), Limits(10), lambda _: None)
    assert "/proc" in caught.value.message


async def test_without_pidfd_the_process_is_still_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.pidfd_open")
    ended, output = await run_script("echo hello; exit 5", Limits(10))
    assert (ended.returncode, output) == (5, b"hello\n")
    late, _ = await run_script("sleep 60", Limits(0.5))
    assert (late.returncode, late.timed_out) == (124, True)
    assert processes.children() == []


def test_runs_work_on_a_loop_in_another_thread() -> None:
    codes: list[int] = []

    async def run() -> None:
        codes.append((await run_script("exit 9", Limits(10)))[0].returncode)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    thread.join()
    assert codes == [9]


def test_an_ignored_sigchld_is_an_error_and_not_a_success() -> None:
    script = """
import asyncio, signal
from mcp_server.errors import ToolError
from mcp_server.execution.process import Limits, run_process
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
try:
    print(asyncio.run(run_process(("/bin/false",), Limits(10), print)))
except ToolError as error:
    print(error.message)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "the exit status was lost: the server ignores SIGCHLD\n"


async def test_nmap_sends_raw_packets_as_root() -> None:
    output = bytearray()
    argv = (binary("nmap"), "-n", "-sS", "-p1", "-oX", "-", "127.0.0.1")
    ended = await run_process(argv, Limits(30), output.extend)
    assert ended.returncode == 0, ended.stderr
    assert b'reason="reset"' in output


def test_nmap_connects_as_an_ordinary_user() -> None:
    script = """
import asyncio, os
from mcp_server.execution.launcher import containment
from mcp_server.execution.process import Limits, run_process

os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)  # after the imports: the checkout may be closed to others
output = bytearray()
argv = ("/usr/bin/nmap", "-n", "-p1", "-oX", "-", "127.0.0.1")
ended = asyncio.run(run_process(argv, Limits(30), output.extend))
print(containment().tier, ended.returncode, b'reason="conn-refused"' in output, ended.stderr.decode())
"""
    done = subprocess.run([sys.executable, "-c", script], cwd="/", capture_output=True, text=True, check=False)
    assert done.stdout.split() == [Tier.USER_NAMESPACE, "0", "True"], done.stderr


def test_every_program_a_launcher_needs_is_part_of_debian() -> None:
    for name in ("setpriv", "prlimit", "unshare", "timeout"):
        assert shutil.which(name, path=SYSTEM_PATH)


def test_busy_is_a_refusal() -> None:
    error = process._unusable("/bin/true", OSError(errno.EAGAIN, "no room"))
    assert isinstance(error, BusyError)
    assert error.retryable
