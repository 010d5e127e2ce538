"""Runs attack programs with no server and no check in their way: bare, or with nothing but the guard around them.

As a program, inside the namespace that plays the host: ``cell.py bare|guarded``. Each line of standard input is
``[seconds, [argv, ...]]`` as JSON; the commands are run at the same time, each for that long at most, and answered
with a line that is a `Done`. Guarded, they run as an unprivileged user with CAP_NET_RAW in a namespace that is made,
ruled, proved and opened by the product's own functions in the guard helper's order.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import IO

from tests.containment import canaries, ground
from tests.containment.drive import use_resolver
from tests.lab.network.handle import Lab
from tests.lab.network.programs import find, uncovered

_PARALLEL = 64
_NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Done:
    """Return codes (None: stopped when its time was up) and standard outputs, and what the guard dropped and passed."""

    codes: list[int | None]
    outputs: list[str]
    drops: dict[str, int] = field(default_factory=dict)
    passed: int = 0

    @property
    def dropped(self) -> int:
        """Packets that the guard dropped, over all rules."""
        return sum(self.drops.values())


class Cell:
    """A cell that is up, seen from the test."""

    def __init__(self, stdin: IO[str], stdout: IO[str]) -> None:
        self._stdin = stdin
        self._stdout = stdout

    def run(self, commands: Sequence[Sequence[str]], *, seconds: float) -> Done:
        """Run every command."""
        self._stdin.write(json.dumps([seconds, commands]) + "\n")
        self._stdin.flush()
        return Done(**json.loads(self._stdout.readline()))


@contextmanager
def cell(lab: Lab, kind: str) -> Iterator[Cell]:
    """A cell, bare or guarded, for as long as the block runs."""
    argv = lab.exec_argv("scan", [sys.executable, "-m", "tests.containment.cell", kind])
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=uncovered(), text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield Cell(process.stdin, process.stdout)
    finally:
        with process:
            process.stdin.close()
            try:
                process.wait(20)
            finally:
                process.kill()


def _run(argv: Sequence[str], seconds: float) -> tuple[int | None, str]:
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/tmp",
        env={"PATH": os.defpath, "LC_ALL": "C"},
        text=True,
        errors="replace",
    )
    try:
        output = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return None, process.communicate()[0]
    return process.returncode, output


def _run_all(seconds: float, commands: Sequence[Sequence[str]]) -> Done:
    with ThreadPoolExecutor(_PARALLEL) as pool:
        ends = list(pool.map(lambda argv: _run(argv, seconds), commands))
    return Done([code for code, _ in ends], [output for _, output in ends])


class _Guarded:
    """The namespace as the guard helper makes it, and how to get inside."""

    def __init__(self) -> None:
        from mcp_server.config.sections import GuardConfig
        from mcp_server.netguard.canary import prove
        from mcp_server.netguard.net import Namespace, make_device, make_plan, open_way
        from mcp_server.netguard.nft import Nft
        from mcp_server.netguard.rules import ruleset
        from mcp_server.scope.policy import ScopePolicy

        policy = ScopePolicy.from_file(ground.write_policy("/run/policy.yaml"))
        plan = make_plan(GuardConfig(**ground.guard_settings()), os.getpid())
        self.namespace = Namespace()
        make_device(plan, self.namespace)
        with self.namespace.inside():
            self.nft = Nft()
            self.nft.run(ruleset(policy.guard_sets(), plan.link))
            prove(plan.link, self.nft)
        open_way(plan, self.namespace)
        capabilities = "-all,+net_raw"
        self.prefix = (
            find("nsenter"),
            f"--net={self.namespace.path}",
            "--",
            find("setpriv"),
            f"--reuid={_NOBODY}",
            f"--regid={_NOBODY}",
            "--clear-groups",
            "--no-new-privs",
            f"--inh-caps={capabilities}",
            f"--ambient-caps={capabilities}",
            f"--bounding-set={capabilities}",
            "--",
        )

    def run(self, seconds: float, commands: Sequence[Sequence[str]]) -> Done:
        before = self.nft.read()
        done = _run_all(seconds, [[*self.prefix, *argv] for argv in commands])
        after = self.nft.read()
        drops = {name: count - before.drops[name] for name, count in after.drops.items() if count - before.drops[name]}
        return replace(done, drops=drops, passed=after.passed - before.passed)


def main() -> None:
    """Answer tasks until standard input ends."""
    use_resolver()
    canaries.lay_out()
    guarded = _Guarded() if sys.argv[1] == "guarded" else None
    # The commands run as they come, some of them with root's rights: nothing of this machine may change.
    subprocess.run([find("mount"), "-o", "remount,bind,ro", "/"], check=True)
    print("ready", flush=True)  # noqa: T201 - the pipe to the test
    for line in sys.stdin:
        seconds, commands = json.loads(line)
        done = guarded.run(seconds, commands) if guarded else _run_all(seconds, commands)
        print(json.dumps(asdict(done)), flush=True)  # noqa: T201 - as above


if __name__ == "__main__":
    main()
