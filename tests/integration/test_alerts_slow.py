"""Alerts whose causes take a while, in a real Prometheus that watches a real server: each fires and clears.

As in `test_alerts_live`, with a window of 12 s. All causes happen at the same time, because one of them is a call that
waits for half a minute.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from tests.support.namespaces import MountNamespace, mount_namespace
from tests.support.watched import Watched, prepare

WINDOW_SEC = 12
RESTARTS_SEC = 30
"""Window in which three restarts must fit, also on a machine that is busy with other tests."""
SLOW_SEC = 1.6
DISK = 24 << 20
HOLD = """
import sqlite3, sys, time
sqlite3.connect(sys.argv[1], isolation_level=None).execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(30)
"""
TOGETHER = {
    "McpAuditSlow",
    "McpBreakerFlapping",
    "McpDiskFilling",
    "McpDiskLow",
    "McpInternalErrors",
    "McpMemoryGrowth",
    "McpQueueWait",
    "McpStoreSlow",
}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Watched, MountNamespace]]:
    """Yield a server whose state folder is a small disk, with its Prometheus."""
    made = prepare(tmp_path_factory.mktemp("slow"))
    made.state.mkdir(mode=0o700)
    with ExitStack() as running:
        script = f'mount -t tmpfs -o size={DISK},mode=700 tmpfs "$1"'
        inside = running.enter_context(mount_namespace(script, str(made.state)))
        for folder in (inside.see(made.state), made.state):  # the test reads the token outside of the namespace
            (folder / "token").touch(mode=0o600)
            (folder / "token").write_text("t" * 43)
        running.enter_context(made.serving(prefix=inside.prefix))
        running.enter_context(made.watching(window_sec=WINDOW_SEC))
        assert made.prometheus.until_some("up == 1 and mcp_state_disk_size_bytes", 15)
        yield made, inside


def fill(disk: Path, share: float) -> None:
    """Fill the disk until ``share`` of it is free."""
    found = os.statvfs(disk)
    (disk / "filler").touch()
    with (disk / "filler").open("ab") as file:
        file.write(bytes(int((found.f_bavail - share * found.f_blocks) * found.f_frsize)))


def held_up(call: Callable[[], int], held: ExitStack) -> int:
    """Return the status of a call during which ``held`` is not closed for `SLOW_SEC`."""
    with held, ThreadPoolExecutor(1) as background:
        answer = background.submit(call)
        time.sleep(SLOW_SEC)
        held.close()
        return answer.result()


def test_slow_causes_raise_alerts(watched: tuple[Watched, MountNamespace]) -> None:
    made, inside = watched
    found, disk = made.prometheus, inside.see(made.state)
    made.configure(admission={"max_waiting": 4}, circuit_breaker={"failure_threshold": 1})
    assert found.until_some('mcp_config_reloads_total{result="applied"} > 0', 15)

    def polite() -> int:
        return made.call("polite").status_code

    with ThreadPoolExecutor(2) as background, found.firing_meanwhile(*TOGETHER, seconds=90):
        # The second call waits until the first reaches its time limit, which is longer than the 30 s of the alert.
        first = background.submit(made.call, "single", "sleep", timeout_sec=32, target="127.0.0.2")
        assert found.until_some('mcp_tool_active{tool="single"} == 1')
        second = background.submit(made.call, "single", target="127.0.0.2")
        fill(disk, 0.4)
        assert made.call("broken").status_code == 500
        assert made.call("greedy").status_code == 200
        with ExitStack() as locked:
            # Inside the namespace, because SQLite resolves links in the path.
            words = (*inside.prefix, sys.executable, "-c", HOLD, str(made.state / "store.db"))
            holder = locked.enter_context(Popen(words, stdout=PIPE))
            locked.callback(holder.kill)
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            assert held_up(polite, locked) == 200, "the call must wait for a busy store"
        found.until_fire("McpStoreSlow", operation="write")
        with ExitStack() as locked:
            folder = os.open(disk, os.O_RDONLY | os.O_DIRECTORY)
            locked.callback(os.close, folder)
            fcntl.flock(folder, fcntl.LOCK_EX)  # as another server does when it writes a record to this log
            assert held_up(polite, locked) == 200
        found.until_fire("McpAuditSlow")
        for _ in range(7):
            assert made.call("flaky", "flaky").status_code == 502
            made.post("/admin/breakers/flaky/reset")
        fill(disk, 0.05)
        assert (first.result().status_code, second.result().status_code) == (504, 200)
    (disk / "filler").unlink()
    found.until_clear(*TOGETHER, seconds=60)


def test_a_server_that_is_restarted_repeatedly_raises_an_alert(watched: tuple[Watched, MountNamespace]) -> None:
    made, inside = watched
    with ExitStack() as running, made.watching(window_sec=RESTARTS_SEC):
        found = made.prometheus
        for _ in range(3):
            (before,) = found.until_some("process_start_time_seconds")
            made.process.send_signal(signal.SIGTERM)
            assert made.process.wait(15) == 0
            running.enter_context(made.serving(prefix=inside.prefix))
            assert found.until_some(f"process_start_time_seconds > {before['value'][1]}", 15), (
                "Prometheus did not see the new process"
            )
        found.until_fire("McpServerRestarts")
        found.until_clear("McpServerRestarts", seconds=60)
