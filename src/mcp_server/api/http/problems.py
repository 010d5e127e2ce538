"""Refusals of the HTTP interfaces, written before any framework is involved: RFC 9457 problem bodies over plain ASGI."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from mcp_server.errors import ERRORS, NetworkToolsError

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
"""The shapes of the ASGI specification, spelled out so that a guard need not import a framework."""

PROBLEM_JSON: Final = "application/problem+json"

_CLOSE_POLICY_VIOLATION: Final = 1008  # RFC 6455 section 7.4.1

_DISCARD_SEC: Final = 2.0
_DISCARD_BYTES: Final = 64 * 1024 * 1024


PROBLEM_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["type", "title", "status", "code", "message", "hint", "retryable"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "A row of the error table", "enum": sorted(ERRORS)},
        "message": {"type": "string"},
        "hint": {"type": "string"},
        "retryable": {"type": "boolean", "description": "Whether the same call may succeed later"},
        "details": {"type": "object"},
        "result": {"type": "object", "description": "What a run that failed or was cut short still gave"},
    },
}
"""`problem_body` on the OpenAPI page, where it is the schema ``Problem``."""

GUARDED: Final = (401, 403, 408, 413, 422, 429, 500, 503)
"""Problems that every route behind the guards may answer with."""

_RETRY: Final = {
    "Retry-After": {"description": "Seconds to wait, where known", "schema": {"type": "integer", "minimum": 1}}
}
_HEADERS: Final[dict[int, dict[str, Any]]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string", "pattern": "^Bearer"}}},
    403: {
        "WWW-Authenticate": {
            "description": "The scopes that would open it, where the caller lacks one",
            "schema": {"type": "string", "pattern": '^Bearer error="insufficient_scope"'},
        }
    },
    408: _RETRY,
    429: _RETRY,
    503: _RETRY,
}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems of a route as FastAPI's ``responses`` takes them, by status."""
    return {
        status: {
            "description": _title(status),
            "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            **({"headers": _HEADERS[status]} if status in _HEADERS else {}),
        }
        for status in statuses
    }


def problem_body(error: NetworkToolsError) -> dict[str, Any]:
    """The body of an error: RFC 9457's ``type``, ``title`` and ``status``, and code, message, hint, retryable."""
    status = error.spec.http
    return {"type": "about:blank", "title": _title(status), "status": status, **error.as_dict()}


def _title(status: int) -> str:
    # 499 (client closed request) is nobody's standard, and has no phrase.
    return HTTPStatus(status).phrase if status != 499 else "Client Closed Request"


def retry_header(error: NetworkToolsError) -> dict[str, str]:
    """``Retry-After`` in whole seconds (RFC 9110 section 10.2.3), where the error says when to come back."""
    wait = error.details.get("retry_after")
    return {} if wait is None else {"Retry-After": str(wait)}


async def send_problem(
    scope: Scope, receive: Receive, send: Send, error: NetworkToolsError, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Answer the request in ``scope`` with ``error``: its HTTP status, and `problem_body` as the body.

    A websocket is closed instead. The answer goes out at once and is never cached; what the caller still sends is
    thrown away for a moment, because closing on unread data would reset the connection and take the answer with it
    (RFC 9112 section 9.6).
    """
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": _CLOSE_POLICY_VIOLATION, "reason": error.code})
        return
    body = json.dumps(problem_body(error)).encode()
    await send(
        {
            "type": "http.response.start",
            "status": error.spec.http,
            "headers": [
                (b"content-type", PROBLEM_JSON.encode()),
                (b"content-length", str(len(body)).encode()),
                (b"cache-control", b"no-store"),
                *((name.lower().encode(), value.encode()) for name, value in retry_header(error).items()),
                *headers,
            ],
        }
    )
    await send(
        {"type": "http.response.body", "body": b"" if scope.get("method") == "HEAD" else body, "more_body": True}
    )
    await _discard_body(receive)
    await send({"type": "http.response.body", "body": b""})


async def _discard_body(receive: Receive) -> None:
    discarded = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_SEC):
            message: Message = {"more_body": True}
            while message.get("more_body", False) and discarded < _DISCARD_BYTES:
                message = await receive()
                discarded += len(message.get("body", b""))


def header_values(scope: Scope, name: bytes) -> list[bytes]:
    """Every value of the header ``name`` (lower case); the list shows duplicates that a mapping would fold away."""
    return [value for key, value in scope["headers"] if key == name]
