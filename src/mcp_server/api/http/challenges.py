"""Challenges: what a 401 or 403 says about the credential that would do (RFC 6750 section 3, RFC 9728 section 5.1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from mcp_server.api.http.problems import Scope
from mcp_server.model.access import Permission

_KEY: Final = "mcp_network_tools.resource_metadata"


def with_metadata_url(scope: Scope, url: str | None) -> dict[str, Any]:
    """The scope for the apps behind, which says where the protected-resource metadata is; None where there is none."""
    return {**scope, _KEY: url}


def challenge(scope: Scope, error: str | None, needed: Iterable[Permission]) -> tuple[bytes, bytes]:
    """The ``WWW-Authenticate`` header of a refusal of the request in ``scope``.

    ``error`` is ``invalid_token``, ``insufficient_scope`` (a 403 that more scopes would open), or None where no
    credential was sent. ``needed`` are the permissions that the request needs, no more. All values are words of this
    project or the owner's, never the caller's, so that none needs quoting.
    """
    scopes = " ".join(sorted(permission.value for permission in needed))
    parts = {"error": error, "scope": scopes, "resource_metadata": scope.get(_KEY)}
    said = ", ".join(f'{name}="{value}"' for name, value in parts.items() if value)
    return b"www-authenticate", f"Bearer {said}".rstrip().encode("ascii")
