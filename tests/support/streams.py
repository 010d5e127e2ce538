"""A reader of ``GET /events`` on its own socket, by the rules of WHATWG HTML section 9.2.6."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_PATIENCE = 20.0


@dataclass(slots=True)
class Event:
    """One event as a browser would dispatch it."""

    kind: str
    id: str
    data: dict[str, Any]


@dataclass(slots=True)
class Stream:
    """An open stream: its head, its events so far, and the id that a browser would reconnect with."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int
    headers: dict[str, str]
    last_id: str = ""
    retry: int | None = None
    comments: int = 0
    events: list[Event] = field(default_factory=list)

    async def next(self) -> Event | None:
        """Return the next event, or None at the end of the stream."""
        async with asyncio.timeout(_PATIENCE):
            while not self.events:
                if not await self._chunk():
                    return None
            return self.events.pop(0)

    async def until(self, kind: str, **fields: Any) -> Event:
        """Return the next event of this kind with these fields, and skip others; raise AssertionError at the end."""
        async with asyncio.timeout(_PATIENCE):
            while (event := await self.next()) is not None:
                if event.kind == kind and fields.items() <= event.data.items():
                    return event
        raise AssertionError(f"the stream ended without {kind} {fields}")

    async def settled(self) -> None:
        """Wait for the first block, which has an id and no data: from then on the server counts this reader."""
        async with asyncio.timeout(_PATIENCE):
            while not self.last_id:
                assert await self._chunk(), "the stream ended before its first block"

    async def body(self) -> Any:
        """Return the JSON body of a response that is not a stream."""
        return json.loads(await self.reader.readexactly(int(self.headers["content-length"])))

    async def _chunk(self) -> bool:
        # Each chunk of the transfer coding has complete blocks, because the server never sends part of one.
        size = int((await self.reader.readline()).strip() or b"0", 16)
        if size == 0:
            return False
        text = (await self.reader.readexactly(size + 2))[:-2].decode()
        assert text.endswith("\n\n"), text[-80:]
        for block in text.removesuffix("\n\n").split("\n\n"):
            self._dispatch(block)
        return True

    def _dispatch(self, block: str) -> None:
        kind, data = "message", []
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            match name, value.removeprefix(" "):
                case "", _:
                    self.comments += 1
                case "id", value:
                    self.last_id = value
                case "event", value:
                    kind = value
                case "data", value:
                    data.append(value)
                case "retry", value:
                    self.retry = int(value)
        if data:
            self.events.append(Event(kind, self.last_id, json.loads("\n".join(data))))


def request(base: str, token: str, query: str = "", headers: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a request for the stream; without a token there is no Authorization header."""
    lines = {"Host": urlsplit(base).netloc, **(headers or {})}
    if token:
        lines["Authorization"] = f"Bearer {token}"
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"GET /events{query} HTTP/1.1\r\n{head}\r\n".encode()


@asynccontextmanager
async def follow(
    base: str, token: str, query: str = "", headers: Mapping[str, str] | None = None
) -> AsyncIterator[Stream]:
    """Open the stream of a server and close it at the end."""
    where = urlsplit(base)
    assert where.hostname
    reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=1 << 22)
    try:
        writer.write(request(base, token, query, headers))
        async with asyncio.timeout(_PATIENCE):
            status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        found = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        yield Stream(reader, writer, int(status.split()[1]), found)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
