"""Fetching one small document from a server that is not trusted further than its certificate."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

from mcp_server.errors import PlatformError

FETCH_SEC: Final = 5.0
"""Seconds that all of it may take: name, connection, certificate, answer."""


async def fetch(url: str, limit: int) -> bytes:
    """The body of ``url``, of ``limit`` bytes at most.

    No proxy and no netrc of the environment is used, no redirect followed, and no compressed answer taken, which could
    be larger than it looks. Raises PlatformError ``identity_unavailable`` with the reason.
    """
    try:
        async with asyncio.timeout(FETCH_SEC):
            return await _fetch(url, limit)
    except TimeoutError:
        raise _unavailable(f"no whole answer within {FETCH_SEC:g} s") from None


async def _fetch(url: str, limit: int) -> bytes:
    import httpx2

    # The system's certificates, and what SSL_CERT_FILE names: an issuer in a private network has a private root.
    trusted = await asyncio.to_thread(ssl.create_default_context) if url.startswith("https:") else True
    try:
        async with (
            httpx2.AsyncClient(trust_env=False, follow_redirects=False, verify=trusted, timeout=FETCH_SEC) as client,
            client.stream("GET", url, headers={"accept": "application/json", "accept-encoding": "identity"}) as answer,
        ):
            if answer.status_code != 200:
                raise _unavailable(f"the answer was {answer.status_code}")
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise _unavailable("the answer is compressed, which was not asked for")
            body = bytearray()
            async for piece in answer.aiter_raw():
                body += piece
                if len(body) > limit:
                    raise _unavailable(f"the answer has more than {limit} bytes")
            return bytes(body)
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise _unavailable(f"{type(error).__name__}: {str(error)[:200]}") from error


def _unavailable(why: str) -> PlatformError:
    return PlatformError(why, code="identity_unavailable")
