"""The keys of an issuer over HTTP: when they are fetched, and wrong responses of the issuer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from mcp_server.errors import PlatformError
from mcp_server.identity import fetching
from mcp_server.identity.base import Rejected
from mcp_server.identity.issuer_keys import FRESH_SEC, KEEP_SEC, PAUSE_SEC, UrlKeys
from tests.support.issuer import Key, jwks

ONE, TWO = Key.make("one"), Key.make("two")
LONG_AGO = 0.0


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(head).encode() + body


def keys_of(*keys: Key) -> bytes:
    return answer(json.dumps(jwks(*keys)).encode())


@dataclass
class Site:
    """A server that gives the same response to every request, after ``delay`` seconds, in pieces with ``drip``."""

    port: int = 0
    reply: bytes = b""
    delay: float = 0.0
    drip: float = 0.0
    requests: list[bytes] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            await asyncio.sleep(self.delay)
            pieces = [self.reply[n : n + 16] for n in range(0, len(self.reply), 16)] if self.drip else [self.reply]
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(self.drip)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def site(reply: bytes) -> AsyncIterator[Site]:
    made = Site(reply=reply)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


def keys_at(where: Site, clock: Clock) -> UrlKeys:
    return UrlKeys(f"http://127.0.0.1:{where.port}/jwks", clock=clock, wall=clock)


async def find(keys: UrlKeys, key: Key, issued: float = LONG_AGO) -> Any:
    return await keys.find(key.id, key.algorithm, issued)


async def test_keys_are_fetched_once_and_used_until_they_are_old() -> None:
    clock = Clock()
    async with site(keys_of(ONE)) as issuer:
        keys = keys_at(issuer, clock)
        found = await asyncio.gather(*(find(keys, ONE) for _ in range(20)))
        assert all(each == ONE.private.public_key() for each in found)
        assert len(issuer.requests) == 1, "concurrent callers must share one fetch"
        clock.now += FRESH_SEC + 1
        issuer.delay = 0.2
        begun = time.monotonic()
        await find(keys, ONE)
        assert time.monotonic() - begun < 0.15, "a caller must not wait for a refresh"
        await keys.look()
        assert len(issuer.requests) == 2
        assert keys.known == 1


async def test_a_new_key_is_fetched_at_its_first_token_and_a_removed_one_is_forgotten() -> None:
    clock = Clock()
    async with site(keys_of(ONE)) as issuer:
        keys = keys_at(issuer, clock)
        await find(keys, ONE)
        clock.now += PAUSE_SEC
        issuer.reply = keys_of(TWO, ONE)
        assert await find(keys, TWO) == TWO.private.public_key()
        assert await find(keys, ONE)
        clock.now += FRESH_SEC + 1
        issuer.reply = keys_of(TWO)
        await keys.look()
        with pytest.raises(Rejected, match="unknown_key"):
            await find(keys, ONE)


async def test_unknown_keys_are_fetched_at_most_once_per_pause() -> None:
    clock = Clock()
    async with site(keys_of(ONE)) as issuer:
        keys = keys_at(issuer, clock)
        for number in range(200):
            with pytest.raises(Rejected, match="unknown_key"):
                await keys.find(f"random-{number}", "ES256", LONG_AGO)
            clock.now += 0.1
        assert len(issuer.requests) <= 200 * 0.1 / PAUSE_SEC + 1
        assert await find(keys, ONE)


async def test_a_token_newer_than_the_known_keys_gets_a_503_and_not_a_401() -> None:
    clock = Clock()
    async with site(keys_of(ONE)) as issuer:
        keys = keys_at(issuer, clock)
        await find(keys, ONE)
        clock.now += 4
        issuer.reply = keys_of(TWO, ONE)
        with pytest.raises(
            PlatformError
        ) as caught:  # the last fetch was 4 seconds ago, and this token is 2 seconds old
            await find(keys, TWO, issued=clock.now - 2)
        assert (caught.value.code, caught.value.details["retry_after"]) == ("identity_unavailable", 6)
        clock.now += 6
        assert await find(keys, TWO, issued=clock.now - 8)
        assert len(issuer.requests) == 2


async def test_the_last_keys_are_used_for_a_day_if_the_issuer_does_not_answer() -> None:
    clock = Clock()
    async with site(keys_of(ONE)) as issuer:
        keys = keys_at(issuer, clock)
        await find(keys, ONE)
        issuer.reply = answer(b"", "503 Service Unavailable")
        clock.now += KEEP_SEC - 1
        await keys.look()
        assert "status of the response was 503" in str(keys.problem)
        assert await find(keys, ONE), "the known keys must stay in use"
        with pytest.raises(PlatformError):
            await find(keys, TWO)
        clock.now += 2
        with pytest.raises(PlatformError) as caught:
            await find(keys, ONE)
        assert caught.value.code == "identity_unavailable"
        assert keys.known == 0
        issuer.reply = keys_of(ONE)
        clock.now += PAUSE_SEC
        assert await find(keys, ONE)
        assert keys.problem is None


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (answer(b"<html>"), "not a JWK Set"),
        (answer(b'{"keys": []}'), "no public key"),
        (answer(b'{"keys": [{"kty": "oct", "k": "AAAA"}]}'), "no public key"),
        (answer(b"[" * 200_000), "not a JWK Set"),
        (answer(b" " * 300_000), "more than 262144 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"8000\r\n" + b"x" * 0x8000, "RemoteProtocolError"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "RemoteProtocolError"),
        (b"", "RemoteProtocolError"),
        (answer(json.dumps(jwks(ONE)).encode(), "201 Created"), "status of the response was 201"),
        (answer(b"", "302 Found", "Location: /elsewhere"), "status of the response was 302"),
        (answer(b"", "301 Moved", "Location: http://127.0.0.1:1/"), "status of the response was 301"),
        (answer(b"\x1f\x8b" + b"\0" * 99, "200 OK", "Content-Encoding: gzip"), "compressed"),
    ],
    ids=range(13),
)
async def test_a_wrong_response_of_the_issuer_is_a_503_and_the_reason_is_kept(reply: bytes, why: str) -> None:
    async with site(reply) as issuer:
        keys = keys_at(issuer, Clock())
        with pytest.raises(PlatformError, match="are not available") as caught:
            await find(keys, ONE)
        assert caught.value.code == "identity_unavailable"
        assert 1 <= caught.value.details["retry_after"] <= PAUSE_SEC
        assert why in str(keys.problem)
        assert why not in caught.value.message, "the caller must not see the reason"
        assert len(issuer.requests) == 1, "a redirect was followed"


async def test_an_issuer_that_refuses_connections_is_not_asked_twice() -> None:
    clock = Clock()
    async with site(b"") as issuer:
        port = issuer.port
    keys = UrlKeys(f"http://127.0.0.1:{port}/jwks", clock=clock, wall=clock)
    for _ in range(3):
        with pytest.raises(PlatformError):
            await find(keys, ONE)
    assert "ConnectError" in str(keys.problem)


async def test_a_slow_issuer_blocks_neither_callers_nor_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FETCH_SEC", 0.4)
    async with site(keys_of(ONE)) as issuer:
        issuer.drip = 0.1
        keys = keys_at(issuer, Clock())
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.01)
                turns += 1

        turning = asyncio.create_task(turn())
        begun = time.monotonic()
        with pytest.raises(PlatformError):
            await find(keys, ONE)
        turning.cancel()
        assert time.monotonic() - begun < 5
        assert turns > 5
        assert "no complete response within 0.4 s" in str(keys.problem)


async def test_a_cancelled_caller_does_not_cancel_the_fetch_for_others() -> None:
    async with site(keys_of(ONE)) as issuer:
        issuer.delay = 0.2
        keys = keys_at(issuer, Clock())
        first, second = (asyncio.create_task(find(keys, ONE)) for _ in range(2))
        await asyncio.sleep(0.05)
        first.cancel()
        assert await second
        assert len(issuer.requests) == 1


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with site(keys_of(ONE)) as issuer:
        assert await find(keys_at(issuer, Clock()), ONE)
        assert b"accept-encoding: identity" in issuer.requests[0].lower()
