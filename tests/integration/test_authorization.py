"""Who may do what: every interface, caller, tool and run, compared with one table that was written by hand.

An authenticator of these tests (`tests.support.several_callers`) identifies the callers. Everything else is a real
server, which gets requests over HTTP, over stdio and from the command line.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters

from tests.support.cli import batch
from tests.support.interfaces import ROOT, http_server, log_records
from tests.support.mcp_wire import call as modern_call
from tests.support.several_callers import MODULE, Mcp, Rest, Said, caller_environment, coming_as
from tests.support.streams import Event, follow

ACTORS = """
version: 1
actors:
  - {name: reader, key: viewer, role: viewer}
  - {name: worker, key: operator, role: operator}
  - {name: boss, key: admin, role: admin}
  - {name: narrow token, key: narrow}
  - name: bounded
    key: bounded
    role: operator
    networks: [127.0.0.8/29]
    tools: ["scan*"]
"""
CREDENTIALS = {
    "nobody": "admin.unlisted",  # not in the file
    "viewer": "viewer.viewer",
    "operator": "operator.operator",
    "admin": "admin.admin",
    "bounded": "operator.bounded",
    "narrow": "only+tools:scan.narrow",
}

# ok: done. 403: refused with the missing scope. 404: not found. out: out of scope.
TABLE = """
                      nobody  viewer  operator  admin  bounded  narrow
list tools            403     ok      ok        ok     ok       403
scope                 403     ok      ok        ok     ok       403
passive inside        403     ok      ok        ok     404      403
probing inside        403     403     ok        ok     404      403
scanning inside       403     403     ok        ok     ok       ok
intruding inside      403     403     403       ok     404      403
scanning outside      403     403     ok        ok     out      ok
nothing inside        403     404     404       404    404      404
list runs             403     ok      ok        ok     ok       403
own run               403     ok      ok        ok     ok       403
own raw               403     ok      ok        ok     ok       403
foreign run           403     404     404       ok     404      403
foreign raw           403     404     404       ok     404      403
local run             403     404     404       ok     404      403
no run                403     404     404       404    404      403
"""
"""Every HTTP interface. ``scanning outside`` is a target inside the policy and outside the networks of ``bounded``;
``local run`` was made over stdio.
"""
REST_TABLE = """
                      nobody  viewer  operator  admin  bounded  narrow
GET /                 403     ok      ok        ok     ok       403
GET /health           403     ok      ok        ok     ok       403
GET /metrics          403     ok      ok        ok     ok       403
GET /docs             403     ok      ok        ok     ok       403
GET /openapi.json     403     ok      ok        ok     ok       403
GET /events           403     ok      ok        ok     ok       403
GET /config           403     403     403       ok     403      403
GET /admin/tools      403     403     403       ok     403      403
GET /admin/breakers   403     403     403       ok     403      403
POST /admin/reload    403     403     403       ok     403      403
POST /admin/tools/passive/enable   403  403  403  ok   403      403
POST /admin/breakers/passive/reset 403  403  403  ok   403      403
"""
TOOLS_SEEN = {
    "viewer": ["intruding", "nmap", "passive", "probing", "scanning"],
    "operator": ["intruding", "nmap", "passive", "probing", "scanning"],
    "admin": ["intruding", "nmap", "passive", "probing", "scanning"],
    "bounded": ["scanning"],
}
WORDS = {
    "insufficient_scope": "403",
    "unknown_tool": "404",
    "unknown_run": "404",
    "target_out_of_scope": "out",
}
TARGETS = {"inside": "127.0.0.9", "outside": "127.0.0.1"}
NO_RUN = "r_" + "0" * 24
HTTP_INTERFACES = ("rest", "mcp 2026", "mcp 2025")


def read_table(text: str) -> dict[str, dict[str, str]]:
    """Parse a table of this file. Returns the cells by row and caller."""
    head, *rows = [line for line in text.splitlines() if line.strip()]
    names = head.split()
    found = {}
    for row in rows:
        *words, cells = re.split(rf"\s+(?=(?:\S+\s+){{{len(names) - 1}}}\S+$)", row, maxsplit=1)
        found[words[0]] = dict(zip(names, cells.split(), strict=True))
    return found


@dataclass(frozen=True, slots=True)
class Served:
    """A server that knows all of these callers.

    ``runs`` has the id of one run of each caller, by its name. ``local`` is the id of a run over stdio.
    """

    base: str
    state: Path
    env: dict[str, str]
    runs: dict[str, str]
    local: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("callers")
    env = caller_environment(folder, ACTORS)
    with http_server(env, module=MODULE) as (base, _, _):
        runs, local = asyncio.run(_seed(base, env))
        yield Served(base, folder / "state", env, runs, local)


async def _seed(base: str, env: dict[str, str]) -> tuple[dict[str, str], str]:
    runs = {}
    for name in (*CREDENTIALS, "unlisted", "somebody"):
        async with coming_as(base, f"seed.{name}") as client:
            runs[name] = (await Rest(client).tool("scanning", "127.0.0.9")).body["run_id"]
    async with stdio(env) as client:
        result = await client.call_tool("scanning", {"target": "127.0.0.9"})
    assert result.structured_content
    return runs, result.structured_content["run_id"]


@asynccontextmanager
async def stdio(env: dict[str, str]) -> AsyncIterator[Client]:
    parameters = StdioServerParameters(command=sys.executable, args=["-m", "mcp_server.server"], env=env, cwd=ROOT)
    async with Client(parameters) as client:
        yield client


@asynccontextmanager
async def at_interface(interface: str, base: str, credential: str) -> AsyncIterator[Rest | Mcp]:
    async with coming_as(base, credential) as client:
        if interface == "rest":
            yield Rest(client)
            return
        mcp = Mcp(client, modern=interface == "mcp 2026")
        await mcp.open()
        yield mcp


async def do(at: Rest | Mcp, row: str, run_id: str) -> Said:
    """Send the request that a row of the table names, over one interface."""
    first, second = row.split()
    if second in TARGETS:
        return await at.tool(first, TARGETS[second])
    if isinstance(at, Mcp):
        asked = {"list tools": "tools/list", "list runs": "resources/list"}
        if row in asked:
            return await at.ask(asked[row])
        return await at.ask("resources/read", uri=f"run://{run_id}{'/raw' if second == 'raw' else ''}")
    asked = {"list tools": "/tools", "list runs": "/runs"}
    path = asked.get(row) or f"/runs/{run_id}{'/raw' if second == 'raw' else ''}"
    return await at.ask("GET", path)


def word(answer: Said) -> str:
    """The word of the table for an outcome. A refusal for a missing scope must name it, also in the HTTP header."""
    if answer.outcome == "insufficient_scope":
        assert answer.status == 403, answer
        assert re.fullmatch(r'Bearer error="insufficient_scope", scope="[a-z: ]+"', answer.headers["www-authenticate"])
        missing = answer.body["details"]["scope"].split()
        offered = answer.headers["www-authenticate"].split('scope="')[1].rstrip('"').split()
        assert set(missing) <= set(offered)
    else:
        assert "www-authenticate" not in answer.headers
    return WORDS.get(answer.outcome, answer.outcome)


@pytest.mark.parametrize("interface", HTTP_INTERFACES)
async def test_each_caller_gets_its_outcome_at_every_interface(served: Served, interface: str) -> None:
    expected, found = read_table(TABLE), {row: dict[str, str]() for row in read_table(TABLE)}
    for name, credential in CREDENTIALS.items():
        own = "unlisted" if name == "nobody" else name
        runs = {"own": served.runs[own], "foreign": served.runs["somebody"], "local": served.local, "no": NO_RUN}
        async with at_interface(interface, served.base, credential) as at:
            for row in expected:
                if row == "scope":
                    answer = await (
                        at.ask("GET", "/scope") if isinstance(at, Rest) else at.ask("tools/call", name="scope")
                    )
                else:
                    answer = await do(at, row, runs.get(row.split()[0], ""))
                found[row][name] = word(answer)
    assert found == expected


async def test_each_caller_gets_its_outcome_at_every_rest_route(served: Served) -> None:
    expected, found = read_table(REST_TABLE), {row: dict[str, str]() for row in read_table(REST_TABLE)}
    for name, credential in CREDENTIALS.items():
        async with coming_as(served.base, credential) as client:
            for row in expected:
                method, path = row.split()
                if path == "/events":
                    async with client.stream(method, path) as stream:
                        found[row][name] = "ok" if stream.status_code == 200 else str(stream.status_code)
                    continue
                found[row][name] = word(await Rest(client).ask(method, path))
    assert found == expected


@pytest.mark.parametrize("interface", HTTP_INTERFACES)
async def test_a_caller_sees_the_tools_that_it_may_use(served: Served, interface: str) -> None:
    found = {}
    for name in TOOLS_SEEN:
        async with at_interface(interface, served.base, CREDENTIALS[name]) as at:
            body = (await do(at, "list tools", "")).body
            listed = body["tools"] if interface == "rest" else body["result"]["tools"]
            found[name] = [tool["name"] for tool in listed if tool["name"] != "scope"]
    assert found == TOOLS_SEEN


async def test_the_user_who_starts_the_process_has_full_access(served: Served) -> None:
    tools = ("passive", "probing", "scanning", "intruding")
    read = [served.runs["somebody"], served.local]
    async with stdio(served.env) as client:
        for tool in tools:
            assert not (await client.call_tool(tool, {"target": "127.0.0.1"})).is_error
        for run_id in read:
            assert (await client.read_resource(f"run://{run_id}/raw")).contents
        assert {tool.name for tool in (await client.list_tools()).tools} >= set(tools)
    done = await batch(
        served.env,
        *(["call", tool, "target=127.0.0.1"] for tool in tools),
        *(["runs", "show", run_id] for run_id in read),
        ["tools"],
    )
    assert [status for status, _, _ in done] == [0] * len(done), done


@pytest.mark.parametrize("raw", ["", "/raw"])
@pytest.mark.parametrize("interface", HTTP_INTERFACES)
async def test_a_run_of_another_caller_is_answered_like_an_unknown_run(
    served: Served, interface: str, raw: str
) -> None:
    seen = []
    for run_id in (served.runs["somebody"], served.local, NO_RUN):
        async with at_interface(interface, served.base, CREDENTIALS["operator"]) as at:
            if isinstance(at, Rest):
                answer = await at.ask("GET", f"/runs/{run_id}{raw}")
            else:
                answer = await at.ask("resources/read", uri=f"run://{run_id}{raw}")
        headers = {key: value for key, value in answer.headers.items() if key not in {"date", "mcp-session-id"}}
        seen.append((answer.status, headers, answer.content.replace(run_id.encode(), b"ID")))
    assert seen[0] == seen[1] == seen[2]
    assert b"unknown_run" in seen[0][2]


async def test_pages_totals_and_cursors_cover_the_callers_runs_only(served: Served) -> None:
    async with coming_as(served.base, "operator.pager") as client, coming_as(served.base, "seed.pager") as seed:
        mine = [(await Rest(seed).tool("scanning", "127.0.0.9")).body["run_id"] for _ in range(3)]
        # The file does not name this actor, so it may read nothing. The seed may read everything.
        assert (await Rest(client).ask("GET", "/runs")).outcome == "insufficient_scope"
    async with coming_as(served.base, "operator.operator") as client:
        own = [(await Rest(client).tool("scanning", "127.0.0.9")).body["run_id"] for _ in range(3)]
        first = (await Rest(client).ask("GET", "/runs?limit=2")).body
        assert [run["id"] for run in first["runs"]] == [own[2], own[1]]
        everything = (await Rest(client).ask("GET", "/runs?limit=1000")).body
        ids = {run["id"] for run in everything["runs"]}
        assert everything["total"] == len(ids)
        assert not ids & {*mine, served.runs["somebody"], served.local}
        second = (await Rest(client).ask("GET", f"/runs?limit=2&cursor={first['next_cursor']}")).body
        assert second["runs"][0]["id"] == own[0]
        assert first["next_cursor"] == _cursor(own[1])
        foreign, unknown = [
            await Rest(client).ask("GET", f"/runs?cursor={_cursor(run_id)}") for run_id in (mine[0], NO_RUN)
        ]
        assert (foreign.status, foreign.body["code"]) == (unknown.status, "invalid_arguments")


def _cursor(run_id: str) -> str:
    from mcp_server.store.paging import encode_cursor

    return encode_cursor("runs", run_id)


@pytest.mark.parametrize(
    ("credential", "actors"),
    [("operator.operator", {"key:operator"}), ("admin.admin", {"key:operator", "key:somebody"})],
)
async def test_a_stream_has_only_events_of_the_readers_runs(served: Served, credential: str, actors: set[str]) -> None:
    async with follow(served.base, credential) as stream:
        await stream.settled()
        for name in ("somebody", "operator"):
            async with coming_as(served.base, f"seed.{name}") as client:
                await Rest(client).tool("nothing", "127.0.0.9")
                last = (await Rest(client).tool("scanning", "127.0.0.9")).body["run_id"]
        seen: list[Event] = []
        while not (seen and seen[-1].kind == "run.ended" and seen[-1].data["run_id"] == last):
            event = await stream.next()
            assert event is not None
            seen.append(event)
    assert {event.data["actor"] for event in seen if "actor" in event.data} == actors
    runs = {event.data["run_id"] for event in seen if "run_id" in event.data}
    assert len(runs) == len(actors)
    assert {"call.refused", "run.accepted", "run.started", "run.ended"} <= {event.kind for event in seen}


async def test_refusals_are_logged_with_the_limits_that_applied(served: Served) -> None:
    for interface in HTTP_INTERFACES:
        async with at_interface(interface, served.base, CREDENTIALS["bounded"]) as at:
            assert (await at.tool("scanning", "127.0.0.1")).outcome == "target_out_of_scope"
    async with coming_as(served.base, CREDENTIALS["bounded"]) as client:
        assert (await Rest(client).tool("passive", "127.0.0.9")).outcome == "unknown_tool"
        assert (await Rest(client).ask("POST", "/admin/reload")).outcome == "insufficient_scope"
        answer = await Rest(client).tool("scanning", "127.0.0.1")
        assert "outside the networks of this caller. Allowed: 127.0.0.8/29" in answer.body["message"]
    records = [record for record in log_records(served.state) if record.get("actor") == "key:bounded"]
    by_code = {record.get("code"): record for record in records}
    assert {"target_out_of_scope", "unknown_tool", "insufficient_scope"} <= set(by_code)
    hidden = {record.get("reason") for record in records if record.get("tool") == "passive"}
    assert "The tools of key:bounded do not include this one." in hidden, (
        "the log must have the reason, which the caller does not see"
    )
    assert all(re.fullmatch("[0-9a-f]{64}", by_code[code]["actors_hash"]) for code in by_code if code)
    accepted = next(r for r in records if r.get("decision") == "accept" and "actors_hash" in r)
    assert accepted["actors_hash"] == by_code["unknown_tool"]["actors_hash"]
    assert any(record["tool"] == "POST /admin/reload" for record in records if record["event"] == "decision")


async def test_a_header_that_names_another_call_is_refused(served: Served) -> None:
    """The body is executed, so a header that names another call must not change the decision."""
    message = modern_call(1, "intruding", target="127.0.0.9")
    lies = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "passive"}
    async with coming_as(served.base, CREDENTIALS["operator"]) as client:
        assert (await client.post("/mcp", json=message, headers=lies)).status_code == 403
    async with coming_as(served.base, CREDENTIALS["admin"]) as client:
        answer = await client.post("/mcp", json=message, headers=lies)
    assert answer.status_code == 400, answer.text
    assert "mcp-name" in answer.text.lower()


async def test_the_risk_of_the_parameters_is_judged_before_the_call_starts(served: Served) -> None:
    """The mode discover of nmap is a probe, and every other mode is a scan."""
    discover = {"target": "127.0.0.9", "mode": "discover"}
    for interface in HTTP_INTERFACES:
        async with at_interface(interface, served.base, "only+tools:probe.operator") as at:
            for arguments, outcome in ((discover, "ok"), (discover | {"mode": "ports"}, "insufficient_scope")):
                if isinstance(at, Rest):
                    answer = await at.ask("POST", "/tools/nmap/execute", json=arguments)
                else:
                    answer = await at.ask("tools/call", name="nmap", arguments=arguments)
                assert answer.outcome == outcome, answer.body
                if outcome != "ok":
                    assert word(answer) == "403"
                    assert answer.body["details"]["scope"] == "tools:scan"


async def test_a_reader_gets_the_scope_that_this_call_needs(served: Served) -> None:
    """The caller needs only one new token. A call with wrong parameters needs the lowest scope of its tool."""
    scan, broken = {"target": "127.0.0.9", "mode": "ports"}, {"target": "127.0.0.9", "mode": "sideways"}
    discover = scan | {"mode": "discover"}
    async with coming_as(served.base, CREDENTIALS["viewer"]) as client:
        for arguments, scope in ((scan, "tools:scan"), (discover, "tools:probe"), (broken, "tools:probe")):
            answer = await Rest(client).ask("POST", "/tools/nmap/execute", json=arguments)
            assert (answer.outcome, answer.body["details"]["scope"]) == ("insufficient_scope", scope), answer.body
    async with coming_as(served.base, "only+tools:scan.operator") as client:
        for arguments, outcome in ((scan | {"ports": "9"}, "ok"), (discover, "insufficient_scope")):
            answer = await Rest(client).ask("POST", "/tools/nmap/execute", json=arguments)
            assert answer.outcome == outcome, answer.body


async def test_the_scope_is_explained_for_the_caller(served: Served) -> None:
    async with coming_as(served.base, CREDENTIALS["bounded"]) as client:
        body = (await Rest(client).ask("GET", "/scope")).body
        asked = (await Rest(client).ask("GET", "/scope?target=127.0.0.9&target=127.0.0.1&target=10.0.0.1")).body
        plan = (await Rest(client).ask("GET", "/scope?target=127.0.0.1&tool=scanning")).body["plan"]
        risk = (await Rest(client).ask("GET", "/scope?target=127.0.0.9&risk=intrusive")).body
    assert body["caller"]["networks"] == ["127.0.0.8/29"]
    assert body["caller"]["scopes"] == ["runs:read", "tools:probe", "tools:read", "tools:scan"]
    assert [line["entry"] for line in body["policy"]["allow"]] == ["loopback"], (
        "RFC1918 is outside the networks of the caller"
    )
    assert [target["allowed"] for target in asked["targets"]] == [True, False, False]
    assert "RFC1918" not in json.dumps(asked)
    assert (plan["allowed"], plan["code"]) == (False, "target_out_of_scope")
    assert risk["targets"][0]["code"] == "insufficient_scope"
