"""MCP over standard input and output, in both wire eras.

The 2026-07-28 wire has no handshake; older clients open with ``initialize``. The SDK lets the first
request decide, which locks out clients in the field that probe with ``server/discover`` and then open
with ``initialize`` all the same (anthropics/claude-code#96183, github/copilot-cli#4888). Here a probe is
answered beside the conversation, and the first other request decides.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import anyio
import anyio.abc
import anyio.lowlevel
import pydantic_core
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.runner import serve_dual_era_loop
from mcp.shared.message import SessionMessage
from mcp_types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    RequestId,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError

from mcp_server.api.mcp.stdio_streams import private_stdio, read_lines, write_all
from mcp_server.errors import ArgumentError, NetworkToolsError
from mcp_server.logger import get_logger

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server

logger = get_logger(__name__)

MAX_LINE: Final = 4 * 1024 * 1024
"""Bytes of the longest line that is read, its newline not counted. The same bound as an HTTP body."""

_OUTGOING_BUFFER: Final = 256
"""Messages that may wait for a client which does not read. Past it, handlers wait and refusals are dropped."""

_Inbox: TypeAlias = MemoryObjectSendStream[SessionMessage | Exception]
_Outbox: TypeAlias = MemoryObjectSendStream[SessionMessage]


async def serve_stdio(
    server: Server[Any],
    *,
    max_line: int = MAX_LINE,
    stdin_fd: int = 0,
    stdout_fd: int = 1,
    drain: float = 0.2,
    ended: asyncio.Event | None = None,
) -> None:
    """Serve ``server`` on a pair of descriptors until the client closes either of them, or ``ended`` is set.

    At the end, requests that were already read get ``drain`` seconds to be answered (a client that
    is a shell one-liner closes its end right after asking); then whatever still runs is cancelled and this
    returns. A line over ``max_line`` bytes, or one that is no JSON-RPC message, is answered with an error
    and the service goes on. Raises `PlatformError` where a descriptor is not open.
    """
    with private_stdio(stdin_fd, stdout_fd) as (source, sink):
        async with server.lifespan(server) as state:
            await _Conversation(server, state, sink).run(source, max_line, drain, ended)


class _Malformed(Exception):  # noqa: N818 - it carries the answer to a bad line; it is not a failure of ours
    """A line that is no JSON-RPC message, with the answer it is owed."""

    def __init__(self, rpc_code: int, message: str, request_id: RequestId | None = None) -> None:
        super().__init__(message)
        hint = "Send one JSON-RPC 2.0 object per line, in UTF-8, without a batch."
        self.answer = _refusal(rpc_code, ArgumentError(message, hint=hint), request_id)


def _refusal(rpc_code: int, error: NetworkToolsError, request_id: RequestId | None = None) -> JSONRPCError:
    detail = ErrorData(code=rpc_code, message=error.message, data=error.as_dict())
    return JSONRPCError(jsonrpc="2.0", id=request_id, error=detail)


def _too_long(max_line: int) -> NetworkToolsError:
    return ArgumentError(
        f"a line is longer than {max_line} bytes", code="body_too_large", hint=f"Send at most {max_line} bytes a line."
    )


class _Conversation:
    """One client: its lines in, the answers out, and the serving loops between them."""

    def __init__(self, server: Server[Any], state: Any, sink: int) -> None:
        self._server = server
        self._state = state
        self._sink = sink
        self._tasks: anyio.abc.TaskGroup = anyio.create_task_group()
        self._outbox, self._outgoing = anyio.create_memory_object_stream[SessionMessage](_OUTGOING_BUFFER)
        self._probe: _Inbox | None = None
        self._main: _Inbox | None = None
        self._revision_decided = False
        self._owed: set[RequestId] = set()
        self._input_ended = False
        self._all_answered = anyio.Event()

    async def run(self, source: int, max_line: int, drain: float, ended: asyncio.Event | None) -> None:
        try:
            async with self._tasks:
                self._tasks.start_soon(self._write)
                with anyio.CancelScope() as reading:
                    if ended is not None:
                        self._tasks.start_soon(self._stop, ended, reading)
                    await self._read(source, max_line)
                self._input_ended = True
                if self._owed:
                    with anyio.move_on_after(drain):
                        await self._all_answered.wait()
                self._tasks.cancel_scope.cancel()
        finally:
            for stream in (self._probe, self._main, self._outbox, self._outgoing):
                if stream is not None:
                    stream.close()

    async def _read(self, source: int, max_line: int) -> None:
        try:
            async for line in read_lines(source, max_line):
                await self._take(line, max_line)
        except OSError as exc:
            logger.warning("stdio.input_failed", message=str(exc))

    @staticmethod
    async def _stop(ended: asyncio.Event, reading: anyio.CancelScope) -> None:
        await ended.wait()
        reading.cancel()

    async def _take(self, line: bytes | None, max_line: int) -> None:
        if line is None:
            await self._refuse(_refusal(INVALID_REQUEST, _too_long(max_line)))
            return
        if not line.strip():
            return
        try:
            message = decode_line(line)
        except _Malformed as exc:
            await self._refuse(exc.answer)
            return
        if isinstance(message, JSONRPCRequest):
            self._owed.add(message.id)
        elif isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled":
            # A cancelled request is never answered.
            cancelled = (message.params or {}).get("requestId")
            if isinstance(cancelled, str | int):
                self._owed.discard(cancelled)
        await self._inbox_for(message).send(SessionMessage(message))

    def _inbox_for(self, message: JSONRPCMessage) -> _Inbox:
        """The serving loop that takes this message; probes go beside the conversation until it has begun."""
        if isinstance(message, JSONRPCRequest) and not self._revision_decided:
            if message.method == "server/discover":
                self._probe = self._probe or self._start_loop()
                return self._probe
            self._revision_decided = True
        self._main = self._main or self._start_loop()
        return self._main

    def _start_loop(self) -> _Inbox:
        inbox, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        self._tasks.start_soon(self._serve, incoming, self._outbox.clone())
        return inbox

    async def _serve(self, incoming: MemoryObjectReceiveStream[SessionMessage | Exception], outbox: _Outbox) -> None:
        await serve_dual_era_loop(
            self._server,
            incoming,
            outbox,
            lifespan_state=self._state,
            init_options=self._server.create_initialization_options(),
        )

    async def _refuse(self, answer: JSONRPCError) -> None:
        # The reader never waits for the writer: it must notice end of input although the client reads nothing.
        await anyio.lowlevel.checkpoint()
        try:
            self._outbox.send_nowait(SessionMessage(answer))
        except anyio.WouldBlock:
            logger.warning("stdio.refusal_dropped", message=answer.error.message)

    async def _write(self) -> None:
        async with self._outgoing:
            async for item in self._outgoing:
                message = item.message
                line = message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
                try:
                    await write_all(self._sink, line)
                except OSError as exc:
                    logger.info("stdio.output_closed", message=str(exc))
                    self._tasks.cancel_scope.cancel()
                    return
                if isinstance(message, JSONRPCResponse | JSONRPCError) and message.id is not None:
                    self._owed.discard(message.id)
                    if self._input_ended and not self._owed:
                        self._all_answered.set()


def decode_line(line: bytes) -> JSONRPCMessage:
    """Read one line as a JSON-RPC message; raises an internal error that carries the answer to a bad one.

    Stricter than the SDK's adapter, which reads a request with an unusable id as a notification and then
    answers nothing (JSON-RPC 2.0 section 4.1: whether ``id`` is there decides what it is).
    """
    try:
        message = jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValidationError as exc:
        raise _diagnose(line) from exc
    if isinstance(message, JSONRPCNotification) and "id" in pydantic_core.from_json(line):
        raise _diagnose(line)
    return message


def _diagnose(line: bytes) -> _Malformed:
    try:
        line.decode()
        value = pydantic_core.from_json(line)
    except UnicodeDecodeError as exc:
        return _Malformed(PARSE_ERROR, f"Parse error: byte {exc.start} is not valid UTF-8")
    except ValueError as exc:
        return _Malformed(PARSE_ERROR, f"Parse error: {exc}")
    if isinstance(value, list):
        return _Malformed(INVALID_REQUEST, "Invalid Request: batches are not part of MCP since 2025-06-18")
    if not isinstance(value, dict):
        return _Malformed(INVALID_REQUEST, f"Invalid Request: a {type(value).__name__} is not a JSON-RPC object")
    request_id = value.get("id")
    if "id" in value and (not isinstance(request_id, str | int) or isinstance(request_id, bool)):
        return _Malformed(INVALID_REQUEST, "Invalid Request: id must be a string or an integer")
    return _Malformed(INVALID_REQUEST, "Invalid Request: not a JSON-RPC 2.0 message", request_id)
