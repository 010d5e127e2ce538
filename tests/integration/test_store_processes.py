"""Several real processes with one store: killed, recovering, and writing at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcp_server.model.run import Outcome
from mcp_server.store import open_store
from mcp_server.store.sql import SqlStore
from tests.support.postgres import PostgresServer, running_postgres
from tests.support.store_facts import ended, make_host, make_run

ROOT = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 60


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


class Machine:
    """One state folder and database, and the processes that use them."""

    def __init__(self, state: Path, url: str | None) -> None:
        self.state = state
        self.url = url
        self.children: list[subprocess.Popen[str]] = []

    def start(self, mode: str, *arguments: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "tests.support.store_child", mode, str(self.state), self.url or "-", *arguments]
        child = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.children.append(child)
        return child

    def store(self) -> SqlStore:
        store = open_store(self.url, self.state)
        assert isinstance(store, SqlStore)
        return store


def next_message(child: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the next message of a child."""
    assert child.stdout is not None
    found: dict[str, Any] = json.loads(child.stdout.readline())
    return found


def last_message(child: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a child to end without an error, and return its last message."""
    output, _ = child.communicate(timeout=WAIT_SECONDS)
    assert child.returncode == 0
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    url = request.getfixturevalue("postgres").new_database() if request.param == "postgresql" else None
    made = Machine(tmp_path / "state", url)
    yield made
    for child in made.children:
        child.kill()
        child.communicate()


async def test_the_run_of_a_killed_process_becomes_interrupted_and_keeps_its_hosts(machine: Machine) -> None:
    child = machine.start("hold", "r1", "50")
    assert next_message(child) == {"ready": True}
    child.kill()
    child.wait()
    store = machine.store()
    assert len(await store.open()) == 1
    run = await store.get_run("r1")
    assert (run.outcome, run.counts) == (Outcome.INTERRUPTED, {"hosts_up": 50, "open_ports": 50})
    assert run.coverage is not None
    assert not run.coverage.complete
    assert (await store.hosts("r1")).total == 50
    assert run.raw is not None
    assert run.raw.truncated
    assert await store.read_raw(run.raw, 0, 10_000) == b"<host/>" * 100
    await store.close()
    assert not list((machine.state / "raw" / "spool").iterdir())
    assert [path.name for path in (machine.state / "owners").iterdir()] == ["folder"]


async def test_runs_of_a_process_that_is_alive_are_not_touched(machine: Machine) -> None:
    server = machine.start("hold", "r1", "5")
    assert next_message(server) == {"ready": True}
    for _ in range(2):
        assert last_message(machine.start("once"))["interrupted"] == 0
    store = machine.store()
    assert len(await store.open()) == 0
    assert (await store.get_run("r1")).outcome is Outcome.RUNNING
    assert (await store.hosts("r1")).total == 5
    assert list((machine.state / "raw" / "spool").iterdir())
    await store.close()


async def test_runs_of_another_state_folder_are_not_touched(machine: Machine, tmp_path: Path) -> None:
    child = machine.start("hold", "r1", "5")
    assert next_message(child) == {"ready": True}
    child.kill()
    child.wait()
    url = machine.url or f"sqlite:///{machine.state / 'store.db'}"
    other_store = open_store(url, tmp_path / "elsewhere")
    assert len(await other_store.open()) == 0
    assert (await other_store.get_run("r1")).outcome is Outcome.RUNNING
    await other_store.close()
    assert last_message(machine.start("once"))["interrupted"] == 1


def test_a_run_is_recovered_by_one_process_only(machine: Machine) -> None:
    child = machine.start("hold", "r1", "5")
    assert next_message(child) == {"ready": True}
    child.kill()
    child.wait()
    finders = [machine.start("once") for _ in range(3)]
    assert sorted(last_message(finder)["interrupted"] for finder in finders) == [0, 0, 1]


async def test_unreadable_raw_output_does_not_prevent_a_start(machine: Machine) -> None:
    store = machine.store()
    await store.open()
    await store.begin(make_run("r1"))
    await store.close()
    (machine.state / "raw" / "spool" / "r1.gz").mkdir(parents=True)
    assert len(await store.open()) == 1
    run = await store.get_run("r1")
    assert (run.outcome, run.raw) == (Outcome.INTERRUPTED, None)
    await store.close()


def test_processes_that_start_together_create_the_schema_once(machine: Machine) -> None:
    starters = [machine.start("once") for _ in range(4)]
    assert [last_message(starter)["interrupted"] for starter in starters] == [0] * 4
    assert last_message(machine.start("once")) == {"interrupted": 0, "alembic": False}


async def test_two_processes_write_at_once_without_loss(machine: Machine) -> None:
    workers = [machine.start("work", prefix, "10") for prefix in ("a", "b")]
    for worker in workers:
        assert last_message(worker) == {"done": True}
    store = machine.store()
    assert len(await store.open()) == 0
    page = await store.list_runs(limit=100)
    assert (page.total, {run.outcome for run in page.items}) == (20, {Outcome.COMPLETED})
    for run in page.items:
        assert (await store.hosts(run.id)).total == 100
    await store.close()


async def test_a_process_that_does_not_close_its_store_still_ends(machine: Machine) -> None:
    assert last_message(machine.start("forget")) == {"ready": True}
    store = machine.store()
    assert len(await store.open()) == 1
    await store.close()


async def test_a_run_continues_while_another_process_recovers(machine: Machine) -> None:
    store = machine.store()
    await store.open()
    run = make_run("mine")
    await store.begin(run)
    child = machine.start("hold", "theirs", "5")
    assert next_message(child) == {"ready": True}
    child.kill()
    child.wait()
    await store.add_hosts(run, [make_host("10.0.0.1")])
    assert last_message(machine.start("once"))["interrupted"] == 1
    await store.finish(ended(run))
    assert (await store.get_run("mine")).outcome is Outcome.COMPLETED
    assert (await store.get_run("theirs")).outcome is Outcome.INTERRUPTED
    await store.close()
