"""The local token: its file, and the middleware that checks it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mcp_server.api.http.asgi import Message, Receive, Scope, Send
from mcp_server.api.http.callers import identity_of
from mcp_server.errors import ConfigError, PlatformError
from mcp_server.identity.local_token import load_or_create_token
from mcp_server.model.access import FULL_ACCESS
from tests.support.callers import token_only

TOKEN = "correct-horse-battery-staple-0123456789"


def test_a_token_is_made_once(tmp_path: Path) -> None:
    state = tmp_path / "state"
    token, created = load_or_create_token(state)
    assert created
    assert len(token) >= 43, "the token must have 32 random bytes"
    assert (state / "token").stat().st_mode & 0o777 == 0o600
    assert state.stat().st_mode & 0o777 == 0o700
    assert load_or_create_token(state) == (token, False)
    assert [path.name for path in state.iterdir()] == ["token"]


def test_tokens_are_unique(tmp_path: Path) -> None:
    assert len({load_or_create_token(tmp_path / str(n))[0] for n in range(20)}) == 20


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        load_or_create_token(tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


def test_servers_that_start_together_use_one_token(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from mcp_server.identity.local_token import load_or_create_token; sys.stdin.read();"
        "print(*load_or_create_token(pathlib.Path(sys.argv[1])))"
    )
    servers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    # Start all processes before the first one continues.
    for server in servers:
        assert server.stdin is not None
        server.stdin.close()
        server.stdin = None
    results = [server.communicate(timeout=30)[0].split() for server in servers]
    assert len({token for token, _ in results}) == 1
    assert [created for _, created in results].count("True") == 1


def unusable(path: Path, *, content: str = TOKEN, mode: int = 0o600) -> None:
    path.write_text(content)
    path.chmod(mode)


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o602, 0o601, 0o644, 0o666])
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    unusable(tmp_path / "token", mode=mode)
    with pytest.raises(ConfigError, match=f"is open to other users \\(mode 0{mode:o}\\)") as caught:
        load_or_create_token(tmp_path)
    assert "Delete the file" in caught.value.hint
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        ("short", "holds no token"),
        ("x" * 31, "holds no token"),
        ("with a space " * 4, "holds no token"),
        ("ü" * 40, "holds no token"),
        ("a" * 40 + "\nb", "holds no token"),
    ],
)
def test_a_file_without_a_token_is_refused(tmp_path: Path, content: str, why: str) -> None:
    unusable(tmp_path / "token", content=content)
    with pytest.raises(ConfigError, match=why):
        load_or_create_token(tmp_path)


def test_a_link_is_refused(tmp_path: Path) -> None:
    unusable(tmp_path / "elsewhere")
    (tmp_path / "token").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is a symbolic link"):
        load_or_create_token(tmp_path)


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").symlink_to(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="is a symbolic link"):
        load_or_create_token(tmp_path)


def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "token", 0o600)
    with pytest.raises(ConfigError, match="is not a regular file"):
        load_or_create_token(tmp_path)


def test_the_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unusable(tmp_path / "token")
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(ConfigError, match=f"belongs to user id {mine}"):
        load_or_create_token(tmp_path)


def test_a_state_folder_that_is_a_file_is_a_platform_error(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(PlatformError, match="cannot be read or written") as caught:
        load_or_create_token(tmp_path / "state")
    assert caught.value.code == "permission_denied"


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PlatformError) as caught:
        load_or_create_token(tmp_path)
    assert caught.value.code == "disk_full"
    assert list(tmp_path.iterdir()) == [], "an incomplete file was left behind"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    identity = identity_of(scope)
    assert (identity.name, identity.access) == ("token", FULL_ACCESS)
    await send({"type": "http.response.start", "status": 204, "headers": []})


async def ask(*authorization: bytes, kind: str = "http") -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {
        "type": kind,
        "path": "/tools",
        "headers": [(b"authorization", value) for value in authorization],
    }
    await token_only(TOKEN)(app)(scope, receive, send)
    return sent


@pytest.mark.parametrize(
    "value", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER {TOKEN}", f"Bearer  {TOKEN}", f"Bearer {TOKEN} "]
)
async def test_the_token_is_accepted(value: str) -> None:
    assert (await ask(value.encode()))[0]["status"] == 204


@pytest.mark.parametrize(
    "values",
    [
        [],
        [b""],
        [b"Bearer"],
        [b"Bearer "],
        [TOKEN.encode()],
        [f"Basic {TOKEN}".encode()],
        [f"Bearer{TOKEN}".encode()],
        [f"Bearer {TOKEN}x".encode()],
        [f"Bearer {TOKEN[:-1]}".encode()],
        [f"Bearer {TOKEN.upper()}".encode()],
        [f"Bearer {TOKEN}, Bearer {TOKEN}".encode()],
        [f"Bearer {TOKEN}\t".encode()],
        [f"Bearer {TOKEN}".encode(), f"Bearer {TOKEN}".encode()],
        [f"Bearer {TOKEN}".encode(), b"Bearer wrong"],
        [b"Bearer \xff\xfe"],
    ],
)
async def test_anything_but_the_token_is_a_401_with_a_challenge(values: list[bytes]) -> None:
    start, body, _ = await ask(*values)
    headers = dict(start["headers"])
    assert start["status"] == 401
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"www-authenticate"] == (
        b'Bearer error="invalid_token", scope="tools:read"' if values else b'Bearer scope="tools:read"'
    )
    assert b'"code": "unauthorized"' in body["body"]
    assert TOKEN.encode() not in body["body"]


async def test_a_websocket_is_closed() -> None:
    assert [message["type"] for message in await ask(kind="websocket")] == ["websocket.close"]
