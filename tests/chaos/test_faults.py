"""Failures while the server runs: each gives a typed error, and the server recovers without a restart."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.chaos.interfaces_under_way import SERVED, Interface, one_interface
from tests.support import cli
from tests.support.interfaces import environment, log_records
from tests.support.namespaces import mount_namespace
from tests.support.postgres import PostgresServer, running_postgres
from tests.support.scans import gone, own_network, scanners, slow_scan, started
from tests.support.site_tools import make_site_tools

LOOK = {"target": "127.0.0.1", "mode": "discover"}


async def works(interface: Interface) -> None:
    reply = await interface.call("nmap", LOOK)
    assert reply.error is None, reply.error


def outcomes(env: dict[str, str]) -> list[str]:
    done = cli.run("runs", "list", "--json", env=env)
    assert done.returncode == 0, done.stdout
    return [run["outcome"] for run in json.loads(done.stdout)["runs"]]


@pytest.mark.parametrize("kind", ["stdio", "rest"])
async def test_calls_work_again_after_a_full_disk(tmp_path: Path, kind: str) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    with mount_namespace('mount -t tmpfs -o size=4m,mode=700 tmpfs "$1"', str(state)) as inside:
        seen = inside.see(state)
        if kind == "rest":
            for token in (seen / "token", state / "token"):  # the helper reads it outside
                token.write_text("t" * 43)
                token.chmod(0o600)
        async with one_interface(kind, environment(state), *inside.prefix) as interface:
            await works(interface)
            free = os.statvfs(seen)
            (seen / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize))
            for _ in range(2):
                reply = await interface.call("nmap", LOOK)
                assert reply.code == "disk_full", reply
            assert await interface.read(), "expected an answer to a read while the disk is full"
            (seen / "filler").unlink()
            await works(interface)
        verified = cli.run("audit", "verify", "--json", env=environment(seen))
        assert verified.returncode == 0, verified.stdout


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


async def test_calls_work_again_when_the_database_is_back(tmp_path: Path, postgres: PostgresServer) -> None:
    env = environment(tmp_path / "state", MCP_DATABASE_URL=postgres.new_database())
    async with one_interface("rest", env) as interface:
        await works(interface)
        postgres.stop(signal.SIGQUIT)
        try:
            for _ in range(2):
                reply = await interface.call("nmap", LOOK)
                assert reply.code == "store_unavailable", reply
                assert reply.error is not None
                assert reply.error["retryable"]
        finally:
            postgres.start()
        await works(interface)
    assert outcomes(env) == ["completed"] * 2
    ends = [record for record in log_records(tmp_path / "state") if record["event"] == "end"]
    assert len(ends) == 4, "expected an end record for every decision, also for those without a run"


async def test_a_scan_is_stored_if_the_database_is_back_before_it_ends(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    env, target = environment(tmp_path / "state", MCP_DATABASE_URL=postgres.new_database()), own_network()
    arguments = {"target": target, "mode": "ports", "ports": "1-4", "extra_args": "--scan-delay 50ms --max-hostgroup 1"}
    async with one_interface("rest", env) as interface:
        await works(interface)
        call = asyncio.create_task(interface.call("nmap", arguments))
        await started(target)
        await asyncio.sleep(0.5)
        postgres.stop(signal.SIGQUIT)
        await asyncio.sleep(0.5)
        postgres.start()
        reply = await call
        assert reply.error is None, reply
        assert reply.body["hosts_total"] == 16
    assert outcomes(env) == ["completed"] * 2


async def test_a_server_that_starts_before_its_database_becomes_ready(tmp_path: Path, postgres: PostgresServer) -> None:
    env = environment(tmp_path / "state", MCP_DATABASE_URL=postgres.new_database())
    postgres.stop()
    try:
        async with one_interface("rest", env) as interface:
            assert (await interface.call("nmap", LOOK)).code == "store_unavailable"
            postgres.start()
            await works(interface)
    finally:
        if postgres._process is None:
            postgres.start()


@pytest.mark.parametrize("end", ["put back", "replaced"])
async def test_calls_are_refused_until_the_database_file_is_back(tmp_path: Path, end: str) -> None:
    """An open connection would continue to write to the deleted file, and these writes would be lost silently."""
    env = environment(tmp_path / "state")
    database = tmp_path / "state" / "store.db"
    async with one_interface("rest", env) as interface:
        await works(interface)
        database.rename(tmp_path / "away")
        if end == "replaced":
            database.touch(mode=0o600)
        for _ in range(2):
            reply = await interface.call("nmap", LOOK)
            assert reply.code == "store_unavailable", reply
        assert not await interface.read(), "a new connection would create a new database file"
        (tmp_path / "away").replace(database)
        await works(interface)
    assert outcomes(env) == ["completed"] * 2
    assert cli.run("audit", "verify", "--json", env=env).returncode == 0


@pytest.mark.parametrize("kind", SERVED)
async def test_calls_work_again_when_the_program_is_back(tmp_path: Path, kind: str) -> None:
    tools = make_site_tools(tmp_path / f"vanish_{kind}")
    env = environment(tmp_path / "state", MCP_TOOL_INCLUDE_PATTERNS="probe", **tools.env)
    program = tools.folder / "bin" / "site-probe"
    async with one_interface(kind, env) as interface:
        call = {"target": "127.0.0.1", "extra_args": "--do echo"}
        assert (await interface.call("probe", call)).error is None
        shutil.move(program, tmp_path / "away")
        reply = await interface.call("probe", call)
        assert reply.code == "binary_not_found"
        shutil.move(tmp_path / "away", program)
        assert (await interface.call("probe", call)).error is None


@pytest.mark.parametrize("kind", ["stdio", "rest"])
async def test_calls_work_again_when_descriptors_are_free(tmp_path: Path, kind: str) -> None:
    async with one_interface(kind, environment(tmp_path / "state")) as interface:
        await works(interface)
        pid = interface.process.pid
        used = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
        free = next(number for number in itertools.count() if number not in used)
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        # The limit applies to new descriptors (getrlimit(2)). Open ones above it stay open.
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, hard))
        try:
            for _ in range(3):
                reply = await asyncio.wait_for(interface.call("nmap", LOOK), 20)
                assert reply.error is not None
                assert reply.code in {"too_many_requests", "audit_unavailable", "store_unavailable", "binary_not_found"}
                assert reply.error["hint"]
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        await works(interface)
    assert "Traceback" not in interface.log.read_text()


async def test_calls_work_again_after_a_scanner_or_the_runner_was_killed(tmp_path: Path) -> None:
    env = environment(tmp_path / "state")
    async with one_interface("rest", env) as interface:
        target = own_network()
        call = asyncio.create_task(interface.call("nmap", slow_scan(target)))
        await started(target)
        for pid in scanners(target):
            os.kill(pid, signal.SIGKILL)
        assert (await call).code == "tool_failed"
        await works(interface)
        target = own_network()
        call = asyncio.create_task(interface.call("nmap", slow_scan(target)))
        await started(target)
        (runner,) = psutil.Process(interface.process.pid).children()
        runner.kill()
        reply = await call
        assert reply.code == "tool_failed"
        assert await gone(target), "nmap still runs after its runner was killed"
        await works(interface)
    assert len(outcomes(env)) == 4


FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), Path("/usr/lib/faketime/libfaketime.so.1"))


async def test_jumps_of_the_wall_clock_change_no_time_limit(tmp_path: Path) -> None:
    """The wall clock jumps a day forward and two days back. Limits and intervals use the monotonic clock."""
    assert FAKETIME.exists(), "faketime is missing: run scripts/system-packages.sh test"
    offset = tmp_path / "offset"

    def jump(text: str) -> None:
        (tmp_path / "next").write_text(text)
        (tmp_path / "next").rename(offset)

    jump("+0")
    env = environment(
        tmp_path / "state",
        LD_PRELOAD=str(FAKETIME),
        FAKETIME_TIMESTAMP_FILE=str(offset),
        FAKETIME_DONT_FAKE_MONOTONIC="1",
        FAKETIME_CACHE_DURATION="1",
        MCP_AUDIT_CHECKPOINT_INTERVAL="1",
    )
    async with one_interface("rest", env) as interface:
        await works(interface)
        for text in ("+1d", "-1d"):
            target = own_network()
            call = asyncio.create_task(interface.call("nmap", slow_scan(target) | {"timeout_sec": 5}))
            await started(target)
            begun = time.monotonic()
            jump(text)  # libfaketime applies it within a second
            reply = await call
            assert reply.code == "timeout"
            assert 2 < time.monotonic() - begun < 15, "the time limit must not depend on the wall clock"
            await works(interface)
        jump("+0")
        interface.signal(signal.SIGTERM)
        assert await interface.exit_code(3) == 0
    plain = {key: value for key, value in env.items() if "FAKETIME" not in key and key != "LD_PRELOAD"}
    verified = cli.run("audit", "verify", "--json", env=plain)
    assert verified.returncode == 0, verified.stdout
    assert sorted(outcomes(plain)) == ["completed"] * 3 + ["partial"] * 2
    times = [record["time"] for record in log_records(tmp_path / "state")]
    assert times != sorted(times), "expected a jump of the clock in the times of the records"
