"""The actors file: its content, the limits that it sets, and the messages about mistakes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcp_server.errors import ConfigError
from mcp_server.identity.actors import Actors, CurrentDirectory
from mcp_server.identity.actors_file import MAX_BYTES, read_actors_file
from mcp_server.model.access import FULL_ACCESS, NOBODY, Access, Permission, Role
from mcp_server.scope.policy import ScopePolicy

GOOD = """
version: 1
actors:
  - name: build robot
    key: [ci, ci-old]
    subject: auth0|17
    role: operator
    networks: [10.20.0.0/16, .build.lab.internal, 10.20.0.0/16]
    tools: [nmap, "dns_*"]
    calls_per_minute: 30
    packets_per_hour: 200000
  - {name: watcher, subject: someone@example.org, networks: []}
others:
  role: viewer
"""


def written(folder: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path = folder / "actors.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def test_the_file_limits_each_actor(tmp_path: Path) -> None:
    text = GOOD.replace(", 10.20.0.0/16]", "]")
    actors = read_actors_file(written(tmp_path, text))
    robot = Access(
        Role.OPERATOR.permissions, ("10.20.0.0/16", ".build.lab.internal"), ("nmap", "dns_*"), 30, 200000, actors.hash
    )
    for name in ("key:ci", "key:ci-old", "sub:auth0|17"):
        assert actors.find(name, Role.VIEWER) == robot, "the role must be that of the file, not of the credential"
    watcher = actors.find("sub:someone@example.org", Role.OPERATOR)
    assert (watcher.permissions, watcher.networks) == (Role.OPERATOR.permissions, ())
    assert actors.find("key:unknown", Role.ADMIN).permissions == Role.VIEWER.permissions
    assert actors.find("token", Role.ADMIN).permissions == FULL_ACCESS.permissions, "the local token has no limits"


def test_an_actor_that_is_not_named_may_do_nothing(tmp_path: Path) -> None:
    actors = read_actors_file(written(tmp_path, "version: 1\nactors: []\n"))
    assert actors.find("key:a", Role.ADMIN).permissions == NOBODY.permissions
    assert CurrentDirectory(lambda: actors).find("key:a", Role.ADMIN).permissions == frozenset()
    assert CurrentDirectory(lambda: None).find("key:a", Role.VIEWER) == Access(Role.VIEWER.permissions)


def test_the_hash_depends_on_the_limits(tmp_path: Path) -> None:
    def hash_of(text: str) -> str:
        return read_actors_file(written(tmp_path, text)).hash

    one = "version: 1\nactors:\n  - {name: a, key: a, role: viewer}\n  - {name: b, key: b}\n"
    two = "# the same\nversion: 1\nactors:\n  - name: b\n    key: b\n  - {key: a, name: a, role: viewer}\n"
    assert hash_of(one) == hash_of(two)
    changes = [("viewer", "admin"), ("key: b", "key: c"), ("{name: b,", "{name: b, tools: [nmap],")]
    assert len({hash_of(one), *(hash_of(one.replace(*change)) for change in changes)}) == 4


def test_a_reload_gives_no_permission_that_the_credential_did_not_have() -> None:
    from mcp_server.identity.actors import Bounds

    before = Actors({"key:a": Bounds("a", Role.OPERATOR)})
    held = before.find("key:a", Role.VIEWER)
    assert before.update("key:a", held) is held
    narrower = Actors({"key:a": Bounds("a", Role.VIEWER, ("10.0.0.0/8",))})
    assert narrower.update("key:a", held).permissions == Role.VIEWER.permissions
    assert narrower.update("key:a", held).networks == ("10.0.0.0/8",)
    wider = Actors({"key:a": Bounds("a", Role.ADMIN)})
    assert wider.update("key:a", held).permissions == held.permissions
    gone = Actors({})
    assert gone.update("key:a", held).permissions == frozenset()


def test_networks_outside_the_policy_are_found(tmp_path: Path) -> None:
    networks = "10.1.0.0/16, 10.0.0.0/7, .lab.internal, .org.internal"
    actors = read_actors_file(
        written(tmp_path, f"version: 1\nactors:\n  - {{name: a, key: a, networks: [{networks}]}}\n")
    )
    policy = ScopePolicy.from_entries(["10.0.0.0/8", ".lab.internal"])
    assert list(actors.outside(policy)) == [("a", "10.0.0.0/7"), ("a", ".org.internal")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: the file is empty"),
        ("actors: []", "line 1: an actors file must begin with 'version: 1'"),
        ("version: 2\nactors: []", "line 1: an actors file must begin"),
        ("version: 1", "line 1: there is no key 'actors'"),
        ("version: 1\nactors: []\nactors: []", "line 3: the key 'actors' occurs twice"),
        ("version: 1\nactors: []\nactor: []", "line 3: an actors file has no key 'actor'"),
        ("version: 1\nactors:\n  - {name: a, key: a, rôle: x}", "line 3: an actor has no key"),
        ("version: 1\nactors:\n  - {key: a}", "line 3: an actor must have a name"),
        ("version: 1\nactors:\n  - {name: a}", "line 3: an actor must have a key or a subject"),
        ("version: 1\nactors:\n  - {name: a, key: ''}", "line 3: a key or a subject must not be empty"),
        ("version: 1\nactors:\n  - {name: ' ', key: a}", "line 3: a name must not be empty"),
        ("version: 1\nactors:\n  - {name: a, key: a}\n  - {name: a, key: b}", "line 4: the name 'a' occurs twice"),
        ("version: 1\nactors:\n  - {name: a, key: a}\n  - {name: b, key: a}", "line 4: 'key:a' already belongs to 'a'"),
        (
            "version: 1\nactors:\n  - {name: a, key: a, role: root}",
            "line 3: role must be one of viewer, operator, admin",
        ),
        ("version: 1\nactors:\n  - {name: a, key: a, networks: 10.0.0.0/8}", "line 3: networks must be a list"),
        ("version: 1\nactors:\n  - {name: a, key: a, networks: }", "line 3: networks has no value"),
        ("version: 1\nactors:\n  - {name: a, key: a, tools: }", "line 3: tools has no value"),
        ("version: 1\nactors:\n  - {name: a, key: a, networks: [10.0.0.1/8]}", "line 3: The target '10.0.0.1/8'"),
        (
            "version: 1\nactors:\n  - {name: a, key: a, networks: [lab.internal]}",
            "line 3: 'lab.internal' is not a scope",
        ),
        (GOOD, "line 8: 10.20.0.0/16 repeats the entry 10.20.0.0/16 (line 8)"),
        ("version: 1\nactors:\n  - {name: a, key: a, networks: [[a]]}", "line 3: an entry of networks"),
        ("version: 1\nactors:\n  - {name: a, key: a, tools: ['NmapTool;']}", "line 3: 'NmapTool;' is not the name"),
        (
            "version: 1\nactors:\n  - {name: a, key: a, calls_per_minute: 0}",
            "line 3: calls_per_minute must be a whole number",
        ),
        (
            "version: 1\nactors:\n  - {name: a, key: a, calls_per_minute: 100001}",
            "line 3: calls_per_minute must be a whole number from 1 to 100000",
        ),
        (
            "version: 1\nactors:\n  - {name: a, key: a, packets_per_hour: 1e9}",
            "line 3: packets_per_hour must be a whole",
        ),
        ("version: 1\nactors: &x []\nothers: *x", "line 2: an anchor"),
        ("version: 1\nactors:\n  - name: !!str a", "line 3: a tag"),
        ("version: 1\nactors: []\n---\nversion: 1", "a second document"),
        ("version: 1\nactors: []\nothers: []", "line 3: others must be a mapping"),
        ("version: 1\nactors: {}", "line 2: actors must be a list"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as wrong:
        read_actors_file(path)
    assert said in wrong.value.message
    assert wrong.value.message.startswith(f"{path}, ")
    assert "policy.md" not in wrong.value.hint


def test_a_file_that_others_can_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can be written by users other than its owner"):
        read_actors_file(written(tmp_path, GOOD, 0o666))
    folder = tmp_path / "open"
    folder.mkdir()
    path = written(folder, GOOD)
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="can be replaced by other users"):
        read_actors_file(path)


def test_a_missing_large_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_actors_file(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_actors_file(written(tmp_path, b"\xff"))
    with pytest.raises(ConfigError, match="larger than"):
        read_actors_file(written(tmp_path, b"#" * (MAX_BYTES + 1)))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="is not a regular file"):
        read_actors_file(pipe)


LINES = st.lists(
    st.sampled_from(
        [*GOOD.strip().splitlines(), "  - {name: x, key: y}", "\t", "  networks:", "- a", "'", "{", "&a", "? b", "\x00"]
    ),
    max_size=14,
)


@given(LINES | st.lists(st.text(max_size=30), max_size=6))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_gives_actors_or_a_config_error(tmp_path: Path, lines: list[str]) -> None:
    path = written(tmp_path, "\n".join(lines).encode("utf-8", "surrogatepass"))
    try:
        actors = read_actors_file(path)
    except ConfigError as error:
        said = error.message
    else:
        assert actors.find("key:never", Role.ADMIN).permissions <= frozenset(Permission)
        return
    assert str(path) in said
