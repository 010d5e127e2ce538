"""A real browser reads the events of a run: with EventSource without a token, with fetch and a token."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import Page, browser
from tests.support.interfaces import environment, http_server, rest_client

QUICK = {"target": "127.0.0.1", "mode": "ports", "ports": "1-3"}
PAGE = (Path(__file__).resolve().parents[2] / "docs/events.md").read_text()
DOCUMENTED = re.findall(r"```js\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    async with browser(tmp_path / "browser") as opened:
        yield opened


async def scan(base: str, token: str) -> str:
    async with rest_client(base, token or "none-is-asked-for") as client:
        answer = await client.post("/tools/nmap/execute", json=QUICK)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["run_id"])


class Relay:
    """Forwards connections to a server, and can break them all."""

    def __init__(self) -> None:
        self.target = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._pumps: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            self.lose()
            await asyncio.gather(*self._pumps, return_exceptions=True)

    def lose(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers += [writer, onward]
        for source, sink in ((reader, onward), (there, writer)):
            self._pumps.add(asyncio.create_task(self._pump(source, sink)))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


def of_run(received: list[dict[str, Any]], run_id: str) -> list[str]:
    return [each["kind"] for each in received if each.get("run_id") == run_id and each["kind"] != "run.progress"]


WHOLE = ["run.accepted", "run.started", "run.ended"]
UNTIL = "new Promise((go) => { const look = () => %s ? go() : setTimeout(look, 20); look(); })"


async def test_an_event_source_gets_missed_events_after_a_lost_connection(page: Page, tmp_path: Path) -> None:
    relay = Relay()
    async with relay.listening() as authority:
        env = environment(tmp_path / "state", MCP_SERVER_AUTH="none", MCP_SERVER_ALLOWED_HOSTS=authority)
        with http_server(env) as (base, token, _):
            relay.target = int(base.rpartition(":")[2])
            await page.open(f"http://{authority}/")
            await page.run("""
                window.received = []; window.opened = 0; window.lost = 0;
                window.source = new EventSource('/events?kind=run');
                source.onopen = () => { opened += 1; };
                source.onerror = () => { lost += 1; };
                for (const kind of ['run.accepted', 'run.started', 'run.ended', 'lagged']) {
                  source.addEventListener(kind, ({data, lastEventId: id}) => received.push({...JSON.parse(data), id}));
                }
            """)
            await page.run(UNTIL % "opened")
            first = await scan(f"http://{authority}", token)
            await page.run(UNTIL % "received.some((event) => event.kind === 'run.ended')")
            relay.lose()
            await page.run(UNTIL % "lost")
            second = await scan(f"http://{authority}", token)
            await page.run(UNTIL % "opened > 1 && received.filter((event) => event.kind === 'run.ended').length > 1")
            received = await page.run("received")
    assert of_run(received, first) == of_run(received, second) == WHOLE
    assert len({event["id"] for event in received}) == len(received) == 6, "an event came twice or was lost"
    assert {event["outcome"] for event in received if event["kind"] == "run.ended"} == {"completed"}


async def test_a_page_reads_events_with_a_token_that_is_in_no_url(page: Page, tmp_path: Path) -> None:
    (program,) = [each for each in DOCUMENTED if "fetch(" in each]
    with http_server(environment(tmp_path / "state")) as (base, token, _):
        # The page itself is refused, but has the origin of the server.
        await page.open(f"{base}/")
        assert await page.run("fetch('/events').then((response) => response.status)") == 401
        # The documented program, with its output kept.
        await page.run(f"""
            window.received = []; window.ended = false; window.opened = false;
            (async () => {{
              const token = {json.dumps(token)};
              let lastId = '';
              const console = {{log: (kind, data) => received.push(data)}};
              const fetch = async (...all) => {{
                const response = await window.fetch(...all);
                opened = response.status === 200;
                return response;
              }};
              {program}
              ended = true;
            }})();
            null
        """)
        await page.run(UNTIL % "opened")
        run_id = await scan(base, token)
        await page.run(UNTIL % "received.some((event) => event.kind === 'run.ended')")
        assert of_run(await page.run("received"), run_id) == WHOLE
        assert token not in await page.run("JSON.stringify(performance.getEntries().map((entry) => entry.name))")
    assert await page.run(f"{UNTIL % 'ended'}.then(() => ended)"), "the stream ends with the server"
