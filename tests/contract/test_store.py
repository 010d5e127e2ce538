"""The contract of a store, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.event import listen, remove

from mcp_server.errors import ArgumentError, ConfigError, NotFoundError, PlatformError
from mcp_server.model.host import Host
from mcp_server.model.run import Actor, Coverage, Outcome, Raw
from mcp_server.store import open_store
from mcp_server.store.sql import SqlStore
from tests.support.postgres import PostgresServer, running_postgres
from tests.support.store_facts import ended, full_host, full_run, make_host, make_run

OpenAnother = Callable[[], SqlStore]


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def another(request: pytest.FixtureRequest, tmp_path: Path) -> OpenAnother:
    """Return a function that makes stores with the same database and state folder."""
    url = None
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").new_database()

    def make() -> SqlStore:
        store = open_store(url, tmp_path / "state", pool_size=4)
        assert isinstance(store, SqlStore)
        return store

    return make


@pytest.fixture
async def store(another: OpenAnother) -> AsyncIterator[SqlStore]:
    opened = another()
    assert len(await opened.open()) == 0
    yield opened
    await opened.close()


async def test_a_run_is_read_back_as_it_was_written(store: SqlStore) -> None:
    begun = make_run("r1")
    await store.begin(begun)
    assert await store.get_run("r1") == begun
    done = replace(full_run("r1"), started=begun.started)
    await store.finish(done)
    assert await store.get_run("r1") == done


async def test_a_run_without_coverage_or_raw_output_is_read_back_as_it_was_written(store: SqlStore) -> None:
    run = make_run("r1", coverage=None)
    await store.begin(run)
    done = ended(run)
    await store.finish(done)
    assert await store.get_run("r1") == done


async def test_finishing_again_replaces_coverage(store: SqlStore) -> None:
    run = make_run("r1")
    await store.begin(run)
    await store.finish(replace(full_run("r1"), started=run.started))
    coverage = Coverage(("10.0.0.1",), 1, looked_at=1, up=1, down=0, not_looked_at_count=0, complete=True)
    again = ended(run, coverage=coverage)
    await store.finish(again)
    assert (await store.get_run("r1")).coverage == again.coverage


async def test_a_run_id_may_be_any_text(store: SqlStore) -> None:
    run_id = "../ü '\"; DROP TABLE runs --"
    await store.begin(make_run(run_id))
    assert (await store.get_run(run_id)).id == run_id


async def test_every_method_refuses_an_unknown_run(store: SqlStore) -> None:
    for call in (
        store.get_run("nope"),
        store.hosts("nope"),
        store.finish(ended(make_run("nope"))),
        store.add_hosts(make_run("nope"), [make_host("10.0.0.1")]),
    ):
        with pytest.raises(NotFoundError) as caught:
            await call
        assert caught.value.code == "unknown_run"
        assert "nope" in caught.value.message


async def test_a_run_may_begin_twice_in_one_process_but_not_in_another(store: SqlStore, another: OpenAnother) -> None:
    run = make_run("r1")
    await store.begin(run)
    await store.begin(run)
    assert (await store.list_runs()).total == 1
    other = another()
    await other.open()
    with pytest.raises(ArgumentError, match="already a run 'r1'"):
        await other.begin(run)
    await other.close()


async def test_a_run_begins_as_running_and_ends_with_another_outcome(store: SqlStore) -> None:
    with pytest.raises(ArgumentError, match="completed"):
        await store.begin(ended(make_run("r1")))
    await store.begin(make_run("r1"))
    with pytest.raises(ArgumentError, match="running"):
        await store.finish(make_run("r1"))


async def test_text_that_a_database_refuses_is_escaped(store: SqlStore) -> None:
    run = make_run("r1", parameters={"target": "\ud800\0"})
    await store.begin(run)
    await store.finish(ended(run, from_target={"stderr": "nul \0 and \udc80"}, metadata={"odd": "\0\udc80"}))
    kept = await store.get_run("r1")
    assert kept.stderr == "nul \0 and \\udc80"
    assert kept.metadata == {"odd": "\0\\udc80"}
    assert kept.parameters == {"target": "\\ud800\0"}


async def test_the_size_of_a_large_ipv6_network_is_exact(store: SqlStore) -> None:
    await store.begin(make_run("r1", coverage=Coverage.nothing_yet(("fd00::/48",), 1 << 80)))
    coverage = (await store.get_run("r1")).coverage
    assert coverage is not None
    assert coverage.planned == coverage.not_looked_at_count == 1 << 80


async def test_hosts_are_read_back_as_they_were_written_ordered_by_address(store: SqlStore) -> None:
    run = make_run("r1")
    await store.begin(run)
    ordered = [full_host("9.255.0.1"), make_host("10.0.0.2"), Host("10.0.0.10", "down"), full_host("fd00::1")]
    await store.add_hosts(run, ordered[::-1])
    page = await store.hosts("r1")
    assert list(page.items) == ordered
    assert (page.total, page.next_cursor) == (4, None)


async def test_the_same_fact_about_an_address_is_kept_once(store: SqlStore) -> None:
    run = make_run("r1")
    await store.begin(run)
    for host in (make_host("10.0.0.1"), make_host("10.0.0.1"), full_host("10.0.0.1")):
        await store.add_hosts(run, [host])
    await store.add_hosts(run, [])
    assert (await store.hosts("r1")).total == 2


async def test_a_batch_with_a_wrong_address_is_refused_as_a_whole(store: SqlStore) -> None:
    run = make_run("r1")
    await store.begin(run)
    for bad in ("10.0.0.256", "010.0.0.1", "host", "", "fe80::1%eth0", "10.0.0.1\0"):
        with pytest.raises(ArgumentError, match="is not an IP address"):
            await store.add_hosts(run, [make_host("10.0.0.1"), make_host(bad)])
    assert (await store.hosts("r1")).total == 0


async def test_pages_of_hosts_neither_repeat_nor_miss_a_host_while_more_arrive(store: SqlStore) -> None:
    run = make_run("r1")
    await store.begin(run)
    await store.add_hosts(run, [make_host(f"10.0.0.{n}") for n in range(0, 250, 2)])
    seen: list[str] = []
    cursor = None
    for _ in range(100):
        page = await store.hosts("r1", limit=10, cursor=cursor)
        seen += [host.address for host in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
        await store.add_hosts(run, [make_host("10.0.0.1"), make_host("10.0.0.251")])
    assert seen == [f"10.0.0.{n}" for n in range(0, 250, 2)] + ["10.0.0.251"]


async def test_pages_of_runs_are_newest_first_and_do_not_shift(store: SqlStore) -> None:
    for number in range(7):
        # Pages follow the order in which runs began, even if the clock goes back.
        await store.begin(make_run(f"r{number}", started=datetime(2025, 1, 20 - number, tzinfo=UTC)))
    first = await store.list_runs(limit=3)
    await store.begin(make_run("late"))
    second = await store.list_runs(limit=3, cursor=first.next_cursor)
    third = await store.list_runs(limit=3, cursor=second.next_cursor)
    assert [run.id for page in (first, second, third) for run in page.items] == [f"r{n}" for n in range(6, -1, -1)]
    assert (first.total, second.total, third.next_cursor) == (7, 8, None)


async def test_runs_are_filtered_by_tool_and_outcome(store: SqlStore) -> None:
    for number, tool in enumerate(["nmap", "dig", "nmap"]):
        run = make_run(f"r{number}", tool=tool)
        await store.begin(run)
        if number:
            await store.finish(ended(run))
    assert [run.id for run in (await store.list_runs(tool="nmap")).items] == ["r2", "r0"]
    page = await store.list_runs(tool="nmap", outcome=Outcome.COMPLETED)
    assert ([run.id for run in page.items], page.total) == (["r2"], 1)
    assert (await store.list_runs(outcome=Outcome.CANCELLED)).total == 0
    assert (await store.list_runs(tool="masscan")).items == ()


@pytest.mark.parametrize("limit", [0, -1, 1001, True, "5", 1.0])
async def test_a_limit_that_is_not_from_1_to_1000_is_refused(store: SqlStore, limit: Any) -> None:
    for call in (store.list_runs(limit=limit), store.hosts("r1", limit=limit)):
        with pytest.raises(ArgumentError, match="limit") as caught:
            await call
        assert caught.value.code == "invalid_arguments"


async def test_a_cursor_of_another_list_is_refused(store: SqlStore) -> None:
    for run_id in ("r1", "r2"):
        run = make_run(run_id)
        await store.begin(run)
        await store.add_hosts(run, [make_host("10.0.0.1"), make_host("10.0.0.2")])
    runs = (await store.list_runs(limit=1)).next_cursor
    hosts = (await store.hosts("r1", limit=1)).next_cursor
    assert runs is not None
    assert hosts is not None
    wrong = ["", "x", "é", "A" * 100_000, "bnVsbA", "WyJydW5zIl0", "WyJydW5zIiwtMV0", "WyJydW5zIiwxZTMwXQ", hosts[:-2]]
    for cursor in [*wrong, hosts]:
        with pytest.raises(ArgumentError, match="cursor"):
            await store.list_runs(cursor=cursor)
    for cursor in [*wrong, runs]:
        with pytest.raises(ArgumentError, match="cursor"):
            await store.hosts("r1", cursor=cursor)
    with pytest.raises(ArgumentError, match="cursor"):
        await store.hosts("r2", cursor=hosts)


async def test_a_run_whose_store_was_closed_becomes_interrupted(store: SqlStore, another: OpenAnother) -> None:
    gone = another()
    await gone.open()
    run = make_run("r1")
    await gone.begin(run)
    hosts = [make_host("10.0.0.1"), make_host("10.0.0.2"), Host("10.0.0.3", "down")]
    await gone.add_hosts(run, hosts)
    await gone.close()
    await store.begin(make_run("mine"))
    later = another()
    assert len(await later.open()) == 1
    found = await later.get_run("r1")
    assert (found.outcome, found.ended) == (Outcome.INTERRUPTED, None)
    assert found.counts == {"hosts_up": 2, "open_ports": 2}
    assert run.coverage is not None
    assert found.coverage == replace(run.coverage, looked_at=3, up=2, down=1, not_looked_at_count=1)
    assert found.error_message
    assert (await later.hosts("r1")).items == tuple(hosts)
    assert (await later.get_run("mine")).outcome is Outcome.RUNNING
    await later.close()
    assert await count_interrupted(another) == 0


async def count_interrupted(another: OpenAnother) -> int:
    """Open a store as at a start; return the number of runs that it marks as interrupted."""
    once = another()
    count = len(await once.open())
    await once.close()
    return count


async def test_a_finished_run_is_never_interrupted(another: OpenAnother) -> None:
    first = another()
    await first.open()
    run = make_run("r1")
    await first.begin(run)
    await first.finish(ended(run))
    await first.close()
    assert await count_interrupted(another) == 0


async def test_many_runs_write_at_once_in_one_process(store: SqlStore) -> None:
    async def one(number: int) -> None:
        run = make_run(f"r{number}")
        await store.begin(run)
        await asyncio.gather(*(store.add_hosts(run, [make_host(f"10.0.{number}.{n}")]) for n in range(10)))
        await store.finish(ended(run))
        assert (await store.hosts(run.id)).total == 10

    await asyncio.gather(*(one(number) for number in range(20)))
    assert (await store.list_runs(outcome=Outcome.COMPLETED)).total == 20


async def test_a_cancelled_write_is_completed(store: SqlStore) -> None:
    run = make_run("r1")
    await store.begin(run)
    for number in range(30):
        write = asyncio.ensure_future(store.add_hosts(run, [make_host(f"10.0.{number}.{n}") for n in range(20)]))
        await asyncio.sleep(number * 0.0002)
        write.cancel()
        with suppress(asyncio.CancelledError):
            await write
    await store.finish(ended(run))
    # A batch is stored as a whole or not at all.
    assert (await store.hosts("r1")).total % 20 == 0


async def test_a_cancelled_read_leaves_the_store_working(store: SqlStore) -> None:
    await store.begin(make_run("r1"))
    for number in range(30):
        read = asyncio.ensure_future(store.get_run("r1"))
        await asyncio.sleep(number * 0.0002)
        read.cancel()
        with suppress(asyncio.CancelledError):
            await read
    assert (await store.get_run("r1")).id == "r1"


async def test_a_closed_store_refuses_every_method(another: OpenAnother) -> None:
    store = another()
    run = make_run("r1")
    for _ in range(2):
        for call in (
            store.begin(run),
            store.add_hosts(run, [make_host("10.0.0.1")]),
            store.finish(ended(run)),
            store.get_run("r1"),
            store.list_runs(),
            store.hosts("r1"),
        ):
            with pytest.raises(PlatformError, match="closed") as caught:
                await call
            assert caught.value.code == "store_unavailable"
        await store.open()
        assert len(await store.open()) == 0
        await store.close()
        await store.close()


async def test_two_runs_may_have_the_same_raw_output(store: SqlStore) -> None:
    raw = Raw("cd" * 32, 10, 5, truncated=False)
    for run_id in ("r1", "r2"):
        run = make_run(run_id)
        await store.begin(run)
        await store.finish(ended(run, raw=replace(raw, truncated=run_id == "r2")))
    assert [(await store.get_run(run_id)).raw for run_id in ("r1", "r2")] == [raw, replace(raw, truncated=True)]


@pytest.mark.parametrize(
    "url", ["mysql://u:secret@h/d", "sqlite://", "sqlite:///:memory:", "nonsense", "postgres", "sqlite", "://"]
)
def test_other_databases_are_refused_without_showing_a_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"database\.url") as caught:
        open_store(url, tmp_path)
    assert "secret" not in str(caught.value.as_dict())


def test_the_location_shows_no_password(tmp_path: Path) -> None:
    store = open_store("postgres://user:secret@127.0.0.1/db", tmp_path)
    assert isinstance(store, SqlStore)
    assert store.location == "postgresql://user:***@127.0.0.1/db"


async def test_a_caller_over_http_sees_only_its_own_runs(store: SqlStore) -> None:
    actors = [
        Actor("key:a", "http"), Actor("key:b", "rest"), Actor("key:a", "rest"), Actor("key:a", "cli"),
        Actor("token", "http"),
    ]  # fmt: skip
    for number, actor in enumerate(actors):
        await store.begin(make_run(f"r{number}", actor=actor))
        await store.add_hosts(make_run(f"r{number}"), [make_host("10.0.0.1")])
    own = await store.list_runs(caller="key:a")
    assert ([run.id for run in own.items], own.total) == (["r2", "r0"], 2)
    page = await store.list_runs(caller="key:a", limit=1)
    assert [run.id for run in (await store.list_runs(caller="key:a", cursor=page.next_cursor)).items] == ["r0"]
    assert (await store.list_runs(caller="key:nobody")).total == 0
    assert (await store.list_runs(tool="nmap", caller="key:b")).total == 1
    assert (await store.get_run("r0", caller="key:a")).id == "r0"
    assert (await store.hosts("r2", caller="key:a")).total == 1
    cursors = [(await store.list_runs(limit=1, cursor=None, caller=name)).next_cursor for name in (None, "key:a")]
    with pytest.raises(ArgumentError, match="cursor"):
        await store.list_runs(caller="key:a", cursor=cursors[0])
    for foreign in ("r1", "r3", "r4", "unknown"):
        for reading in (store.get_run(foreign, caller="key:a"), store.hosts(foreign, caller="key:a")):
            with pytest.raises(NotFoundError) as refused:
                await reading
            assert (refused.value.code, refused.value.message) == ("unknown_run", f"There is no run '{foreign}'.")


async def test_a_run_of_another_caller_takes_the_same_statements_as_an_unknown_run(store: SqlStore) -> None:
    await store.begin(make_run("r1", actor=Actor("key:b", "rest")))
    asked: list[list[str]] = []

    def note(*event: Any) -> None:
        asked[-1].append(event[2])

    listen(Engine, "before_cursor_execute", note)
    try:
        for run_id in ("r1", "r2"):
            for reading in (store.get_run, store.hosts):
                asked.append([])
                with pytest.raises(NotFoundError):
                    await reading(run_id, caller="key:a")
    finally:
        remove(Engine, "before_cursor_execute", note)
    foreign, unknown = asked[:2], asked[2:]
    assert foreign == unknown, "expected the same statements for both runs"
    assert all(len([sql for sql in each if "actor_name" in sql]) == 1 for each in foreign)
