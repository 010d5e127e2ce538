"""What a compromised program and a misused nmap cannot do, in every tier."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcp_server.sandbox.confine import MORE_TASKS
from mcp_server.sandbox.executor import Executor
from mcp_server.sandbox.process import Exit, ProcessLimits, run_process
from mcp_server.sandbox.sandbox import Sandbox
from tests.support import processes
from tests.support.clock import SOON
from tests.support.processes import EXECUTORS, SHELL, binary, idle, public_folder, run_script

NMAP = Sandbox(reads=("/usr/share/nmap",), raw_sockets=True)
OPEN = """
sub try { my ($what, $done) = @_; print "$what ", ($done ? "done" : 0 + $!), "\\n"; $! = 0 }
"""
"""Perl code, because every Debian has Perl. It prints one line per attempt: its name and "done" or the errno."""

FILES = """
for my $path (@ARGV) { try "read:$path", open(my $f, "<", $path); try "write:$path", open(my $g, "+<", $path) }
for my $folder ("/tmp", "/dev/shm", "/var/tmp", "/root", "/etc", "/proc", "/home", $state) {
  try "list:$folder", opendir(my $d, $folder); try "create:$folder", open(my $f, ">", "$folder/mcp-attack-$$");
  try "mkdir:$folder", mkdir("$folder/mcp-attack-$$"); try "link:$folder", symlink("x", "$folder/mcp-attack-$$");
}
try "truncate", truncate("$state/log", 0);
try "unlink", unlink("$state/log");
try "rename", rename("$state/log", "$state/other");
try "away", rename("own", "$state/own") if open(my $own, ">", "own");
try "hardlink", link("$state/log", "mine");
try "chmod", chmod(0666, "$state/log"); try "times", utime(1, 1, "$state/log");
try "chown", chown($<, $(, "$state/log");
try "exec", open(my $p, "-|", "/usr/bin/id");
open(my $x, ">", "prog"); print $x "#!/bin/sh\\n"; close $x;
try "own-exec", !system("./prog") && !$?;
"""
PROCESSES = """
use Socket;
try "kill:$_", kill(0, $_) for @ARGV;
try "ptrace:$_", syscall(101, 16, $_, 0, 0) == 0 for @ARGV;
my ($buffer, $local, $remote) = ("x" x 8, pack("QQ", unpack("Q", pack("P", "x" x 8)), 8), pack("QQ", 0x400000, 8));
try "vm:$_", syscall(310, $_, $local, 1, $remote, 1, 0) >= 0 for @ARGV;
for my $file ("mem", "environ", "maps", "fd", "root", "cwd") {
  try "$file:$_", open(my $f, "<", "/proc/$_/$file") for @ARGV
}
my $none = pack("QQ", 0, 0); try "limit:$_", syscall(302, $_, 7, $none, 0) == 0 for @ARGV;
try "unix", socket(my $u, AF_UNIX, SOCK_STREAM, 0);
try "packet", socket(my $s, 17, SOCK_RAW, 0);
try "raw", socket($s, AF_INET, SOCK_RAW, 1);
try "inet", socket($s, AF_INET, SOCK_STREAM, 0);
my $space = "\\0" x 120; try "uring", syscall(425, 1, $space) >= 0;
try "unshare", syscall(272, 0x10000000) == 0;
my $c = syscall(56, 0x10000011, 0, 0, 0, 0); exit if !$c; try "clone", $c > 0;
my $args = pack("Q8", 0x10000000, 0, 0, 0, 17, 0, 0, 0);
$c = syscall(435, $args, 64); exit if !$c; try "clone3", $c > 0;
my ($from, $to, $type) = ("x", "/tmp", "tmpfs"); try "mount", syscall(165, $from, $to, $type, 0, 0) == 0;
try "setuid", syscall(105, 0) == 0 && $< != 0;
"""

KERNEL_OBJECTS = """
my ($pair, $space) = ("\\0" x 8, "\\0" x 256);
try "pair:$_", syscall(53, 1, $_, 0, $pair) == 0 for 2, 5, 2 | 02000000, 5 | 04000;
try "stream", syscall(53, 1, 1 | 02000000, 0, $pair) == 0;
try "pair-family", syscall(53, 30, 1, 0, $pair) == 0;
for my $family (0 .. 50) {
  for my $type (1, 2, 3, 5) { try "socket:$family:$type", syscall(41, $family, $type, 0) >= 0 }
}
try "shmget", syscall(29, 0, 4096, 01666) >= 0; try "shmat", syscall(30, 0, 0, 010000) != -1;
try "shmctl", syscall(31, 0, 14, 0) >= 0;
try "msgget", syscall(68, 0, 01666) >= 0; try "msgctl", syscall(71, 0, 12, $space) >= 0;
try "semget", syscall(64, 0, 1, 01666) >= 0; try "semctl", syscall(66, 0, 0, 19, $space) >= 0;
my $queue = "mcp-test-$$"; try "mq_open", syscall(240, $queue, 0102, 0600, 0) >= 0; syscall(241, $queue);
try "setpriority", syscall(141, 0, 0, 1) == 0; try "ioprio", syscall(251, 1, 0, 3 << 13) == 0;
my ($cpus, $none, $attr) = (pack("Q16", 1), pack("l", 0), pack("LLQlLQQQ", 48, 0, 0, 0, 0, 0, 0, 0));
try "affinity", syscall(203, 0, 128, $cpus) == 0; try "scheduler", syscall(144, 0, 3, $none) == 0;
try "param", syscall(142, 0, $none) == 0; try "attr", syscall(314, 0, $attr, 0) == 0;
open(my $own, ">", "own"); my $flags = pack("Q", 0x80); my $more = "\\0" x 28;
try "setflags", syscall(16, fileno($own), 0x40086602, $flags) == 0;
try "fssetxattr", syscall(16, fileno($own), 0x401c5820, $more) == 0;
use Socket;
socket(my $s, AF_INET, SOCK_DGRAM, 0); socket(my $six, AF_INET6, SOCK_DGRAM, 0);
my ($group, $from, $lo) = (inet_aton("239.1.2.3"), inet_aton("127.0.0.2"), inet_aton("127.0.0.1"));
my $any = pack("Lx4", 1) . pack("Sx2a4x120", 2, $group); my $source = pack("Sx2a4x120", 2, $from);
try "join", setsockopt($s, 0, 35, $group . $lo); try "join-source", setsockopt($s, 0, 39, $group . $lo . $from);
try "mcast", setsockopt($s, 0, 42, $any); try "mcast-source", setsockopt($s, 0, 46, $any . $source);
my $wide = pack("H32", "ff150000000000000000000000001234");
try "join6", setsockopt($six, 41, 20, $wide . pack("L", 1));
try "mcast6", setsockopt($six, 41, 42, pack("Lx4", 1) . pack("SSLa16x100", 10, 0, 0, $wide));
try "ttl", setsockopt($s, 0, 2, pack("l", 9)); try "hops", setsockopt($six, 41, 16, pack("l", 9));
"""

OTHER_RUN = """
try "list", opendir(my $d, $ARGV[0]); try "read", open(my $f, "<", "$ARGV[0]/file");
try "write", open($f, ">", "$ARGV[0]/new"); try "kill", kill(0, $ARGV[1]);
"""


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with processes.executor(request.param) as found:
        yield found


async def attack(
    code: str, *words: str, executor: Executor, sandbox: Sandbox | None = None, state: str = "/"
) -> dict[str, str]:
    """Run Perl code and return each attempt with its result."""
    output = bytearray()
    argv = (binary("perl"), "-e", f"my $state = '{state}';{OPEN}{code}", *words)
    ended = await run_process(
        argv, ProcessLimits(20), output.extend, executor=executor, sandbox=sandbox or Sandbox(raw_sockets=True)
    )
    assert ended.returncode == 0, ended.stderr
    return dict(line.rsplit(" ", 1) for line in output.decode().splitlines())


async def nmap(executor: Executor, *words: str, sandbox: Sandbox = NMAP) -> tuple[Exit, bytes]:
    output = bytearray()
    argv = (binary("nmap"), "-n", "--unprivileged", "-p1", "-oX", "-", *words, "127.0.0.1")
    ended = await run_process(argv, ProcessLimits(30), output.extend, executor=executor, sandbox=sandbox)
    return ended, bytes(output)


async def test_a_program_can_open_no_files_but_its_own(executor: Executor) -> None:
    with public_folder() as state:
        state.chmod(0o777)
        log = state / "log"
        log.write_text("log\n")
        log.chmod(0o666)
        before = log.stat()
        files = ["/etc/passwd", "/etc/shadow", "/proc/self/environ", "/proc/self/mem", "/proc/1/environ", "/dev/tty"]
        files += ["/etc/hostname", "/usr/bin/id", "/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"]
        tried = await attack(FILES, str(log), *files, executor=executor, state=str(state))
        assert {what for what, how in tried.items() if how == "done"} == set()
        assert len(tried) > 50
        after = log.stat()
        assert (after.st_mode, after.st_mtime_ns, log.read_text()) == (before.st_mode, before.st_mtime_ns, "log\n")
        assert list(state.iterdir()) == [log]


async def test_a_program_can_reach_no_other_process(executor: Executor) -> None:
    """The runner has the same user as the program. This process is the server."""
    if executor.name == "here":
        executor.start()
    victims = {processes.runner_of(executor), os.getpid(), 1}
    tried = await attack(PROCESSES, *map(str, victims), executor=executor)
    raw = {"packet", "raw"} if executor.name != "nobody" else set()
    assert {what for what, how in tried.items() if how == "done"} == raw | {"inet"}
    assert len(tried) >= 40
    for pid in victims:
        assert Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("raw", [True, False])
async def test_other_kernel_objects_cannot_be_reached(executor: Executor, raw: bool) -> None:
    """These are datagram socket pairs, other socket families, queues, priorities and multicast groups."""
    tried = await attack(KERNEL_OBJECTS, executor=executor, sandbox=Sandbox(raw_sockets=raw))
    done = {what for what, how in tried.items() if how == "done"}
    sockets = {"socket:2:1", "socket:2:2", "socket:10:1", "socket:10:2", "socket:16:2", "socket:16:3"}
    sockets |= {"socket:17:2", "socket:17:3"} if raw and executor.name != "nobody" else set()
    assert done == {"stream", "ttl", "hops"} | sockets
    families = {what.split(":")[1] for what, how in tried.items() if what.startswith("socket:") and how != "97"}
    assert families == {"2", "10", "16"} | ({"17"} if raw and executor.name != "nobody" else set())
    others = {how for what, how in tried.items() if not what.startswith("socket:")}
    assert others == {"done", "1", "97"}


async def test_a_sandbox_without_raw_sockets_has_none(executor: Executor) -> None:
    tried = await attack(PROCESSES, executor=executor, sandbox=Sandbox(raw_sockets=False))
    assert {what for what, how in tried.items() if how == "done"} == {"inet"}


async def test_an_executor_without_raw_sockets_gives_none_to_root() -> None:
    executor = Executor.here(allow_raw=False)
    try:
        tried = await attack(PROCESSES, executor=executor)
        _, output = await run_script("grep -E 'Cap|NoNew|Seccomp:' /proc/self/status", ProcessLimits(10), executor)
    finally:
        executor.close()
    assert {what for what, how in tried.items() if how == "done"} == {"inet"}
    lines = dict(line.split(":\t") for line in output.decode().splitlines())
    assert lines.pop("NoNewPrivs") == "1"
    assert lines.pop("Seccomp") == "2"
    assert set(lines.values()) == {"0" * 16}
    assert len(lines) == 5


async def test_a_program_has_no_capability_except_cap_net_raw(executor: Executor) -> None:
    _, output = await run_script("grep -E 'Cap|NoNew' /proc/self/status; id -u", ProcessLimits(10), executor)
    lines = dict(re.findall(r"(\w+):\t(\w+)", output.decode()))
    granted = "0" * 16 if executor.name == "nobody" else f"{1 << 13:016x}"
    assert {lines[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {granted}
    assert lines["NoNewPrivs"] == "1"


async def test_a_set_uid_program_gains_no_privileges(executor: Executor) -> None:
    with public_folder() as folder:
        copy = folder / "cat"
        copy.write_bytes(Path(binary("cat")).read_bytes())
        copy.chmod(0o4755)
        sandbox = Sandbox(reads=("/proc",), raw_sockets=False)
        output = bytearray()
        ended = await run_process(
            (str(copy), "/proc/self/status"), ProcessLimits(10), output.extend, executor=executor, sandbox=sandbox
        )
    assert ended.returncode == 0, ended.stderr
    user = "0" if executor.name == "here" else "65534"
    assert re.search(rb"Uid:\t(\d+)\t(\d+)", output).groups() == (user.encode(),) * 2  # type: ignore[union-attr]
    assert re.search(rb"CapEff:\t0+\n", output)


async def test_two_runs_cannot_reach_each_other(executor: Executor) -> None:
    output = bytearray()
    other = asyncio.create_task(
        run_process(
            (binary("sh"), "-c", "echo secret > file; pwd; echo $$; exec sleep 60"),
            ProcessLimits(60),
            output.extend,
            executor=executor,
            sandbox=SHELL,
        )
    )
    while output.count(b"\n") < 2:
        await asyncio.sleep(0.01)
    folder, pid = output.decode().split()
    tried = await attack(OTHER_RUN, folder, pid, executor=executor)
    shared = executor.name == "nobody-raw"
    # If both runs have their own PID namespace, that PID belongs to another process or to none.
    assert {what for what, how in tried.items() if how == "done"} - (set() if shared else {"kill"}) == set()
    other.cancel()
    with pytest.raises(asyncio.CancelledError):
        await other
    assert idle(executor)


async def test_a_program_cannot_connect_to_an_abstract_socket_of_the_server(executor: Executor) -> None:
    name = f"mcp-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + name)
        listener.listen()
        code = 'use Socket; my $s; try "socket", socket($s, AF_UNIX, SOCK_STREAM, 0) && '
        code += f'connect($s, pack("Sa*", 1, "\\0{name}"))'
        assert await attack(code, executor=executor) == {"socket": "97"}  # EAFNOSUPPORT


async def test_nmap_cannot_write_files(executor: Executor) -> None:
    with public_folder() as folder:
        folder.chmod(0o777)
        for flag in ("-oN", "-oG", "-oS", "-oA"):
            ended, _ = await nmap(executor, flag, f"{folder}/x")
            assert ended.returncode == 1
            assert b"ermission denied" in ended.stderr
        assert list(folder.iterdir()) == []


async def test_nmap_cannot_read_other_files_or_run_other_scripts(executor: Executor) -> None:
    with public_folder() as folder:
        script = folder / "x.nse"
        script.write_text('categories={"safe"} prerule=function() return true end action=function() return "RAN" end')
        targets = folder / "targets"
        targets.write_text("127.0.0.2\n")
        (folder / "nmap-services").write_text("made-up 1/tcp 0.9\n")
        ordinary, _ = await nmap(executor)
        assert ordinary.returncode == 0
        for words in (
            ("-iL", str(targets)),
            ("-iL", "/etc/shadow"),
            ("--excludefile", str(targets)),
            ("--script", str(script)),
            ("--resume", str(targets)),
        ):
            ended, output = await nmap(executor, *words)
            assert b"RAN" not in output
            assert b"127.0.0.2" not in output
            assert ended.returncode != 0 or b"ermission denied" in ended.stderr, words
        _, output = await nmap(executor, "--datadir", str(folder), "--servicedb", str(folder / "nmap-services"))
        assert b"made-up" not in output


async def test_nmap_can_read_its_data_and_scripts(executor: Executor) -> None:
    ended, output = await nmap(executor, "--datadir", "/usr/share/nmap", "-sV", "--script", "banner,ssl-cert")
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b'name="tcpmux"' in output


BOMB = """
my ($made, $space) = (0, "\\0" x 16); syscall(97, 6, $space); my $limit = unpack("Q", $space);
while (1) {
  my $pid = fork(); if (!defined $pid) { print "$made $limit"; exit } $made++; if (!$pid) { sleep 60; exit }
}
"""


@pytest.mark.parametrize("kind", ["nobody", "nobody-raw"])
async def test_a_program_cannot_exceed_the_limit_of_processes(kind: str) -> None:
    output = bytearray()
    argv = (binary("perl"), "-e", BOMB)
    with processes.executor(kind) as executor:
        ended = await run_process(argv, ProcessLimits(30), output.extend, executor=executor, sandbox=Sandbox())
        assert idle(executor)
    assert ended.returncode == 0, ended.stderr
    made, limit = map(int, output.split())
    # The limit is above the tasks of the whole host, but only tasks of this user count against it.
    assert MORE_TASKS - 50 < made < limit < 100_000


FORKING = {
    "chain": "while (1) { exit if fork(); setpgrp }",  # each process leaves an orphan and ends
    "many": "for (1..200) { unless (fork()) { setpgrp; fork(); sleep 60; exit } } sleep 60",
}


@pytest.mark.parametrize("how", FORKING)
async def test_a_program_that_forks_all_the_time_is_ended(executor: Executor, how: str) -> None:
    argv = (binary("perl"), "-e", FORKING[how])
    ended = await run_process(argv, ProcessLimits(1), lambda _: None, executor=executor, sandbox=Sandbox())
    assert idle(executor)
    assert ended.seconds < SOON
