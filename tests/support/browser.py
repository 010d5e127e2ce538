"""Drive a real headless Chromium over two pipes with the DevTools protocol; it needs only the browser."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

_PATIENCE: Final = 30.0
_FLAGS: Final = (
    "--headless",
    "--no-sandbox",  # tests run as root, for whom Chromium has no sandbox; all pages are those of this project
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    # Every name except loopback resolves to nothing, so that the browser cannot reach another machine.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost",
)


class Page:
    """One page of a browser. Commands are those of the DevTools protocol; a message is JSON followed by a NUL byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}

    async def open(self, url: str) -> None:
        """Open ``url`` in a new page and wait until it has loaded."""
        if not self._session:
            target = await self._command("Target.createTarget", url="about:blank")
            attached = await self._command("Target.attachToTarget", targetId=target["targetId"], flatten=True)
            self._session = {"sessionId": attached["sessionId"]}
            await self._command("Page.enable")
        await self._command("Page.navigate", url=url)
        await self.run(
            "new Promise((go) => document.readyState === 'complete' ? go() : addEventListener('load', () => go()))"
        )

    async def run(self, program: str) -> Any:
        """Return the value of an expression in the page, awaited if it is a promise.

        Raise AssertionError if it throws.
        """
        answer = await self._command(
            "Runtime.evaluate", expression=program, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, json.dumps(answer["exceptionDetails"])[:2000]
        return answer["result"].get("value")

    async def _command(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        self._writer.write(json.dumps(message).encode() + b"\0")
        await self._writer.drain()
        async with asyncio.timeout(_PATIENCE):
            while True:
                answer = json.loads((await self._reader.readuntil(b"\0"))[:-1])
                if answer.get("id") == number:
                    assert "error" not in answer, answer
                    result: dict[str, Any] = answer["result"]
                    return result


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Page]:
    """Start Chromium with an empty ``profile`` folder, and end it with all its processes."""
    program = shutil.which("chromium")
    assert program, "chromium is missing: run scripts/system-packages.sh test"
    loop = asyncio.get_running_loop()
    commands, to_browser = os.pipe()
    from_browser, answers = os.pipe()
    # The browser reads from descriptor 3 and writes to 4. The copies have higher numbers, so that neither is
    # overwritten.
    high = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in (commands, answers)]
    environment = {**os.environ, "HOME": str(profile), "XDG_RUNTIME_DIR": str(profile)}
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        f'exec "$@" 3<&{high[0]} 4>&{high[1]}',
        "bash",
        program,
        *_FLAGS,
        f"--user-data-dir={profile / 'profile'}",
        "--remote-debugging-pipe",
        pass_fds=high,
        env=environment,
        start_new_session=True,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    for each in (commands, answers, *high):
        os.close(each)
    reader = asyncio.StreamReader(limit=1 << 24)
    incoming, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(from_browser, "rb")
    )
    outgoing, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(to_browser, "wb"))
    try:
        yield Page(reader, asyncio.StreamWriter(outgoing, protocol, reader, loop))
    finally:
        outgoing.close()
        incoming.close()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
