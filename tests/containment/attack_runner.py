"""Runs attack programs without a server and without any check of arguments: unguarded, or with only the guard.

This is also a program: ``attack_runner.py bare|guarded``, run in the namespace that represents the host. It reads lines
with ``[seconds, [argv, ...]]`` as JSON from standard input. It runs the commands of a line concurrently, each for at
most that long, and prints an `AttackResult` as JSON. Guarded commands run as an unprivileged user with CAP_NET_RAW, in
a namespace that the product's own functions set up in the same order as the guard helper.
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

from tests.containment import canaries, lab_scope
from tests.containment.calls import use_resolver
from tests.lab.network.handle import Lab
from tests.lab.network.programs import find, uncovered

_PARALLEL = 64
_NOBODY = 65534


@dataclass(frozen=True, slots=True)
class AttackResult:
    """Return codes (None: stopped by the time limit), outputs, and the packets that the guard dropped and passed."""

    codes: list[int | None]
    outputs: list[str]
    drops: dict[str, int] = field(default_factory=dict)
    passed: int = 0

    @property
    def dropped(self) -> int:
        """Packets that the guard dropped, over all rules."""
        return sum(self.drops.values())


class AttackRunner:
    """The test's connection to a running attack runner."""

    def __init__(self, stdin: IO[str], stdout: IO[str]) -> None:
        self._stdin = stdin
        self._stdout = stdout

    def run(self, commands: Sequence[Sequence[str]], *, seconds: float) -> AttackResult:
        """Run all commands concurrently."""
        self._stdin.write(json.dumps([seconds, commands]) + "\n")
        self._stdin.flush()
        return AttackResult(**json.loads(self._stdout.readline()))


@contextmanager
def attack_runner(lab: Lab, kind: str) -> Iterator[AttackRunner]:
    """Run an attack runner for the length of a block: ``bare`` or ``guarded``."""
    argv = lab.exec_argv("scan", [sys.executable, "-m", "tests.containment.attack_runner", kind])
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=uncovered(), text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line == "ready\n", f"expected the attack runner to start, found {line!r}"
        yield AttackRunner(process.stdin, process.stdout)
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


def _run_all(seconds: float, commands: Sequence[Sequence[str]]) -> AttackResult:
    with ThreadPoolExecutor(_PARALLEL) as pool:
        ends = list(pool.map(lambda argv: _run(argv, seconds), commands))
    return AttackResult([code for code, _ in ends], [output for _, output in ends])


class _Guarded:
    """A namespace set up like the guard helper does it, and the command that enters it."""

    def __init__(self) -> None:
        from mcp_server.config.sections import GuardConfig
        from mcp_server.netguard.network import Namespace, connect_device, make_device, make_plan
        from mcp_server.netguard.nft import Nft
        from mcp_server.netguard.ruleset import ruleset
        from mcp_server.netguard.self_test import run_self_test
        from mcp_server.scope.policy import ScopePolicy

        policy = ScopePolicy.from_file(lab_scope.write_policy("/run/policy.yaml"))
        plan = make_plan(GuardConfig(**lab_scope.guard_settings()), os.getpid())
        self.namespace = Namespace()
        make_device(plan, self.namespace)
        with self.namespace.inside():
            self.nft = Nft()
            self.nft.run(ruleset(policy.guard_sets(), plan.link))
            run_self_test(plan.link, self.nft)
        connect_device(plan, self.namespace)
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

    def run(self, seconds: float, commands: Sequence[Sequence[str]]) -> AttackResult:
        before = self.nft.read()
        done = _run_all(seconds, [[*self.prefix, *argv] for argv in commands])
        after = self.nft.read()
        drops = {name: count - before.drops[name] for name, count in after.drops.items() if count - before.drops[name]}
        return replace(done, drops=drops, passed=after.passed - before.passed)


def main() -> None:
    """Run the commands of each line of standard input."""
    use_resolver()
    canaries.lay_out()
    guarded = _Guarded() if sys.argv[1] == "guarded" else None
    # The commands are not checked, and some run as root. The root file system must not change.
    subprocess.run([find("mount"), "-o", "remount,bind,ro", "/"], check=True)
    print("ready", flush=True)  # noqa: T201 - read by the test
    for line in sys.stdin:
        seconds, commands = json.loads(line)
        done = guarded.run(seconds, commands) if guarded else _run_all(seconds, commands)
        print(json.dumps(asdict(done)), flush=True)  # noqa: T201 - as above


if __name__ == "__main__":
    main()
