"""API keys: only a hash is stored, a key identifies its actor, and a damaged file accepts no key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mcp_server.config import Config
from mcp_server.errors import ArgumentError, BusyError, ConfigError, NotFoundError, PlatformError
from mcp_server.identity import key_file
from mcp_server.identity.api_keys import ApiKeys
from mcp_server.identity.authenticator import Authenticator
from mcp_server.identity.base import Identity, Rejected, RoleDirectory
from mcp_server.identity.key_file import KEY, KEY_FILE, add_key, find_key, new_key, read_keys, revoke_key
from mcp_server.model.access import FULL_ACCESS, NOBODY, Access, Role

HOUR = timedelta(hours=1)


def made(state: Path, name: str = "ci", role: Role = Role.OPERATOR, expires: datetime | None = None) -> str:
    kept, key = new_key(name, role, expires)
    add_key(state, kept)
    return key


def keys_in(state: Path) -> ApiKeys:
    return ApiKeys(state, RoleDirectory())


async def reason(keys: ApiKeys, credential: str) -> str:
    with pytest.raises(Rejected) as caught:
        await keys.check(credential)
    assert credential not in str(caught.value)
    return caught.value.reason


async def test_a_key_belongs_to_the_actor_of_its_name_with_its_role(tmp_path: Path) -> None:
    key = made(tmp_path)
    assert KEY.fullmatch(key)
    assert await keys_in(tmp_path).check(key) == Identity("key:ci", Access(Role.OPERATOR.permissions))


def test_only_a_hash_is_kept_in_a_private_file(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        key = made(tmp_path)
    finally:
        os.umask(before)
    path = tmp_path / KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert key.rpartition("_")[2] not in path.read_text()
    assert [each.name for each in tmp_path.iterdir()] == [KEY_FILE], "a draft was left behind"


def test_keys_are_unique(tmp_path: Path) -> None:
    assert len({new_key("a", Role.VIEWER, None).key for _ in range(200)}) == 200


async def test_a_revoked_key_is_refused_at_once(tmp_path: Path) -> None:
    first, second = made(tmp_path), made(tmp_path)
    keys = keys_in(tmp_path)
    assert (await keys.check(first)).name == (await keys.check(second)).name == "key:ci"
    assert keys.count == 2
    ended = revoke_key(tmp_path, first.split("_")[1])
    assert await reason(keys, first) == "revoked"
    assert await keys.check(second), "the other key of the same name must stay valid"
    assert revoke_key(tmp_path, ended.id).revoked == ended.revoked, "revoking twice must change nothing"
    assert keys.count == 1


async def test_an_expired_key_is_refused(tmp_path: Path) -> None:
    past, future = made(tmp_path, expires=datetime.now(UTC) - HOUR), made(tmp_path, expires=datetime.now(UTC) + HOUR)
    keys = keys_in(tmp_path)
    assert await reason(keys, past) == "expired"
    assert await keys.check(future)


async def test_a_wrong_secret_and_an_unknown_id_are_refused(tmp_path: Path) -> None:
    key = made(tmp_path)
    keys = keys_in(tmp_path)
    assert await reason(keys, key[:-1] + ("A" if key[-1] != "A" else "B")) == "wrong"
    assert await reason(keys, f"mnt_{'0' * 12}_{key.split('_', 2)[2]}") == "unknown"
    for text in (key[:-1], key + "A", key.upper(), f" {key}", key.replace("mnt_", "mnt-")):
        assert not keys.claims(text)


async def test_without_the_file_no_key_is_accepted(tmp_path: Path) -> None:
    key = made(tmp_path)
    keys = keys_in(tmp_path)
    await keys.check(key)
    (tmp_path / KEY_FILE).unlink()
    assert await reason(keys, key) == "unknown"


def good(**changed: Any) -> dict[str, Any]:
    entry = {"id": "0" * 12, "name": "a", "role": "viewer", "sha256": "0" * 64, "created": "2026-01-01T00:00:00Z"}
    return entry | changed


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"version": 2, "keys": []}',
        '{"version": 1, "keys": [7]}',
        '{"version": 1, "other": 7}',
        json.dumps({"version": 1, "keys": [good(role="root")]}),
        json.dumps({"version": 1, "keys": [good(id="../x")]}),
        json.dumps({"version": 1, "keys": [good(name="a b")]}),
        json.dumps({"version": 1, "keys": [good(sha256="")]}),
        json.dumps({"version": 1, "keys": [good(created="2026-01-01T00:00:00")]}),
        json.dumps({"version": 1, "keys": [good(key="mnt_x")]}),
        json.dumps({"version": 1, "keys": [good(), good()]}),
        " " * (1024 * 1024 + 1),
    ],
    ids=range(14),
)
async def test_a_damaged_file_is_named_and_no_key_is_accepted(tmp_path: Path, content: str) -> None:
    key = made(tmp_path)
    keys = keys_in(tmp_path)
    await keys.check(key)
    (tmp_path / KEY_FILE).write_text(content)
    with pytest.raises(ConfigError, match=KEY_FILE):
        read_keys(tmp_path)
    with pytest.raises(ConfigError):
        add_key(tmp_path, new_key("b", Role.VIEWER, None).kept)
    assert (tmp_path / KEY_FILE).read_text() == content, "a file that cannot be read must not be replaced"
    with pytest.raises(PlatformError) as caught:  # the change of the file may be a revocation
        await keys.check(key)
    assert caught.value.code == "identity_unavailable"
    assert keys.problem is not None
    assert keys.count == 0


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622, 0o644])
async def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    key = made(tmp_path)
    keys = keys_in(tmp_path)
    await keys.check(key)
    (tmp_path / KEY_FILE).chmod(mode)
    with pytest.raises(PlatformError):
        await keys.check(key)
    with pytest.raises(ConfigError, match="open to other users"):
        revoke_key(tmp_path, key.split("_")[1])
    (tmp_path / KEY_FILE).chmod(0o600)
    assert await keys.check(key), "the key must be accepted again"


async def test_a_link_to_the_file_is_refused(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / KEY_FILE).rename(tmp_path / "elsewhere")
    (tmp_path / KEY_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="symbolic link"):
        read_keys(tmp_path)


@pytest.mark.parametrize("name", ["", " ", "a b", "-a", "a:b", "ä", "a" * 65, "a\n", "../a", "a\0"])
def test_a_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match="not a name for an API key"):
        new_key(name, Role.VIEWER, None)


def test_an_unknown_id_is_an_error(tmp_path: Path) -> None:
    made(tmp_path)
    for missing in ("0" * 12, "", "../../token"):
        with pytest.raises(NotFoundError, match="no API key"):
            find_key(tmp_path, missing)
        with pytest.raises(NotFoundError):
            revoke_key(tmp_path, missing)


def test_only_expired_and_revoked_keys_are_removed_at_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_file, "MOST_KEYS", 3)
    first = [made(tmp_path, name) for name in "abc"]
    with pytest.raises(ArgumentError, match="There are 3 valid API keys"):
        made(tmp_path, "d")
    revoke_key(tmp_path, first[0].split("_")[1])
    made(tmp_path, "d")
    assert [key.name for key in read_keys(tmp_path)] == ["b", "c", "d"]


def test_a_folder_that_cannot_be_written_is_a_platform_error(tmp_path: Path) -> None:
    with pytest.raises(PlatformError) as caught:
        made(tmp_path / "none")
    assert caught.value.code == "permission_denied"


def test_processes_that_write_at_once_lose_no_key(tmp_path: Path) -> None:
    revoked = [made(tmp_path, f"old-{number}").split("_")[1] for number in range(4)]
    program = (
        "import sys, pathlib; from mcp_server.identity.key_file import *; from mcp_server.model.access import Role;"
        "state = pathlib.Path(sys.argv[1]); sys.stdin.read();"
        "[add_key(state, new_key(f'{sys.argv[2]}-{n}', Role.VIEWER, None).kept) for n in range(10)];"
        "revoke_key(state, sys.argv[3])"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, tmp_path, f"w{n}", revoked[n]], stdin=subprocess.PIPE)
        for n in range(4)
    ]
    for writer in writers:  # start all processes before the first one writes
        assert writer.stdin is not None
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0] * 4
    keys = read_keys(tmp_path)
    assert {key.name for key in keys} >= {f"w{who}-{n}" for who in range(4) for n in range(10)}
    assert {key.id for key in keys if key.revoked} == set(revoked)
    assert [each.name for each in tmp_path.iterdir()] == [KEY_FILE]


def authenticator_of(state: Path, **auth: Any) -> tuple[Authenticator, Config]:
    config = Config(state_dir=state)
    for key, value in auth.items():
        setattr(config.auth, key, value)
    return Authenticator(lambda: config), config


async def test_the_local_token_is_accepted_until_it_is_switched_off(tmp_path: Path) -> None:
    authenticator, config = authenticator_of(tmp_path)
    token = authenticator.prepare()
    assert token is not None
    assert authenticator.prepare() is None, "only a new token is returned"
    assert await authenticator.admit(token, "127.0.0.1") == Identity("token", FULL_ACCESS)
    config.auth.local_token = False
    with pytest.raises(Rejected):
        await authenticator.admit(token, "127.0.0.1")
    assert authenticator.lets_nobody_in
    made(tmp_path)
    assert not authenticator.lets_nobody_in


async def test_without_the_local_token_no_file_is_made(tmp_path: Path) -> None:
    authenticator, config = authenticator_of(tmp_path, local_token=False)
    assert authenticator.prepare() is None
    assert list(tmp_path.iterdir()) == []
    config.auth.local_token = True
    with pytest.raises(Rejected):
        await authenticator.admit("x" * 40, "127.0.0.1")
    assert (await authenticator.admit((tmp_path / "token").read_text().strip(), "127.0.0.1")).name == "token"


async def test_wrong_keys_lock_new_credentials_out_and_not_recent_ones(tmp_path: Path) -> None:
    authenticator, _ = authenticator_of(tmp_path, lockout_failures=3)
    good, fresh = made(tmp_path), made(tmp_path, "fresh")
    wrong = good[:-4] + "AAAA"
    await authenticator.admit(good, "192.0.2.1")
    for _ in range(3):
        with pytest.raises(Rejected):
            await authenticator.admit(wrong, "192.0.2.1")
    with pytest.raises(BusyError) as caught:
        await authenticator.admit(fresh, "192.0.2.1")
    assert caught.value.code == "locked_out"
    with pytest.raises(BusyError):
        await authenticator.admit(wrong, "192.0.2.2")  # the key is locked for every address
    assert await authenticator.admit(good, "192.0.2.1")
    assert await authenticator.admit(fresh, "192.0.2.2")


async def test_unknown_ids_lock_the_address_and_expired_keys_lock_nothing(tmp_path: Path) -> None:
    authenticator, _ = authenticator_of(tmp_path, lockout_failures=3)
    expired = made(tmp_path, expires=datetime.now(UTC) - HOUR)
    for _ in range(10):
        with pytest.raises(Rejected, match="expired"):
            await authenticator.admit(expired, "192.0.2.1")
    for number in range(3):
        with pytest.raises(Rejected, match="unknown"):
            await authenticator.admit(f"mnt_{number:012x}_{'A' * 43}", "192.0.2.1")
    with pytest.raises(BusyError):
        await authenticator.admit(expired, "192.0.2.1")


async def test_the_directory_limits_the_actor(tmp_path: Path) -> None:
    class Owners:
        def find(self, name: str, role: Role) -> Access:
            return Access(role.permissions, networks=("10.0.0.0/8",)) if name == "key:ci" else NOBODY

    config = Config(state_dir=tmp_path)
    authenticator = Authenticator(lambda: config, Owners())
    assert (await authenticator.admit(made(tmp_path), "127.0.0.1")).access.networks == ("10.0.0.0/8",)
    assert (await authenticator.admit(made(tmp_path, "other"), "127.0.0.1")).access == NOBODY
