"""A disk that is full or read-only, and a database that is damaged, locked or stopped."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mcp_server.errors import PlatformError
from mcp_server.model.run import Outcome
from mcp_server.store import open_store, sqlite
from mcp_server.store.postgres import PostgresDatabase
from mcp_server.store.sql import SqlStore
from tests.support.postgres import PostgresServer, running_postgres
from tests.support.store_facts import ended, make_host, make_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


def new_store(state: Path, url: str | None = None, **pool: Any) -> SqlStore:
    store = open_store(url, state, **pool)
    assert isinstance(store, SqlStore)
    return store


def on_own_mount(mount: str, mode: str, state: Path) -> dict[str, Any]:
    """Run a child in its own mount namespace, where ``mount`` sets up the state folder; return its messages."""
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    child = [sys.executable, "-m", "tests.support.store_child", mode, str(state), "-"]
    ended_child = subprocess.run(
        [*unshare, "sh", "-c", f'{mount} && exec "$@"', "sh", *child],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert ended_child.returncode == 0, ended_child.stderr
    facts: dict[str, Any] = {}
    for line in ended_child.stdout.splitlines():
        facts |= json.loads(line)
    return facts


def test_a_run_continues_after_a_full_disk_has_space_again(tmp_path: Path) -> None:
    facts = on_own_mount(f"mount -t tmpfs -o size=8m none {tmp_path}", "starve", tmp_path)
    assert facts["add"] == facts["other"] == facts["spool"] == "disk_full"
    assert facts["kept"] == 1
    assert (facts["hosts"], facts["outcome"], facts["truncated"]) == (5001, "completed", True)
    assert facts["raw"] == "before"


def test_a_store_on_a_full_disk_is_refused(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=16k none {tmp_path} && head -c 1m /dev/zero >{tmp_path}/filler 2>/dev/null; true"
    assert on_own_mount(mount, "refuse", tmp_path)["code"] == "disk_full"


def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    facts = on_own_mount(f"mount -t tmpfs -o ro none {tmp_path}", "refuse", tmp_path)
    assert facts["code"] == facts["spool"] == "store_unavailable"
    assert "Read-only file system" in facts["message"]
    assert str(tmp_path) in facts["message"]


async def test_a_state_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    store = new_store(tmp_path / "state")
    with pytest.raises(PlatformError, match="state") as caught:
        await store.open()
    assert caught.value.code == "store_unavailable"


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough to be read as one" * 100, b"SQLite format 3\0"]
)
async def test_a_file_that_is_not_a_database_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "store.db").write_bytes(content)
    store = new_store(tmp_path)
    with pytest.raises(PlatformError, match="damaged or not a database") as caught:
        await store.open()
    assert caught.value.code == "store_unavailable"
    assert (tmp_path / "store.db").read_bytes() == content
    (tmp_path / "store.db").unlink()
    assert len(await store.open()) == 0
    await store.close()


async def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    await store.open()
    run = make_run("r1")
    await store.begin(run)
    await store.add_hosts(run, [make_host(f"10.0.{n // 250}.{n % 250}") for n in range(2000)])
    await store.finish(ended(run))
    await store.close()
    path = tmp_path / "store.db"
    with path.open("r+b") as file:
        file.seek(4096 * 8)
        file.write(b"\xa5" * (path.stat().st_size - 4096 * 8))

    async def use() -> None:
        await store.open()
        await store.hosts("r1", limit=1000)

    with pytest.raises(PlatformError, match="damaged") as caught:
        await use()
    assert caught.value.code == "store_unavailable"
    await store.close()


async def test_a_write_fails_while_another_program_locks_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.2)
    store = new_store(tmp_path)
    await store.open()
    run = make_run("r1")
    await store.begin(run)
    with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(PlatformError, match="locked by another process") as caught:
            await store.add_hosts(run, [make_host("10.0.0.1")])
        assert caught.value.code == "store_unavailable"
        assert (await store.get_run("r1")).outcome is Outcome.RUNNING
        other.execute("ROLLBACK")
    await store.add_hosts(run, [make_host("10.0.0.1")])
    await store.finish(ended(run))
    assert (await store.hosts("r1")).total == 1
    await store.close()


async def test_other_users_cannot_read_the_database(tmp_path: Path) -> None:
    state = tmp_path / "state"
    store = new_store(state)
    await store.open()
    await store.begin(make_run("r1"))
    assert {path.name for path in state.iterdir()} == {"owners", "store.db", "store.db-wal", "store.db-shm"}
    for path in (state, *state.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    await store.close()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
async def test_calls_fail_while_postgres_is_stopped_and_work_when_it_runs_again(
    tmp_path: Path, postgres: PostgresServer, how: signal.Signals
) -> None:
    store = new_store(tmp_path, postgres.new_database(), pool_timeout=5)
    await store.open()
    run = make_run("r1")
    await store.begin(run)
    await store.add_hosts(run, [make_host("10.0.0.1")])
    postgres.stop(how)
    hosts = [make_host(f"10.0.0.{n}") for n in range(2, 20)]
    for call in (store.add_hosts(run, hosts), store.get_run("r1"), store.begin(make_run("r2"))):
        with pytest.raises(PlatformError) as caught:
            await call
        assert caught.value.code == "store_unavailable"
        assert caught.value.retryable
    postgres.start()
    # The same calls work again on the same store, and nothing is lost or stored twice.
    await store.add_hosts(run, hosts)
    await store.begin(make_run("r2"))
    await store.finish(ended(run))
    assert (await store.hosts("r1")).total == 19
    assert (await store.get_run("r1")).outcome is Outcome.COMPLETED
    await store.close()


async def test_a_restart_of_postgres_between_two_calls_does_not_fail_them(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    store = new_store(tmp_path, postgres.new_database())
    await store.open()
    run = make_run("r1")
    await store.begin(run)
    postgres.stop()
    postgres.start()
    await store.add_hosts(run, [make_host("10.0.0.1")])
    postgres.stop()
    postgres.start()
    assert (await store.hosts("r1")).total == 1
    await store.close()


async def test_a_wrong_postgres_url_is_an_error_without_the_password(tmp_path: Path, postgres: PostgresServer) -> None:
    for url in (
        "postgresql://user:secret@127.0.0.1:1/test",
        postgres.url("no_such_database"),
        postgres.url("postgres").replace("tester", "nobody:secret"),
    ):
        store = new_store(tmp_path, url)
        with pytest.raises(PlatformError) as caught:
            await store.open()
        assert caught.value.code == "store_unavailable"
        assert "127.0.0.1" in caught.value.message
        assert "secret" not in str(caught.value.as_dict())


async def test_an_exhausted_pool_is_an_error(tmp_path: Path, postgres: PostgresServer) -> None:
    store = new_store(tmp_path, postgres.new_database(), pool_size=1, max_overflow=0, pool_timeout=0.2)
    await store.open()
    assert isinstance(store._database, PostgresDatabase)
    engine = store._database._opened()
    async with engine.connect():
        with pytest.raises(PlatformError, match="became free in time") as caught:
            await store.list_runs()
        assert caught.value.code == "store_unavailable"
    assert (await store.list_runs()).total == 0
    await store.close()
