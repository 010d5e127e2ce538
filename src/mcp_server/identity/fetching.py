"""Fetch one small document over HTTP, with limits on its size and on the time that it takes."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

from mcp_server.errors import PlatformError

FETCH_SEC: Final = 5.0
"""Seconds for the whole request: name, connection, certificate and response."""


async def fetch(url: str, limit: int) -> bytes:
    """Return the body of ``url``, at most ``limit`` bytes.

    Proxies and netrc of the environment are not used, redirects are not followed, and compressed responses are refused,
    because they could be larger than they look. Raises PlatformError ``identity_unavailable`` with the reason.
    """
    try:
        async with asyncio.timeout(FETCH_SEC):
            return await _fetch(url, limit)
    except TimeoutError:
        raise _unavailable(f"There was no complete response within {FETCH_SEC:g} s.") from None


async def _fetch(url: str, limit: int) -> bytes:
    import httpx2

    # The certificates of the system and of SSL_CERT_FILE: an issuer in a private network has a private root.
    trusted = await asyncio.to_thread(ssl.create_default_context) if url.startswith("https:") else True
    try:
        async with (
            httpx2.AsyncClient(trust_env=False, follow_redirects=False, verify=trusted, timeout=FETCH_SEC) as client,
            client.stream("GET", url, headers={"accept": "application/json", "accept-encoding": "identity"}) as answer,
        ):
            if answer.status_code != 200:
                raise _unavailable(f"The status of the response was {answer.status_code}.")
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise _unavailable("The response is compressed although the request did not allow it.")
            body = bytearray()
            async for piece in answer.aiter_raw():
                body += piece
                if len(body) > limit:
                    raise _unavailable(f"The response has more than {limit} bytes.")
            return bytes(body)
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise _unavailable(f"{type(error).__name__}: {str(error)[:200].rstrip('.')}.") from error


def _unavailable(why: str) -> PlatformError:
    return PlatformError(why, code="identity_unavailable")
