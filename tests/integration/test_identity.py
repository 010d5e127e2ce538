"""Authentication over real HTTP: tokens of a real issuer, API keys, and the local token."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.auth import TokenStorage
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken

from mcp_server.cli import keys
from mcp_server.config import load_config
from mcp_server.errors import PlatformError
from mcp_server.identity.local_token import load_or_create_token
from mcp_server.netguard import kernel
from tests.support import cli
from tests.support.interfaces import environment, http_server, log_records, mcp_client, rest_client
from tests.support.issuer import ALL_SCOPES, Issuer, Key, claims, running_issuer
from tests.support.mcp_wire import INITIALIZED, exchange, initialize, post, request
from tests.support.otlp import collector
from tests.support.site_tools import make_site_tools

FIRST, SECOND = Key.make("first"), Key.make("second", "RS256")
WELL_KNOWN = "/.well-known/oauth-protected-resource"
VERSION = "2025-06-18"


@dataclass(frozen=True)
class Served:
    """A running server with its state folder, and the issuer that it trusts."""

    base: str
    token: str
    state: Path
    env: dict[str, str]
    process: subprocess.Popen[str]
    issuer: Issuer

    @property
    def port(self) -> int:
        return int(self.base.rpartition(":")[2])

    @property
    def log(self) -> str:
        return (self.state.parent / f"server-{self.port}.log").read_text()

    def get(self, path: str, token: str | None = None, **headers: str) -> httpx2.Response:
        bearer = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx2.get(self.base + path, headers=bearer | headers, timeout=30)

    def keys(self, *words: str) -> Any:
        done = cli.run("keys", *words, "--json", env=self.env)
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with running_issuer(FIRST) as running:
        yield running


@pytest.fixture(scope="module")
def served(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that gets its issuer by a reload, when its own address is known."""
    state = tmp_path_factory.mktemp("identity") / "state"
    file = state.parent / "config.json"
    settings: dict[str, Any] = {"auth": {"lockout_failures": 0}}
    file.write_text(json.dumps(settings))
    env = environment(state, MCP_CONFIG_FILE=str(file))
    with http_server(env) as (base, token, process):
        made = Served(base, token, state, env, process, issuer)
        assert made.get(WELL_KNOWN).status_code == 401, "there must be no metadata without an issuer"
        assert made.get("/tools").headers["www-authenticate"] == 'Bearer scope="tools:read"'
        resource = f"{base}/mcp"
        issuer.use(FIRST, resource=resource)
        settings["auth"] |= {"issuer": issuer.url, "audience": resource, "jwks_url": issuer.jwks_url}
        file.write_text(json.dumps(settings | {"auth": settings["auth"] | {"role_claim": "roles"}}))
        process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 20
        while made.get(WELL_KNOWN).status_code != 200:
            assert time.monotonic() < deadline, made.log
            time.sleep(0.05)
        yield made


@pytest.mark.parametrize("path", [WELL_KNOWN, f"{WELL_KNOWN}/mcp"])
def test_the_resource_metadata_need_no_credential(served: Served, path: str) -> None:
    answer = served.get(path)
    assert answer.json() == {
        "resource": f"{served.base}/mcp",
        "authorization_servers": [served.issuer.url],
        "scopes_supported": ["tools:read", "tools:probe", "tools:scan", "tools:intrusive", "runs:read", "admin"],
        "bearer_methods_supported": ["header"],
        "resource_name": "MCP Network Tools Server",
    }
    assert answer.headers["content-type"] == "application/json"
    assert httpx2.head(served.base + path).content == b""
    assert served.get(path, Host="evil.example").status_code == 403
    assert served.get(path, Origin="http://evil.example").status_code == 403
    assert httpx2.post(served.base + path).status_code == 401
    assert served.get(f"{path}x").status_code == 401


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/mcp", "tools:read"),
        ("/tools", "tools:read"),
        ("/runs", "runs:read"),
        ("/runs/r_1/raw", "runs:read"),
        ("/events", "runs:read"),
        ("/config", "admin"),
        ("/admin/tools", "admin"),
        ("/nowhere", "tools:read"),
    ],
)
@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_challenge_names_the_metadata_and_the_least_scope(
    served: Served, path: str, scope: str, token: str | None
) -> None:
    answer = served.get(path, token)
    error = 'error="invalid_token", ' if token else ""
    metadata = f'resource_metadata="{served.base}{WELL_KNOWN}/mcp"'
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == f'Bearer {error}scope="{scope}", {metadata}'
    assert answer.headers["connection"] == "close"


async def test_tokens_of_the_issuer_are_accepted_at_both_interfaces(served: Served) -> None:
    token = served.issuer.token("scanner", resource=f"{served.base}/mcp")
    async with rest_client(served.base, token) as rest, mcp_client(served.base, token) as mcp:
        assert (await rest.get("/tools")).status_code == 200
        assert (await mcp.list_tools()).tools
    with_name = httpx2.get(f"{served.base}/tools?access_token={token}")
    assert with_name.status_code == 401, "a credential in the URL was accepted"


async def test_a_client_gets_from_the_challenge_to_a_call_without_configuration(served: Served) -> None:
    """With the SDK's client: 401, metadata, the metadata of the issuer, a token for this resource, and the call."""

    class Storage(TokenStorage):
        kept: OAuthToken | None = None

        async def get_tokens(self) -> OAuthToken | None:
            return self.kept

        async def set_tokens(self, tokens: OAuthToken) -> None:
            self.kept = tokens

        async def get_client_info(self) -> OAuthClientInformationFull | None:
            return None

        async def set_client_info(self, client_info: OAuthClientInformationFull) -> None: ...

    storage = Storage()
    provider = ClientCredentialsOAuthProvider(
        f"{served.base}/mcp", storage, "scanner", "secret-of-scanner", issuer=served.issuer.url
    )
    async with (
        httpx2.AsyncClient(auth=provider, timeout=30) as wire,
        Client(streamable_http_client(f"{served.base}/mcp", http_client=wire)) as client,
    ):
        assert (await client.list_tools()).tools
    assert storage.kept is not None
    assert storage.kept.scope == "tools:read", "the token must have the scope of the challenge only"


def test_tokens_for_another_server_or_of_another_issuer_are_refused(served: Served) -> None:
    honest = claims(served.issuer.url, aud=f"{served.base}/mcp")
    assert served.get("/tools", FIRST.sign(honest)).status_code == 200
    elsewhere = served.issuer.token("scanner", resource="http://127.0.0.1/other")
    for token in (elsewhere, FIRST.sign(honest | {"iss": "http://127.0.0.1:1"}), Key.make("first").sign(honest)):
        answer = served.get("/tools", token)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert token not in answer.text


def test_keys_of_the_issuer_can_be_rotated_while_the_server_runs(served: Served) -> None:
    resource = f"{served.base}/mcp"
    before = served.issuer.token("scanner", resource=resource)
    assert served.get("/tools", before).status_code == 200
    served.issuer.use(SECOND, FIRST, resource=resource)
    after = served.issuer.token("scanner", resource=resource)
    answer = served.get("/tools", after)
    if answer.status_code == 503:  # the server has just fetched the keys
        assert answer.json()["code"] == "identity_unavailable"
        assert 1 <= int(answer.headers["retry-after"]) <= 10
        time.sleep(int(answer.headers["retry-after"]) + 1)
        answer = served.get("/tools", after)
    assert answer.status_code == 200
    assert served.get("/tools", before).status_code == 200


def test_a_key_can_be_made_used_listed_and_revoked_while_the_server_runs(served: Served) -> None:
    made = served.keys("create", "ci", "--role", "operator", "--expires", "30d")
    key = made["key"]
    assert served.get("/tools", key).status_code == 200
    listed = served.keys("list")
    assert key not in json.dumps(listed)
    assert [(each["id"], each["name"], each["role"], each["state"]) for each in listed["keys"]] == [
        (made["id"], "ci", "operator", "valid")
    ]
    assert served.keys("revoke", made["id"])["state"] == "revoked"
    assert served.get("/tools", key).status_code == 401, "the key must be refused at the next request"
    notes = [each for each in log_records(served.state) if str(each.get("action", "")).startswith("keys.")]
    assert [each["action"] for each in notes] == ["keys.create", "keys.revoke"]
    assert {each["arguments"]["id"] for each in notes} == {made["id"]}
    refusal = next(each for each in log_records(served.state) if each.get("id") == made["id"])
    assert (refusal["event"], refusal["decision"], refusal["reason"]) == ("authentication", "deny", "key revoked")


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (("create", "a b", "--role", "viewer"), 2, "invalid_arguments"),
        (("create", "a", "--role", "viewer", "--expires", "soon"), 2, "invalid_arguments"),
        (("create", "a", "--role", "viewer", "--expires", "99999w"), 2, "invalid_arguments"),
        (("create", "a", "--role", "root"), 2, "invalid_arguments"),
        (("create", "a"), 2, "invalid_arguments"),
        (("revoke", "000000000000"), 4, "not_found"),
    ],
)
def test_the_command_line_refuses_wrong_keys(served: Served, words: tuple[str, ...], status: int, code: str) -> None:
    before = log_records(served.state)
    done = cli.run("keys", *words, "--json", env=served.env)
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (status, code)
    assert [each for each in log_records(served.state)[len(before) :] if "action" in each] == []


def test_keys_are_printed_as_a_table(served: Served) -> None:
    done = cli.run("keys", "create", "person", "--role", "viewer", env=served.env)
    identity = re.search(r"^Key ([0-9a-f]{12}) of key:person, viewer, valid until it is revoked", done.stdout)
    assert identity
    key = done.stdout.splitlines()[1]
    assert served.get("/tools", key).status_code == 200
    assert "person" in cli.run("keys", "list", env=served.env).stdout
    assert "is revoked" in cli.run("keys", "revoke", identity[1], env=served.env).stdout


@pytest.mark.parametrize("owner", ["key", "jwt", "token"])
async def test_a_session_belongs_to_the_caller_who_opened_it(served: Served, owner: str) -> None:
    """CVE-2026-52869: the session of another caller is answered like an unknown one."""
    tokens = {
        "key": served.keys("create", "session", "--role", "operator")["key"],
        "jwt": served.issuer.token("scanner", resource=f"{served.base}/mcp"),
        "token": served.token,
    }
    tokens["other jwt"] = served.issuer.token("boss", resource=f"{served.base}/mcp")
    tokens["other key"] = served.keys("create", "session-2", "--role", "admin")["key"]

    async def send(who: str, session: str, method: str = "POST") -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {tokens[who]}", "Mcp-Session-Id": session}
        headers |= {"MCP-Protocol-Version": VERSION, "Accept": "application/json, text/event-stream"}
        async with httpx2.AsyncClient(timeout=30) as client:
            body = json.dumps(request(2, "ping")) if method == "POST" else None
            headers |= {"Content-Type": "application/json"} if body else {}
            async with client.stream(method, f"{served.base}/mcp", content=body, headers=headers) as answer:
                if answer.headers.get("content-type", "").startswith("text/event-stream") and method == "GET":
                    return answer.status_code, b""
                return answer.status_code, await answer.aread()

    headers = {"Authorization": f"Bearer {tokens[owner]}"}
    opened = await exchange(served.port, post(served.port, initialize(1, VERSION), headers=headers))
    session = opened.headers["mcp-session-id"]
    session_headers = headers | {"Mcp-Session-Id": session, "MCP-Protocol-Version": VERSION}
    assert (await exchange(served.port, post(served.port, INITIALIZED, headers=session_headers))).status == 202
    for method in ("POST", "GET", "DELETE"):
        for other in set(tokens) - {owner}:
            stolen, unknown = await send(other, session, method), await send(other, "0" * 32, method)
            assert stolen == unknown, "the answer must be that for an unknown session"
            assert stolen[0] == 404
    assert (await send(owner, session))[0] == 200, "the session must still work for its owner"
    if owner == "jwt":  # a new token of the same actor
        tokens["jwt"] = served.issuer.token("scanner", "tools:read", resource=f"{served.base}/mcp")
        assert (await send(owner, session))[0] == 200
    assert (await send(owner, session, "GET"))[0] == 200
    assert (await send(owner, session, "DELETE"))[0] == 200


def test_failures_are_counted(served: Served) -> None:
    def failures() -> dict[str, float]:
        page = served.get("/metrics", served.token).text
        return {
            labels: float(value)
            for labels, value in re.findall(r"^mcp_authentication_failures_total{(.*)} (.*)$", page, re.MULTILINE)
        }

    before = failures()
    served.get("/tools", "wrong")
    served.get("/tools", FIRST.sign(claims(served.issuer.url)))
    served.get("/tools", f"mnt_{'0' * 12}_{'A' * 43}")
    served.get("/tools")
    after = failures()
    assert {labels: after[labels] - before[labels] for labels in after if after[labels] > before[labels]} == {
        'kind="token",reason="wrong"': 1,
        'kind="jwt",reason="audience"': 1,
        'kind="key",reason="unknown"': 1,
        'kind="none",reason="missing"': 1,
    }


def test_health_and_doctor_report_an_issuer_that_does_not_answer(tmp_path: Path) -> None:
    gone = environment(
        tmp_path / "state",
        MCP_SERVER_TRANSPORT="http",
        MCP_AUTH_ISSUER="http://127.0.0.1:1",
        MCP_AUTH_AUDIENCE="http://127.0.0.1/mcp",
        MCP_AUTH_JWKS_URL="http://127.0.0.1:1/jwks",
    )
    with http_server(gone) as (base, token, _):
        checks = httpx2.get(f"{base}/health", headers={"Authorization": f"Bearer {token}"}, timeout=30).json()["checks"]
        found = next(check for check in checks if check["name"] == "identity")
        assert found["state"] == "degraded"
        assert "http://127.0.0.1:1/jwks cannot be fetched" in found["detail"]
        honest = FIRST.sign(claims("http://127.0.0.1:1"))
        answer = httpx2.get(f"{base}/tools", headers={"Authorization": f"Bearer {honest}"})
        assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (
            503,
            "identity_unavailable",
            True,
        )
        assert int(answer.headers["retry-after"]) >= 1
    output = cli.run("doctor", env=gone).stdout
    assert re.search(r"degraded +identity: The keys of the issuer at http://127\.0\.0\.1:1/jwks cannot be", output)


def test_wrong_credentials_lock_new_callers_out_and_not_recent_ones(tmp_path: Path) -> None:
    state = tmp_path / "state"
    env = environment(state, MCP_AUTH_LOCKOUT_FAILURES="5", MCP_AUTH_LOCKOUT_SEC="8")
    with http_server(env) as (base, token, _):

        def ask(credential: str) -> httpx2.Response:
            return httpx2.get(f"{base}/tools", headers={"Authorization": f"Bearer {credential}"})

        key = json.loads(cli.run("keys", "create", "late", "--role", "viewer", "--json", env=env).stdout)["key"]
        assert ask(token).status_code == 200
        codes = [ask(f"guess-{number}").status_code for number in range(20)]
        assert codes == [401] * 5 + [429] * 15
        locked = ask(key)
        assert (locked.status_code, locked.json()["code"]) == (429, "locked_out")
        wait = int(locked.headers["retry-after"])
        assert 1 <= wait <= 8
        assert ask(token).status_code == 200, "a recently valid credential must be accepted"
        assert httpx2.get(f"{base}/tools").status_code == 401, (
            "a request without a credential must not count as a guess"
        )
        time.sleep(wait)
        assert ask(key).status_code == 200
    notes = [each for each in log_records(state) if each["event"] == "authentication"]
    assert [(each["code"], each["reason"], each.get("repeats")) for each in notes] == [
        ("unauthorized", "token wrong", None),
        ("locked_out", "any locked_out", None),
        ("unauthorized", "token wrong", 4),
        ("locked_out", "any locked_out", 15),
    ]
    assert {each["client"] for each in notes} == {"127.0.0.1"}


def forms(secret: str) -> list[bytes]:
    """A secret, the secret part of a key or a JWT, and both in base64."""
    part = secret.split("_", 2)[2] if secret.startswith("mnt_") else secret.split(".")[2] if "." in secret else secret
    return [part.encode(), base64.b64encode(secret.encode())[4:-4]]


def test_no_credential_is_in_a_log_record_response_span_or_child_process(issuer: Issuer, tmp_path: Path) -> None:
    """Send each kind of credential, valid and wrong, in every way, with all logging on; then search everything."""
    state, site = tmp_path / "state", make_site_tools(tmp_path / "site_identity")
    resource = "http://127.0.0.1/mcp"
    issuer.use(FIRST, resource=resource)
    load_or_create_token(state)  # a new token would be shown once on standard error
    with ExitStack() as stack:
        spans = stack.enter_context(collector())
        env = environment(
            state,
            LOG_LEVEL="DEBUG",
            MCP_LOGGING_FILE_PATH=str(tmp_path / "server.jsonl"),
            MCP_TRACING_ENDPOINT=spans.url,
            MCP_AUTH_ISSUER=issuer.url,
            MCP_AUTH_AUDIENCE=resource,
            MCP_AUTH_JWKS_URL=issuer.jwks_url,
            MCP_AUTH_ROLE_CLAIM="roles",
            MCP_AUTH_LOCKOUT_FAILURES="0",
            **site.env,
        )
        base, token, process = stack.enter_context(http_server(env))
        key = json.loads(cli.run("keys", "create", "canary", "--role", "admin", "--json", env=env).stdout)["key"]
        jwt = issuer.token("boss", ALL_SCOPES)
        expired = FIRST.sign(claims(issuer.url, exp=1))
        bad = [expired, jwt[:-8] + "CANARY00", key[:-8] + "CANARY00", token[:-8] + "CANARY00", "CANARY" * 8]
        shown = []
        for good in (token, key, jwt):
            with httpx2.Client(base_url=base, headers={"Authorization": f"Bearer {good}"}, timeout=30) as client:
                call = {"target": "127.0.0.1", "extra_args": "--do env"}
                done = client.post("/tools/probe/execute", json=call)
                assert "PATH=" in done.json()["stdout"]
                shown += [
                    done,
                    client.get("/config"),
                    client.get("/health"),
                    client.get("/runs"),
                    client.get("/metrics"),
                ]
                shown += [client.post("/tools/probe/execute", content="{"), client.get("/runs/none")]
        for secret in (token, key, jwt, *bad):
            shown += [
                httpx2.get(f"{base}/tools", headers={"Authorization": f"Basic {secret}"}),
                httpx2.get(f"{base}/tools", headers={"Authorization": f"Bearer {secret} {secret}"}),
                httpx2.get(f"{base}/tools?access_token={secret}"),
                httpx2.get(f"{base}/tools", headers={"Cookie": f"token={secret}"}),
            ]
        shown += [httpx2.get(f"{base}/tools", headers={"Authorization": f"Bearer {secret}"}) for secret in bad]
        environ = Path(f"/proc/{process.pid}/environ").read_bytes()
        output = cli.run("audit", "show", "--json", env=env).stdout + cli.run("config", "show", env=env).stdout
        output += cli.run("keys", "list", "--json", env=env).stdout
    executors = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    executors |= {f"answer {number}": answer.content for number, answer in enumerate(shown)}
    executors |= {f"headers {number}": repr(answer.headers).encode() for number, answer in enumerate(shown)}
    executors |= {f"span {number}": body for number, body in enumerate(spans.bodies)}
    executors |= {"environ": environ, "cli": output.encode()}
    assert spans.bodies, "no spans were sent"
    token_file = executors.pop(str(state / "token"))
    assert token in token_file.decode()
    assert not {
        (name, secret[:12])
        for name, content in executors.items()
        for secret in (token, key, jwt, *bad)
        for form in forms(secret)
        if form in content
    }


def test_keys_run_by_root_names_the_state_folder_of_a_guarded_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    monkeypatch.setattr(kernel, "DEFAULT_STATE_DIR", theirs)
    monkeypatch.setattr("mcp_server.config.get_config", lambda: load_config(env={}))
    with pytest.raises(PlatformError, match="keeps its keys in") as caught:
        keys._config()
    assert f"sudo -u '#65534' env MCP_STATE_DIR={theirs}" in caught.value.hint
