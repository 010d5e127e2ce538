"""MCP over standard input and output, in all protocol revisions.

Revision 2026-07-28 has no handshake. Clients of older revisions begin with ``initialize``. The SDK chooses the
revision by the first request. That locks out clients that first probe with ``server/discover`` and then send
``initialize`` (anthropics/claude-code#96183, github/copilot-cli#4888). Here a probe is answered separately, and the
first other request chooses the revision.
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
"""Bytes of the longest line that is read, without its newline. An HTTP body has the same limit."""

_OUTGOING_BUFFER: Final = 256
"""Messages that wait for a client that does not read. If there are more, handlers wait and refusals are dropped."""

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
    """Serve ``server`` on a pair of descriptors until the client closes one of them, or ``ended`` is set.

    Then requests that were already read have ``drain`` seconds to be answered, because a simple client such as a shell
    pipe closes its end right after the request. After that they are cancelled. A line of more than ``max_line`` bytes,
    or a line that is not a JSON-RPC message, is answered with an error, and serving goes on.

    Raises PlatformError if a descriptor is not open.
    """
    with private_stdio(stdin_fd, stdout_fd) as (source, sink):
        async with server.lifespan(server) as state:
            await _Conversation(server, state, sink).run(source, max_line, drain, ended)


class _Malformed(Exception):  # noqa: N818 - carries the answer to a bad line, not a failure of the server
    """A line that is not a JSON-RPC message, with the answer to it."""

    def __init__(self, rpc_code: int, message: str, request_id: RequestId | None = None) -> None:
        super().__init__(message)
        hint = "Send one JSON-RPC 2.0 object per line, in UTF-8. Batches are not supported."
        self.answer = _refusal(rpc_code, ArgumentError(message, hint=hint), request_id)


def _refusal(rpc_code: int, error: NetworkToolsError, request_id: RequestId | None = None) -> JSONRPCError:
    detail = ErrorData(code=rpc_code, message=error.message, data=error.as_dict())
    return JSONRPCError(jsonrpc="2.0", id=request_id, error=detail)


def _too_long(max_line: int) -> NetworkToolsError:
    return ArgumentError(
        f"A line is longer than {max_line} bytes.",
        code="body_too_large",
        hint=f"Send at most {max_line} bytes per line.",
    )


class _Conversation:
    """One client: reads its lines, writes the answers, and runs the serving loops between them."""

    def __init__(self, server: Server[Any], state: Any, sink: int) -> None:
        self._server = server
        self._state = state
        self._sink = sink
        self._tasks: anyio.abc.TaskGroup = anyio.create_task_group()
        self._outbox, self._outgoing = anyio.create_memory_object_stream[SessionMessage](_OUTGOING_BUFFER)
        self._probe: _Inbox | None = None
        self._main: _Inbox | None = None
        self._revision_decided = False
        self._unanswered: set[RequestId] = set()
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
                if self._unanswered:
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
            self._unanswered.add(message.id)
        elif isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled":
            # A cancelled request gets no answer.
            cancelled = (message.params or {}).get("requestId")
            if isinstance(cancelled, str | int):
                self._unanswered.discard(cancelled)
        await self._inbox_for(message).send(SessionMessage(message))

    def _inbox_for(self, message: JSONRPCMessage) -> _Inbox:
        """The serving loop for this message. Probes get their own until another request has chosen the revision."""
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
        # Reading never waits for writing, so that the end of input is noticed even if the client reads nothing.
        await anyio.lowlevel.checkpoint()
        try:
            self._outbox.send_nowait(SessionMessage(answer))
        except anyio.WouldBlock:
            logger.warning("stdio.refusal_dropped", message=f"The client does not read: {answer.error.message}")

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
                    self._unanswered.discard(message.id)
                    if self._input_ended and not self._unanswered:
                        self._all_answered.set()


def decode_line(line: bytes) -> JSONRPCMessage:
    """Read one line as a JSON-RPC message. For a bad line, raises an internal error that carries the answer.

    Stricter than the SDK's adapter, which takes a request with an invalid id for a notification and never answers it.
    By JSON-RPC 2.0 section 4.1, any message with an ``id`` is a request.
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
        return _Malformed(PARSE_ERROR, f"Parse error: byte {exc.start} is not valid UTF-8.")
    except ValueError as exc:
        return _Malformed(PARSE_ERROR, f"Parse error: {exc}.")
    if isinstance(value, list):
        return _Malformed(INVALID_REQUEST, "Invalid Request: MCP has no batches since 2025-06-18.")
    if not isinstance(value, dict):
        return _Malformed(INVALID_REQUEST, f"Invalid Request: a {type(value).__name__} is not a JSON-RPC object.")
    request_id = value.get("id")
    if "id" in value and (not isinstance(request_id, str | int) or isinstance(request_id, bool)):
        return _Malformed(INVALID_REQUEST, "Invalid Request: id must be a string or an integer.")
    return _Malformed(INVALID_REQUEST, "Invalid Request: this is not a JSON-RPC 2.0 message.", request_id)
