"""The limits of single actors on real servers: names, budgets, rates, and a file that changes during calls."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mcp_server.config import load_config
from mcp_server.errors import AccessError, ConfigError, TargetError
from mcp_server.model.access import Access, Permission, Role
from mcp_server.model.run import Actor
from mcp_server.scope.resolver import SystemResolver
from mcp_server.server import EnhancedMCPServer
from mcp_server.server.applying import apply
from tests.support.cli import batch
from tests.support.interfaces import environment, http_server, log_records
from tests.support.resolvers import use_resolver
from tests.support.several_callers import MODULE, Rest, caller_environment, coming_as
from tests.unit.scope.loopback_dns import Zone, serve

OPERATOR = Role.OPERATOR.permissions
BOUNDED = """
version: 1
actors:
  - {name: slow, key: slow, role: operator, calls_per_minute: 2}
  - {name: small, key: small, role: operator, packets_per_hour: 3}
  - {name: eager, key: eager, role: operator, calls_per_minute: 100}
"""


@asynccontextmanager
async def named(tmp_path: Path, **records: list[str]) -> AsyncIterator[tuple[EnhancedMCPServer, Zone]]:
    """A server whose name server is on loopback and has these records; underscores stand for dots."""
    server = EnhancedMCPServer(load_config(env=environment(tmp_path / "state")))
    async with serve() as zone:
        zone.records |= {name.replace("_", "."): values for name, values in records.items()}
        use_resolver(server.pipeline, SystemResolver(["127.0.0.1"], port=zone.port, hosts_file=None))
        yield server, zone
    await server.cleanup()


def actor(*networks: str, permissions: frozenset[Permission] = OPERATOR) -> Actor:
    return Actor("key:a", "http", "", Access(permissions, networks))


def refused(code: str) -> Callable[[Any], bool]:
    return lambda error: error.code == code


async def test_a_name_and_each_of_its_addresses_must_be_in_the_actors_networks(tmp_path: Path) -> None:
    one, two = ["A 127.0.9.1"], ["A 127.0.9.1", "A 127.0.7.1"]
    async with named(tmp_path, a_lab_internal=one, b_lab_internal=two) as (server, _):
        bounded = actor(".lab.internal", "127.0.9.0/24")
        plan = (await server.pipeline.plan("nmap", {"target": "a.lab.internal", "ports": "1"}, bounded)).plan
        assert plan.targets.canonical() == ("127.0.9.1",)
        with pytest.raises(TargetError, match=r"127\.0\.7\.1 is outside the networks of this caller") as error:
            await server.pipeline.call("nmap", {"target": "b.lab.internal", "ports": "1"}, bounded)
        assert error.value.code == "target_out_of_scope"


@pytest.mark.parametrize(
    ("asking", "arguments", "code"),
    [
        (actor("127.0.0.0/8"), {}, "target_out_of_scope"),
        (actor(".other.internal", "127.0.0.0/8"), {}, "target_out_of_scope"),
        (actor(".lab.internal", permissions=frozenset({Permission.TOOLS_READ})), {}, "insufficient_scope"),
        (actor(".lab.internal", permissions=frozenset({Permission.TOOLS_PROBE})), {}, "insufficient_scope"),
    ],
    ids=["no suffix", "another suffix", "viewer", "a scan for a prober"],
)
async def test_no_name_is_looked_up_for_an_actor_without_permission(
    tmp_path: Path, asking: Actor, arguments: dict[str, Any], code: str
) -> None:
    async with named(tmp_path, a_lab_internal=["A 127.0.9.1"]) as (server, zone):
        with pytest.raises((TargetError, AccessError), check=refused(code)):
            await server.pipeline.call("nmap", {"target": "a.lab.internal", "mode": "ports", **arguments}, asking)
        query = {"target": "a.lab.internal", "tool": "nmap", "risk": "scan"}
        if Permission.TOOLS_READ in asking.access.permissions:
            body = (await server.pipeline.answer("scope", query, asking)).body
            assert [target["code"] for target in body["targets"]] == [code]
        else:
            with pytest.raises(AccessError, check=refused(code)):
                await server.pipeline.answer("scope", query, asking)
        assert zone.questions == []
    (denied,) = [record for record in log_records(tmp_path / "state") if record.get("decision") == "deny"]
    assert denied["code"] == code


async def test_calls_and_packets_of_an_actor_are_limited(tmp_path: Path) -> None:
    env = caller_environment(tmp_path, BOUNDED, MCP_RATE_LIMIT_CALLS_PER_MINUTE="4")
    with http_server(env, module=MODULE) as (base, _, _):
        found = {}
        for name, target in (("slow", "127.0.0.1"), ("eager", "127.0.0.1"), ("small", "127.0.0.1")):
            async with coming_as(base, f"operator.{name}") as client:
                found[name] = [(await Rest(client).tool("scanning", target)).outcome for _ in range(5)]
    assert found["slow"] == ["ok", "ok", *["rate_limited"] * 3]
    assert found["eager"] == [*["ok"] * 4, "rate_limited"], "the limit of the server must apply, not the wider one"
    assert found["small"] == [*["ok"] * 3, "budget_exceeded", "rate_limited"]


async def test_a_reload_during_calls_applies_the_whole_file_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "actors.yaml"
    before = "version: 1\nactors:\n  - {name: a, key: a, role: operator, networks: [127.0.0.0/28]}\n"
    after = before.replace("/28", "/32").replace("operator", "viewer")
    env = caller_environment(tmp_path, before)

    def write(text: str) -> None:
        new = path.with_suffix(".new")
        new.write_text(text)
        new.chmod(0o600)
        new.rename(path)

    async def until(client: Rest, outcome: str) -> None:
        async with asyncio.timeout(20):
            while (await client.tool("scanning", "127.0.0.9")).outcome != outcome:
                await asyncio.sleep(0.1)

    with http_server(env, module=MODULE) as (base, _, _):
        async with coming_as(base, "operator.a") as ours, coming_as(base, "seed.boss") as theirs:
            client, boss = Rest(ours), Rest(theirs)
            seen: list[str] = []

            async def calling() -> None:
                while True:
                    seen.append((await client.tool("scanning", "127.0.0.9")).outcome)

            beside = [asyncio.create_task(calling()) for _ in range(4)]
            await asyncio.sleep(0.5)
            write(after)
            await until(client, "insufficient_scope")
            write(after + "rôle: admin\n")
            reply = await boss.ask("POST", "/admin/reload")
            assert (reply.status, reply.outcome) == (422, "config_invalid")
            assert "line 4: " in reply.body["message"]
            assert (await client.tool("scanning", "127.0.0.9")).outcome == "insufficient_scope"
            write(before)
            await until(client, "ok")
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
    assert set(seen) == {"ok", "insufficient_scope"}
    policies = [record["actors_hash"] for record in log_records(tmp_path / "state") if record["event"] == "policy"]
    assert len(set(policies)) == 2
    assert policies[0] == policies[-1]
    accepted = {r["actors_hash"] for r in log_records(tmp_path / "state") if r.get("decision") == "accept"}
    assert accepted == {policies[0]}, "a call was allowed under the narrower file"


async def test_a_waiting_call_is_judged_by_the_limits_at_its_start(tmp_path: Path) -> None:
    path = tmp_path / "actors.yaml"
    text = "version: 1\nactors:\n  - {name: a, key: a, role: operator}\n"
    path.write_text(text)
    path.chmod(0o600)
    own = {"MCP_AUTH_ACTORS_FILE": str(path), "MCP_ADMISSION_MAX_RUNNING": "1"}
    config = load_config(env=environment(tmp_path / "state", **own))
    server = EnhancedMCPServer(config)
    pipeline = server.pipeline
    assert pipeline.current.value.actors is not None
    asking = Actor("key:a", "rest", "", pipeline.current.value.actors.find("key:a", Role.OPERATOR))
    arguments = {"target": "127.0.0.1", "mode": "ports", "ports": "1", "extra_args": "--scan-delay 2s"}
    first = asyncio.create_task(pipeline.call("nmap", arguments, asking))
    second = asyncio.create_task(pipeline.call("nmap", arguments, asking))
    async with asyncio.timeout(20):
        while not pipeline.admission.load("nmap").waiting:
            await asyncio.sleep(0.02)
    path.write_text(text.replace("operator", "viewer"))
    await apply(server.pipeline, config)
    ends = await asyncio.gather(first, second, return_exceptions=True)
    await server.cleanup()
    refusals = [end for end in ends if isinstance(end, AccessError)]
    assert [refusal.code for refusal in refusals] == ["insufficient_scope"]
    (end,) = [r for r in log_records(tmp_path / "state") if r["event"] == "end" and r["outcome"] == "refused"]
    assert end["code"] == "insufficient_scope"


def test_a_server_does_not_start_with_a_file_it_cannot_use(tmp_path: Path) -> None:
    path = tmp_path / "actors.yaml"
    path.write_text("version: 1\nactors: [{name: a}]\n")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=re.escape(f"{path}, line 2")):
        EnhancedMCPServer(load_config(env=environment(tmp_path / "state", MCP_AUTH_ACTORS_FILE=str(path))))


async def test_config_check_names_networks_outside_the_policy(tmp_path: Path) -> None:
    path = tmp_path / "actors.yaml"
    path.write_text("version: 1\nactors: [{name: far, key: a, networks: [8.8.8.0/24]}]\n")
    path.chmod(0o600)
    env = environment(tmp_path / "state", MCP_AUTH_ACTORS_FILE=str(path))
    ((status, out, _),) = await batch(env, ["config", "check"])
    assert status == 0
    assert "actor far: 8.8.8.0/24 is not inside the policy, and allows nothing more" in out
    path.write_text("version: 1\nactors: [{}]\n")
    ((status, _, err),) = await batch(env, ["config", "check"])
    assert (status, "line 2: an actor must have a name" in err) == (8, True)


async def test_limits_of_an_actor_add_little_time_to_a_call(tmp_path: Path) -> None:
    """No file is read and no policy is built per call: 1,000 look-ups of an actor with many networks."""
    server = EnhancedMCPServer(load_config(env=environment(tmp_path / "state")))
    networks = tuple(f"10.{high}.{low}.0/24" for high in range(8) for low in range(256))
    bounded = actor(*networks)
    server.pipeline.policy_of(bounded.access)
    started = time.perf_counter()
    for _ in range(1000):
        server.pipeline.policy_of(bounded.access)
        server.pipeline.registry_for(bounded)
        server.pipeline.validate("nmap", {"target": "10.0.0.1", "ports": "1-1000"}, bounded)
    assert (time.perf_counter() - started) / 1000 < 0.005
    await server.cleanup()
