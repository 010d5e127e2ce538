"""Send to sockets from inside a namespace, so that the tests see what a host on that network sees.

Standard input: JSON ``{"connect": [[address, port]...], "greet": [[address, port]...], "tls": [[address, port]...],
"ask": [[address, port, hex]...], "seconds": 4}``. Standard output has lists in the same order: for ``connect``
[outcome, seconds] with open, refused, silent or unreachable; for ``greet`` the first bytes in hex; for ``tls`` the
certificate in hex; for ``ask`` the response datagram in hex, or null.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any


async def connect(address: str, port: int, seconds: float) -> tuple[str, float]:
    """Connect once and return the outcome and the seconds."""
    start = time.monotonic()
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(address, port)
        writer.close()
        outcome = "open"
    except TimeoutError:
        outcome = "silent"
    except ConnectionRefusedError:
        outcome = "refused"
    except OSError:
        outcome = "unreachable"
    return outcome, time.monotonic() - start


async def greet(address: str, port: int, seconds: float) -> str:
    """Return the first bytes that a port sends without a request, at most 64 KiB."""
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection(address, port)
        said = await reader.read(65536)
    writer.close()
    return said.hex()


async def certificate(address: str, port: int, seconds: float) -> str:
    """Return the certificate of a TLS port without verifying it; old protocol versions are accepted too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with asyncio.timeout(seconds):
        _, writer = await asyncio.open_connection(address, port, ssl=context)
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return shown.hex()


async def ask(address: str, port: int, question: str, seconds: float) -> str | None:
    """Send one datagram and wait for a response from any port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendto(sender, bytes.fromhex(question), (address, port))
        try:
            async with asyncio.timeout(seconds):
                answer, _ = await loop.sock_recvfrom(sender, 4096)
        except (TimeoutError, OSError):
            return None
        return answer.hex()


async def main() -> None:
    """Run all requested probes at the same time."""
    order: dict[str, Any] = json.load(sys.stdin)
    seconds = order.get("seconds", 4.0)
    steps: dict[str, Callable[..., Awaitable[Any]]] = {
        "connect": connect,
        "greet": greet,
        "tls": certificate,
        "ask": ask,
    }
    results = {
        name: await asyncio.gather(*(step(*arguments, seconds) for arguments in order.get(name, [])))
        for name, step in steps.items()
    }
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
