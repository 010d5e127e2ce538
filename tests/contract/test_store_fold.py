"""The fold of observations into the present state, and the schema under it, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Table, select, text

from mcp_server.errors import PlatformError
from mcp_server.model.host import Host, Port
from mcp_server.store import open_store, schema
from mcp_server.store import projection as project
from mcp_server.store.migrate import alembic_config
from mcp_server.store.revision import REVISION
from mcp_server.store.sql import SqlStore
from tests.support.postgres import PostgresServer, running_postgres
from tests.support.store_facts import NGINX, ended, make_host, make_run


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def another(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], SqlStore]:
    """Makes stores that all share one database and one state folder."""
    url = request.getfixturevalue("postgres").new_database() if request.param == "postgresql" else None

    def make() -> SqlStore:
        store = open_store(url, tmp_path)
        assert isinstance(store, SqlStore)
        return store

    return make


@pytest.fixture
async def store(another: Callable[[], SqlStore]) -> AsyncIterator[SqlStore]:
    opened = another()
    await opened.open()
    yield opened
    await opened.close()


async def rows(store: SqlStore, table: Table) -> list[dict[str, Any]]:
    query = select(table).order_by(*table.primary_key)
    found = await store._database.read(lambda connection: connection.execute(query).mappings().all())
    return [dict(row) for row in found]


async def scan(store: SqlStore, run_id: str, *hosts: Host, vantage: str = "local") -> None:
    run = make_run(run_id, vantage=vantage)
    await store.begin(run)
    await store.add_hosts(run, hosts)
    await store.finish(ended(run))
    await store.settle()


def web(**changes: Any) -> Port:
    return Port("tcp", 80, "open", "syn-ack", replace(NGINX, **changes))


async def test_what_is_seen_again_widens_its_interval(store: SqlStore) -> None:
    await scan(store, "r1", make_host("10.0.0.1"))
    before = [(await rows(store, table))[0] for table in (schema.addresses, schema.endpoints, schema.services)]
    await scan(store, "r2", make_host("10.0.0.1"))
    after = [await rows(store, table) for table in (schema.addresses, schema.endpoints, schema.services)]
    for old, (new,) in zip(before, after, strict=True):
        assert old["first_seen"] == old["last_seen"] == new["first_seen"] < new["last_seen"]
        assert {**new, "last_seen": 0} == {**old, "last_seen": 0}


async def test_a_new_version_is_a_new_service_at_the_same_endpoint(store: SqlStore) -> None:
    await scan(store, "r1", make_host("10.0.0.1", web(version="1.22")))
    await scan(store, "r2", make_host("10.0.0.1", web(version="1.24", conf=7)))
    found = sorted(await rows(store, schema.services), key=lambda row: int(row["last_seen"]))
    assert [(row["version"], row["conf"]) for row in found] == [("1.22", 10), ("1.24", 7)]
    assert found[0]["last_seen"] < found[1]["first_seen"]
    assert len(await rows(store, schema.endpoints)) == 1


async def test_a_state_that_changes_says_since_when(store: SqlStore) -> None:
    await scan(store, "r1", make_host("10.0.0.1"))
    await scan(store, "r2", make_host("10.0.0.1", Port("tcp", 80, "closed", "reset")))
    (endpoint,) = await rows(store, schema.endpoints)
    assert (endpoint["state"], endpoint["reason"]) == ("closed", "reset")
    assert endpoint["changed_at"] == endpoint["last_seen"] > endpoint["first_seen"]
    # Nothing was said about the service: it was last seen when it was last seen.
    (service,) = await rows(store, schema.services)
    assert service["last_seen"] < endpoint["last_seen"]


async def test_a_name_from_the_port_table_is_no_service(store: SqlStore) -> None:
    await scan(store, "r1", make_host("10.0.0.1", web(method="table", product="", version="")))
    assert len(await rows(store, schema.endpoints)) == 1
    assert await rows(store, schema.services) == []


async def test_a_host_nobody_looked_at_says_nothing_about_the_present(store: SqlStore) -> None:
    await scan(store, "r1", make_host("10.0.0.1"))
    before = await rows(store, schema.addresses)
    await scan(store, "r2", Host("10.0.0.1", "unknown"), Host("10.0.0.2", "skipped"))
    assert await rows(store, schema.addresses) == before


async def test_a_mac_once_seen_stays_until_another_is_seen(store: SqlStore) -> None:
    for number, mac in enumerate(["02:00:00:00:00:01", "", "02:00:00:00:00:02"]):
        await scan(store, f"r{number}", replace(make_host("10.0.0.1"), mac=mac))
        (address,) = await rows(store, schema.addresses)
        assert address["mac"] == (mac or "02:00:00:00:00:01")
    assert (address["ip"], address["state"]) == ("10.0.0.1", "up")


async def test_two_vantages_may_both_have_the_same_address(store: SqlStore) -> None:
    await scan(store, "r1", make_host("10.0.0.1"))
    await scan(store, "r2", replace(make_host("10.0.0.1"), mac="02:00:00:00:00:01"), vantage="dmz")
    assert [row["name"] for row in await rows(store, schema.networks)] == ["local", "dmz"]
    assert [row["mac"] for row in await rows(store, schema.addresses)] == ["", "02:00:00:00:00:01"]


async def test_a_fold_larger_than_a_piece_is_complete_and_lets_the_run_go(store: SqlStore) -> None:
    ports = tuple(Port("tcp", number, "open", "syn-ack", NGINX) for number in range(1, 30))
    await scan(store, "r1", *(make_host(f"10.0.{n // 250}.{n % 250}", *ports) for n in range(500)))
    for table, expected in ((schema.addresses, 500), (schema.endpoints, 14500), (schema.services, 14500)):
        assert len(await rows(store, table)) == expected
    (run,) = await rows(store, schema.runs)
    assert (run["owner"], run["owner_folder"]) == (None, None)


async def test_a_fold_that_was_cut_off_goes_on_at_the_next_start(
    store: SqlStore, another: Callable[[], SqlStore]
) -> None:
    assert store._project is not None
    assert store._owner is not None
    store._project.add = lambda *_seqs: None  # type: ignore[method-assign] # the worker never gets to it
    await scan(store, "r1", make_host("10.0.0.1"))
    store._owner.release()
    assert await rows(store, schema.addresses) == []
    other = another()
    assert len(await other.open()) == 0
    await other.settle()
    assert len(await rows(other, schema.services)) == 1
    await other.close()


async def test_two_processes_fold_the_same_addresses_at_once(store: SqlStore, another: Callable[[], SqlStore]) -> None:
    other = another()
    await other.open()
    addresses = [f"10.0.0.{n}" for n in range(200)]
    await asyncio.gather(
        *(scan(store, f"a{n}", *map(make_host, addresses)) for n in range(5)),
        *(scan(other, f"b{n}", *map(make_host, addresses[::-1])) for n in range(5)),
    )
    await other.close()
    found = await rows(store, schema.addresses)
    assert len(found) == len(await rows(store, schema.services)) == 200
    observed = await rows(store, schema.observations)
    assert len(observed) == 2000
    assert found[0]["first_seen"] == min(
        row["observed_at"] for row in observed if row["address"] == found[0]["address"]
    )
    assert found[0]["last_seen"] == max(row["observed_at"] for row in observed if row["address"] == found[0]["address"])


async def test_a_fold_that_meets_a_failure_is_taken_up_again(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store._project is not None
    failures = [PlatformError("gone", code="store_unavailable"), PlatformError("still gone", code="disk_full")]
    save = store._project._save

    def fail_first(*arguments: Any, **options: Any) -> None:
        if failures:
            raise failures.pop()
        save(*arguments, **options)

    monkeypatch.setattr(store._project, "_save", fail_first)
    monkeypatch.setattr(project, "_RETRY_SECONDS", 0.01)
    await scan(store, "r1", make_host("10.0.0.1"))
    assert not failures
    assert len(await rows(store, schema.services)) == 1


async def test_a_worker_that_broke_is_not_waited_for(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: Any, **_options: Any) -> None:
        raise ZeroDivisionError

    assert store._project is not None
    monkeypatch.setattr(store._project, "_save", broken)
    with pytest.raises(ZeroDivisionError):
        await scan(store, "r1", make_host("10.0.0.1"))
    # The observation is there; the next start folds it.
    assert (await store.hosts("r1")).total == 1


async def test_the_migrations_make_the_tables_the_statements_expect(store: SqlStore) -> None:
    def compare(connection: Connection) -> list[Any]:
        return list(compare_metadata(MigrationContext.configure(connection), schema.metadata))

    assert await store._database.read(compare) == []


async def test_a_database_of_a_later_version_is_left_alone(store: SqlStore) -> None:
    await store._database.write(
        lambda connection: connection.execute(text("UPDATE alembic_version SET version_num='9999'"))
    )
    await store.close()
    with pytest.raises(PlatformError, match="'9999', which is newer") as caught:
        await store.open()
    assert caught.value.code == "store_unavailable"
    assert store._owner is None


def test_the_revision_is_that_of_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [REVISION]
