"""Keys and tokens of a real issuer with an actors file: the limits of each actor over HTTP."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mcp_server.api.http.application import MAX_SESSIONS
from mcp_server.api.mcp.tool_lists import MAX_STREAMS, MOST_OF_ONE
from mcp_server.observability.events import MAX_SUBSCRIBERS
from tests.support import cli
from tests.support.interfaces import environment, http_server, log_records
from tests.support.issuer import RESOURCE, Issuer, Key, claims, running_issuer
from tests.support.mcp_wire import MODERN_META, initialize, modern, request
from tests.support.several_callers import Mcp, Rest, coming_as
from tests.support.streams import follow

SIGNING = Key.make("first")
ACTORS = """
version: 1
actors:
  - {name: robot, key: robot, networks: [127.0.8.0/29], tools: [nmap]}
  - {name: person, subject: scanner, networks: [127.0.9.0/29]}
  - {name: demoted, subject: boss, role: viewer}
  - {name: promoted, key: promoted, role: admin}
  - {name: two interfaces, key: both, subject: watcher, role: operator}
  - {name: slow, key: slow, calls_per_minute: 2}
  - {name: frugal, key: frugal, packets_per_hour: 3}
  - {name: toolless, key: toolless, tools: []}
"""
KEYS = {
    "robot": "operator", "promoted": "viewer", "both": "viewer", "slow": "operator", "frugal": "operator",
    "toolless": "operator", "unlisted": "admin",
}  # fmt: skip
INSIDE = {"robot": "127.0.8.1", "person": "127.0.9.1"}
INTERFACES = ("rest", "modern", "legacy")


@dataclass
class Served:
    """A running server, its issuer, and the credentials by the names of these tests."""

    base: str
    folder: Path
    env: dict[str, str]
    issuer: Issuer
    credentials: dict[str, str]
    ids: dict[str, str]

    def keys(self, *words: str) -> Any:
        done = cli.run("keys", *words, "--json", env=self.env)
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout)

    def make(self, name: str, role: str) -> None:
        made = self.keys("create", name, "--role", role)
        self.credentials[name], self.ids[name] = made["key"], made["id"]

    @asynccontextmanager
    async def interface(self, kind: str, who: str) -> AsyncIterator[Rest | Mcp]:
        async with coming_as(self.base, self.credentials[who]) as client:
            if kind == "rest":
                yield Rest(client)
                return
            interface = Mcp(client, modern=kind == "modern")
            await interface.open()
            yield interface

    def ask(self, who: str, method: str, path: str, **options: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.credentials[who]}"} | options.pop("headers", {})
        return httpx2.request(method, self.base + path, headers=headers, timeout=60, **options)

    def rewrite(self, text: str) -> None:
        (self.folder / "actors.yaml").write_text(text)
        assert self.ask("owner", "POST", "/admin/reload").json()["result"] == "applied"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("bounds")
    (folder / "actors.yaml").write_text(ACTORS)
    (folder / "actors.yaml").chmod(0o600)
    with running_issuer(SIGNING) as issuer:
        env = environment(
            folder / "state",
            MCP_AUTH_ACTORS_FILE=str(folder / "actors.yaml"),
            MCP_AUTH_ISSUER=issuer.url,
            MCP_AUTH_AUDIENCE=RESOURCE,
            MCP_AUTH_JWKS_URL=issuer.jwks_url,
            MCP_AUTH_ROLE_CLAIM="roles",
            MCP_SECURITY_ALLOWED_TARGETS="loopback",
            MCP_SECURITY_ALLOW_INTRUSIVE="true",
        )
        made = Served("", folder, env, issuer, {}, {})
        for name, role in KEYS.items():
            made.make(name, role)
        for name, client in (("person", "scanner"), ("demoted", "boss"), ("watcher", "watcher")):
            made.credentials[name] = issuer.token(client)
        made.credentials["little"] = issuer.token("scanner", "tools:read")
        made.credentials["owner"] = ""
        with http_server(env) as (base, token, _):
            made.base, made.credentials["owner"] = base, token
            yield made


# ok, or the error code, of an nmap call for one port.
CALLS = [
    ("robot", "127.0.8.1", "ok"),
    ("robot", "127.0.8.9", "target_out_of_scope"),
    ("robot", "127.0.8.0/28", "target_out_of_scope"),
    ("person", "127.0.9.1", "ok"),
    ("person", "127.0.8.1", "target_out_of_scope"),
    ("little", "127.0.9.1", "insufficient_scope"),  # the same subject, with a token of fewer scopes
    ("demoted", "127.0.0.1", "insufficient_scope"),  # the token says admin, the file says viewer
    ("promoted", "127.0.0.1", "ok"),  # the key says viewer, the file says admin
    ("both", "127.0.0.1", "ok"),
    ("watcher", "127.0.0.1", "ok"),
    ("toolless", "127.0.0.1", "unknown_tool"),
    ("unlisted", "127.0.0.1", "insufficient_scope"),  # the key says admin, and the file does not name it
    ("owner", "127.0.0.1", "ok"),
    ("owner", "10.0.0.1", "target_out_of_scope"),
]


@pytest.mark.parametrize("kind", INTERFACES)
async def test_every_credential_has_the_limits_of_its_actor(served: Served, kind: str) -> None:
    found = []
    for who, target, _ in CALLS:
        async with served.interface(kind, who) as interface:
            arguments = {"target": target, "ports": "1"}
            answer = (
                await interface.ask("POST", "/tools/nmap/execute", json=arguments)
                if isinstance(interface, Rest)
                else await interface.ask("tools/call", name="nmap", arguments=arguments)
            )
        found.append((who, target, answer.outcome))
    assert found == CALLS


def test_calls_and_packets_are_counted_per_actor(served: Served) -> None:
    def call(who: str, ports: str = "1") -> httpx2.Response:
        return served.ask(who, "POST", "/tools/nmap/execute", json={"target": "127.0.0.1", "ports": ports})

    answers = [call("slow") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["code"] == "rate_limited"
    over = call("frugal", "1-50")
    assert (over.status_code, over.json()["code"]) == (429, "budget_exceeded")
    assert over.json()["details"]["limit"] == 3
    assert call("both").status_code == 200, "the limit of one actor must not count for another"
    for answer in (answers[2], over):
        assert not re.search("robot|person|scanner|owner|token", answer.text)


# y: answered, n: 403. The table is written by hand, independent of `ROUTES` in the sources.
ROUTES = """
                                    viewer operator admin
GET  /                              y      y        y
GET  /tools                         y      y        y
GET  /scope                         y      y        y
GET  /scope?target=127.0.0.1&tool=nmap y   y        y
GET  /health                        y      y        y
GET  /metrics                       y      y        y
GET  /docs                          y      y        y
HEAD /docs                          y      y        y
GET  /openapi.json                  y      y        y
GET  /runs                          y      y        y
GET  /runs/                         y      y        y
GET  /runs/r_0                      y      y        y
GET  /runs/r_0/raw                  y      y        y
GET  /config                        n      n        y
HEAD /config                        n      n        y
GET  /config/                       n      n        y
GET  /%63onfig                      n      n        y
GET  /admin/tools                   n      n        y
GET  /admin/breakers                n      n        y
POST /admin/reload                  n      n        y
POST /admin/tools/nmap/enable       n      n        y
POST /admin/tools/nmap/nothing      n      n        y
POST /admin/breakers/nmap/reset     n      n        y
"""
METHODS = """
                          viewer operator admin
initialize                y      y        y
ping                      y      y        y
tools/list                y      y        y
resources/list            y      y        y
resources/templates/list  y      y        y
resources/read            y      y        y
completion/complete       y      y        y
prompts/list              y      y        y
logging/setLevel          y      y        y
nonsense                  y      y        y
"""
ROLES = ("viewer", "operator", "admin")


def rows(table: str) -> list[tuple[list[str], str]]:
    words = [line.split() for line in table.strip().splitlines()[1:]]
    return [(each[:-3], "".join(each[-3:])) for each in words]


def test_each_role_may_use_its_routes(served: Served) -> None:
    others = "version: 1\nactors: []\nothers: {}\n"
    served.rewrite(others)
    try:
        for role in ROLES:
            served.make(f"plain-{role}", role)
        for (method, path), expected in rows(ROUTES):
            statuses = [served.ask(f"plain-{role}", method, path).status_code for role in ROLES]
            assert "".join("n" if status == 403 else "y" for status in statuses) == expected, (method, path, statuses)
        for (method,), expected in rows(METHODS):
            message = initialize(1) if method == "initialize" else request(1, method, uri="run://r_0")
            accept = {"Accept": "application/json, text/event-stream"}
            statuses = [
                served.ask(f"plain-{role}", "POST", "/mcp", json=message, headers=accept).status_code for role in ROLES
            ]
            assert "".join("n" if status == 403 else "y" for status in statuses) == expected, (method, statuses)
    finally:
        served.rewrite(ACTORS)


@pytest.mark.parametrize("path", ["/config", "/admin/tools", "/admin/breakers", "/runs", "/tools", "/mcp"])
def test_a_line_break_after_a_path_is_refused(served: Served, path: str) -> None:
    """The ``$`` in the router's expressions ignores the line break, so the middleware would see another path."""
    for who in ("demoted", "unlisted", "owner"):
        for method in ("GET", "POST"):
            answer = served.ask(who, method, f"{path}%0A")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert served.ask("demoted", "POST", "/admin/reload%0A").status_code == 404


MESSAGE = json.dumps(request(2, "tools/list", _meta=MODERN_META))
READ_DIFFERENTLY = {
    "plain": MESSAGE.encode(),
    "a lone surrogate": (MESSAGE[:-1] + r',"x":"\ud800"}').encode(),
    "UTF-16": MESSAGE.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + MESSAGE.encode(),
    "deep": (MESSAGE[:-1] + ',"x":' + "[" * 500 + "]" * 500 + "}").encode(),
    "a method twice": ('{"method":"ping",' + MESSAGE[1:]).encode(),
    "escaped": MESSAGE.replace("tools/list", r"\u0074ools\/list").encode(),
}


@pytest.mark.parametrize("form", READ_DIFFERENTLY)
def test_an_ambiguous_json_message_is_refused(served: Served, form: str) -> None:
    headers = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/list", "Content-Type": "application/json"}
    headers |= {"Accept": "application/json, text/event-stream"}
    given = READ_DIFFERENTLY[form]
    answer = served.ask("unlisted", "POST", "/mcp", content=given, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")
    assert "nmap" in served.ask("owner", "POST", "/mcp", content=given, headers=headers).text, (
        "the SDK must read the message as a call"
    )


@pytest.mark.parametrize("kind", INTERFACES)
async def test_runs_are_visible_to_their_own_actor_only(served: Served, kind: str) -> None:
    """An API key and an access token are different actors, even if they belong to the same person."""
    ids = {}
    for who in ("robot", "person"):
        done = served.ask(who, "POST", "/tools/nmap/execute", json={"target": INSIDE[who], "ports": "1"})
        assert done.status_code == 200, done.text
        ids[who] = served.ask(who, "GET", "/runs?limit=1").json()["runs"][0]["id"]
    ghost = "r_" + "0" * 24

    async def read(interface: Rest | Mcp, run: str, raw: str) -> Any:
        if isinstance(interface, Rest):
            answer = await interface.ask("GET", f"/runs/{run}{raw}")
        else:
            answer = await interface.ask("resources/read", uri=f"run://{run}{raw}")
        heads = sorted((name, value) for name, value in answer.headers.items() if name != "date")
        return answer.outcome, answer.status, heads, answer.content.replace(run.encode(), b"ID")

    for who, other in (("robot", "person"), ("person", "robot"), ("both", "robot")):
        async with served.interface(kind, who) as interface:
            for raw in ("", "/raw"):
                assert await read(interface, ids[other], raw) == await read(interface, ghost, raw)
                assert (await read(interface, ghost, raw))[0] == "unknown_run"
                if who in ids:
                    assert (await read(interface, ids[who], raw))[0] == "ok"
            if not isinstance(interface, Rest):
                listed = (await interface.ask("resources/list")).content.decode()
                assert ids[other] not in listed
                assert who not in ids or ids[who] in listed
        listed = served.ask(who, "GET", "/runs?limit=1000").json()
        assert ids[other] not in json.dumps(listed)
        assert listed["total"] == len(listed["runs"])
    async with served.interface(kind, "promoted") as interface:
        assert [(await read(interface, run, ""))[0] for run in ids.values()] == ["ok", "ok"]


async def test_a_stream_replays_only_events_of_its_reader(served: Served) -> None:
    for who, target in INSIDE.items():
        served.ask(who, "POST", "/tools/nmap/execute", json={"target": target, "ports": "1"})
    async with AsyncExitStack() as stack:
        actors_seen = {}
        for who, name in (("robot", "key:robot"), ("person", "sub:scanner")):
            head = {"Last-Event-ID": "x-0"}
            stream = await stack.enter_async_context(
                follow(served.base, served.credentials[who], "?kind=run", headers=head)
            )
            newest = served.ask(who, "GET", "/runs?limit=1").json()["runs"][0]["id"]
            events = [await stream.until("run.accepted")]
            while events[-1].kind != "run.ended" or events[-1].data["run_id"] != newest:
                event = await stream.next()
                assert event is not None
                events.append(event)
            actors_seen[name] = {each.data["actor"] for each in events if "actor" in each.data}
            own = {each["id"] for each in served.ask(who, "GET", "/runs?limit=1000").json()["runs"]}
            assert {each.data["run_id"] for each in events} <= own
        assert actors_seen == {name: {name} for name in actors_seen}


async def test_a_removed_permission_is_refused_at_the_next_request(served: Served) -> None:
    served.make("passing", "operator")
    served.rewrite(f"{ACTORS}others: {{}}\n")
    async with AsyncExitStack() as stack:
        interfaces = [await stack.enter_async_context(served.interface(kind, "passing")) for kind in INTERFACES]

        async def listed() -> list[int]:
            asked = [
                interface.ask("GET", "/tools") if isinstance(interface, Rest) else interface.ask("tools/list")
                for interface in interfaces
            ]
            return [(await each).status for each in asked]

        assert await listed() == [200] * 3
        served.rewrite(ACTORS)
        assert await listed() == [403] * 3, "the file does not name the actor any more"
        served.rewrite(f"{ACTORS}  - {{name: passing, key: passing, tools: [none]}}\n")
        assert await listed() == [200] * 3
        for interface in interfaces:
            assert (await interface.tool("nmap", "127.0.0.1")).outcome == "unknown_tool"
        served.keys("revoke", served.ids["passing"])
        assert await listed() == [401] * 3
    served.rewrite(ACTORS)
    broken = ACTORS.replace("robot, networks", "robot, network")
    (served.folder / "actors.yaml").write_text(broken)
    assert served.ask("owner", "POST", "/admin/reload").status_code >= 400
    held = served.ask("robot", "POST", "/tools/nmap/execute", json={"target": "127.0.8.9", "ports": "1"})
    assert held.json()["code"] == "target_out_of_scope", "a wrong file must change nothing"
    served.rewrite(ACTORS)


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"sub": "scanner", "scope": None, "scp": ["tools:read", 7, None]}, 200),
        ({"sub": "scanner", "scope": "tools:read", "scp": "runs:read"}, 200),
        ({"sub": "scanner", "aud": ["http://127.0.0.1/other", RESOURCE]}, 200),
        ({"sub": "scanner", "aud": "http://127.0.0.1/other"}, 401),
        ({"sub": "scanner", "roles": {"operator": True}}, 200),  # no role, so auth.default_role applies
        ({"sub": "scanner", "scope": ["tools:read"]}, 200),
        ({"sub": "scanner", "scope": "Tools:Read tools:read\u00a0x"}, 403),
        ({"sub": "scannеr"}, 403),  # noqa: RUF001 - a Cyrillic e: another subject, whom the file does not name
        ({"sub": "SCANNER"}, 403),
        ({"sub": " scanner"}, 403),
        ({"sub": "token"}, 403),
        ({"sub": "s" * 5000}, 403),
        ({"sub": ["scanner"]}, 401),
        ({"sub": ""}, 401),
    ],
)
def test_claims_of_a_token_cannot_imitate_another_actor(served: Served, changed: dict[str, Any], status: int) -> None:
    served.credentials["made"] = SIGNING.sign(claims(served.issuer.url, **changed))
    assert served.ask("made", "GET", "/tools").status_code == status


def test_a_credential_in_a_wrong_field_is_kept_nowhere(served: Served) -> None:
    """A credential as client name, parameter, target or id must not be in logs, in runs, or in any response."""
    served.make("leaky", "operator")
    served.rewrite(f"{ACTORS}others: {{}}\n")
    secrets = {"key": served.credentials["leaky"], "token": served.credentials["owner"]}
    secrets["jwt"] = served.issuer.token("scanner")
    for secret in secrets.values():
        for arguments in (
            {"target": secret},
            {"target": "127.0.0.1", "ports": "1", "correlation_id": secret},
            {"target": "127.0.0.1", "ports": "1", secret: 1},
            {"target": "127.0.0.1", "ports": "1"},
        ):
            own = {"User-Agent": f"agent {secret}", "Referer": secret}
            served.ask("leaky", "POST", "/tools/nmap/execute", json=arguments, headers=own)
        served.ask("leaky", "POST", f"/tools/{secret}/execute", json={"target": "127.0.0.1"})
        assert httpx2.get(f"{served.base}/tools?access_token={secret}").status_code == 401
        served.ask("leaky", "GET", f"/runs?cursor={secret}")
    served.rewrite(ACTORS)
    texts = {path: served.ask("owner", "GET", path).text for path in ("/runs?limit=1000", "/config", "/health")}
    texts |= {each.name: each.read_text() for each in served.folder.glob("server-*.log")}
    texts["audit"] = json.dumps(log_records(served.folder / "state"))
    texts["store"] = "".join(
        each.read_bytes().decode("latin-1") for each in (served.folder / "state").glob("*.db*") if each.is_file()
    )
    hidden = {"key": secrets["key"][17:], "token": secrets["token"], "jwt": secrets["jwt"].rpartition(".")[2]}
    for where, text in texts.items():
        shown_once = f"Token, shown once and kept in {served.folder / 'state' / 'token'}: {secrets['token']}"
        assert {kind for kind, secret in hidden.items() if secret in text.replace(shown_once, "")} == set(), where


async def test_one_caller_cannot_use_up_all_sessions_and_streams(served: Served) -> None:
    async with served.interface("legacy", "promoted") as quiet, served.interface("legacy", "robot") as other:
        async with coming_as(served.base, served.credentials["both"]) as greedy:
            for _ in range(MAX_SESSIONS + 8):
                assert (await greedy.post("/mcp", json=initialize(1))).status_code == 200
        assert [(await interface.ask("ping")).status for interface in (quiet, other)] == [200, 200]  # type: ignore[call-arg]  # an Mcp
    async with AsyncExitStack() as stack:

        async def opens(who: str) -> int:
            return (await stack.enter_async_context(follow(served.base, served.credentials[who]))).status

        assert Counter([await opens("both") for _ in range(MAX_SUBSCRIBERS)]) == {200: 24, 429: 8}
        assert [await opens(who) for who in ("robot", "promoted")] == [200, 200]
    async with AsyncExitStack() as stack:
        message = modern(1, "subscriptions/listen", notifications={"toolsListChanged": True})
        headers = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "subscriptions/listen"}

        held: list[Any] = []

        async def listens(who: str) -> bool:
            client = await stack.enter_async_context(coming_as(served.base, served.credentials[who]))
            answer = await stack.enter_async_context(client.stream("POST", "/mcp", json=message, headers=headers))
            held.append(lines := answer.aiter_lines())  # the client disconnects when its iterator is garbage-collected
            async for line in lines:
                if "acknowledged" in line or "error" in line:
                    return "acknowledged" in line
            return False

        assert sum([await listens("both") for _ in range(MAX_STREAMS)]) == MOST_OF_ONE
        assert [await listens(who) for who in ("robot", "promoted")] == [True, True]
