"""Errors of the HTTP interfaces as problem bodies (RFC 9457), over plain ASGI and on the OpenAPI page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from mcp_server.api.http.asgi import Message, Receive, Scope, Send
from mcp_server.errors import ERRORS, NetworkToolsError

if TYPE_CHECKING:
    from starlette.responses import JSONResponse

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
        "code": {"type": "string", "description": "A code of docs/errors.md", "enum": sorted(ERRORS)},
        "message": {"type": "string"},
        "hint": {"type": "string"},
        "retryable": {"type": "boolean", "description": "Whether the same call may succeed later"},
        "details": {"type": "object"},
        "result": {"type": "object", "description": "The partial result of a run that failed or was ended early"},
    },
}
"""The schema ``Problem`` of the OpenAPI page, which describes `problem_body`."""

COMMON_STATUSES: Final = (401, 403, 408, 413, 422, 429, 500, 503)
"""Statuses of the problems that every route behind the middleware may answer with."""

_RETRY: Final = {
    "Retry-After": {"description": "Seconds to wait, if known", "schema": {"type": "integer", "minimum": 1}}
}
_HEADERS: Final[dict[int, dict[str, Any]]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string", "pattern": "^Bearer"}}},
    403: {
        "WWW-Authenticate": {
            "description": "The scopes that the request needs, if the caller lacks one",
            "schema": {"type": "string", "pattern": '^Bearer error="insufficient_scope"'},
        }
    },
    408: _RETRY,
    429: _RETRY,
    503: _RETRY,
}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems of a route, by status, for FastAPI's ``responses``."""
    return {
        status: {
            "description": _title(status),
            "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            **({"headers": _HEADERS[status]} if status in _HEADERS else {}),
        }
        for status in statuses
    }


def problem_body(error: NetworkToolsError) -> dict[str, Any]:
    """The body of an error: ``type``, ``title`` and ``status`` of RFC 9457, and `NetworkToolsError.as_dict`."""
    status = error.spec.http
    return {"type": "about:blank", "title": _title(status), "status": status, **error.as_dict()}


def _title(status: int) -> str:
    # No standard defines 499, which nginx uses for a client that closed its connection.
    return HTTPStatus(status).phrase if status != 499 else "Client Closed Request"


def retry_header(error: NetworkToolsError) -> dict[str, str]:
    """The header ``Retry-After`` in seconds (RFC 9110 section 10.2.3), if the error says when to try again."""
    wait = error.details.get("retry_after")
    return {} if wait is None else {"Retry-After": str(wait)}


def problem_response(
    error: NetworkToolsError, extra: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The answer of a REST route to ``error``. ``extra`` are further fields of the body."""
    from starlette.responses import JSONResponse

    return JSONResponse(
        {**problem_body(error), **(extra or {})},
        status_code=error.spec.http,
        media_type=PROBLEM_JSON,
        headers=retry_header(error) | dict(headers or {}),
    )


async def send_problem(
    scope: Scope, receive: Receive, send: Send, error: NetworkToolsError, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Answer the request in ``scope`` with the HTTP status of ``error`` and its `problem_body`. Closes a websocket.

    The answer is sent at once and is never cached. The rest of the request is then read and discarded for a moment,
    because closing a connection with unread data resets it, and the client may lose the answer (RFC 9112 section 9.6).
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
