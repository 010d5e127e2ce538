"""The guard's rules in the host's namespace: a reload updates them, and it is noticed if they are removed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.guarded import MACVLAN, TARGET, Inside, World, inside, policy, world
from tests.support.processes import binary

PORT = 8211


@pytest.fixture(scope="module")
def host() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture
def program(host: World) -> Iterator[Inside]:
    with inside(host, PORT) as found:
        yield found


REACH = """
import os, socket
for address in ("10.99.0.2", "10.99.0.66"):
    try:
        socket.create_connection((address, 2222), 1).close()
        print("connected", address)
    except OSError:
        print("blocked", address)
print(os.getuid())
"""


def reach(found: Inside) -> list[str]:
    """What a run on loopback targets can reach besides loopback, and its user id."""
    run = found.ask("run", targets=["127.0.0.1/32"], argv=[binary("python3"), "-I", "-S", "-c", REACH])
    lines: list[str] = run["output"].split("\n")
    return lines[:3]


def test_the_rules_for_a_loopback_user_without_a_name_survive_reloads(host: World) -> None:
    settings = {**MACVLAN, "MCP_GUARD_LOOPBACK_USER": ""}
    with inside(host, PORT, settings=settings, rules=policy(TARGET, "127.0.0.1")) as found:
        first = reach(found)
        assert first[:2] == ["blocked 10.99.0.2", "blocked 10.99.0.66"]
        for allow in ([TARGET, "127.0.0.0/8"], [TARGET], [TARGET, "127.0.0.1"]):
            wanted = found.policy_hash(policy(*allow))
            assert found.ask("reload", policy=wanted) == wanted
        assert reach(found) == first


def test_deleted_rules_on_the_host_are_noticed_and_a_reload_loads_them_again(host: World) -> None:
    with inside(host, PORT, settings={}, rules=policy(TARGET, "127.0.0.1")) as found:
        other = [binary("nft"), "add", "table", "inet", "unrelated"]
        host.run(*other)
        found.ask("read")
        for change in (["flush", "ruleset"], ["flush", "table", "inet", f"mcp_scope_host_{found.process.pid}"]):
            host.run(binary("nft"), *change)
            error = found.try_to("read")["error"]
            assert error["code"] == "guard_unavailable"
            assert f"mcp_scope_{'nat' if 'ruleset' in change else 'host'}_{found.process.pid}" in error["message"]
            same = found.policy_hash(policy(TARGET, "127.0.0.1"))
            assert found.ask("reload", policy=same) == same
            found.ask("read")
        assert reach(found)[:2] == ["blocked 10.99.0.2", "blocked 10.99.0.66"]


def test_the_counters_of_a_new_guard_are_zero(program: Inside) -> None:
    reading = program.ask("read")
    assert (reading["passed"], set(reading["drops"].values())) == (0, {0})


def test_a_target_is_refused_if_the_guard_has_no_address_of_its_ip_version(program: Inside) -> None:
    error = program.try_to("run", targets=["fd99::2/128"], argv=["/bin/true"])["error"]
    assert (error["code"], "no IPv6 address" in error["message"]) == ("invalid_target", True)
