"""Protected-resource metadata (RFC 9728): where a client that has no token learns whom to ask for one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from mcp_server.api.http.problems import Scope, Send
from mcp_server.model.access import Permission

if TYPE_CHECKING:
    from mcp_server.config.sections import AuthConfig

WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"
PATHS: Final = frozenset({WELL_KNOWN, f"{WELL_KNOWN}/mcp"})
"""The second is that of the MCP endpoint, which clients ask first (MCP 2025-11-25, authorization)."""


def metadata_url(settings: AuthConfig) -> str | None:
    """Where the metadata are, as clients know this server; None without an issuer."""
    if not settings.issuer:
        return None
    parts = urlsplit(settings.audience)
    path = parts.path.rstrip("/")
    # Behind a proxy that puts a path of its own before ours, the proxy has to lead it here.
    return f"{parts.scheme}://{parts.netloc}{WELL_KNOWN}{path}"


def metadata(settings: AuthConfig) -> dict[str, Any]:
    """The document of RFC 9728 section 2."""
    return {
        "resource": settings.audience,
        "authorization_servers": [settings.issuer],
        "scopes_supported": [permission.value for permission in Permission],
        "bearer_methods_supported": ["header"],
        "resource_name": "MCP Network Tools Server",
    }


def serves_metadata(scope: Scope, settings: AuthConfig) -> bool:
    """Whether the request asks for the metadata, and there are any."""
    return bool(settings.issuer) and scope.get("method") in {"GET", "HEAD"} and scope["path"] in PATHS


async def send_metadata(scope: Scope, send: Send, settings: AuthConfig) -> None:
    """Answer with the document."""
    body = json.dumps(metadata(settings)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"max-age=300"),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
