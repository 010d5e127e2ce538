"""Schemathesis tests a real server against its OpenAPI document, also with invalid requests.

The command line of Schemathesis is run, because its pytest plugin changes how other tests are collected.
`schemathesis.toml` beside this file has its settings, with a reason for each check that expects more than by default.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import pytest

from tests.support.interfaces import accepted, environment, http_server, log_records

SETTINGS = Path(__file__).with_name("schemathesis.toml")
COMMAND = Path(sys.executable).with_name("schemathesis")
ADMIN = "^/admin/"
PHASES = ("examples", "coverage", "fuzzing", "stateful")
LIMIT_SEC = 60


@dataclass(frozen=True)
class Report:
    """The result of Schemathesis: ``failures`` by operation, and the text for a failed test."""

    failures: dict[str, set[str]]
    tested: int
    document: dict[str, Any]
    text: str


def run(base: str, token: str, folder: Path, *words: str) -> Report:
    """Run every check of every phase against a server."""
    report = folder / "report.json"
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [
            *(str(COMMAND), "--config-file", str(SETTINGS), "run", f"{base}/openapi.json", "--checks", "all"),
            *("--phases", ",".join(PHASES), "--report", "json", "--report-json-path", str(report), "--no-color"),
            *words,
        ],
        env={**os.environ, "MCP_TOKEN": token},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SEC,
    )
    assert report.exists(), done.stdout + done.stderr
    document = json.loads(report.read_text())
    failures: dict[str, set[str]] = {}
    for failure in document["failures"]:
        for operation in failure["operations"]:
            failures.setdefault(operation, set()).add(failure["type"])
    assert done.returncode == bool(failures), done.stdout + done.stderr
    assert document["complete"]
    assert not document["errors"], done.stdout
    assert document["operations"]["tested"] == document["operations"]["selected"], "some operations were not tested"
    return Report(failures, document["operations"]["tested"], document, done.stdout)


def test_a_real_server_matches_its_document(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    env = environment(state, MCP_SECURITY_ALLOWED_TARGETS="127.0.0.0/8,::1")
    with http_server(env) as (base, token, _), httpx2.Client(base_url=base) as client:
        client.headers["Authorization"] = f"Bearer {token}"
        operations = {
            f"{method.upper()} {path}"
            for path, methods in client.get("/openapi.json").json()["paths"].items()
            for method in methods
        }
        # Separate runs, because disabling tools and opening breakers would hide the results of calls.
        calls = run(base, token, tmp_path / "calls", "--exclude-path-regex", ADMIN)
        admin = run(base, token, tmp_path / "admin", "--include-path-regex", ADMIN)
        answered = client.get("/metrics").text
    assert calls.failures == {}, calls.text
    assert admin.failures == {}, admin.text
    assert calls.tested + admin.tested == len(operations), "some operations of the document were not tested"
    for report in (calls, admin):
        assert {name: phase["status"] for name, phase in report.document["phases"].items()} == dict.fromkeys(
            PHASES, "success"
        )
        assert not any(report.document["warnings"].values()), report.text
    good = set(re.findall(r'mcp_http_requests_total\{method="(\w+)",route="([^"]+)",status="200"\}', answered))
    assert operations <= {f"{method} {route}" for method, route in good}, "some operations were never answered with 200"
    scanned = [record["arguments"]["target"] for record in accepted(state)]
    assert "127.0.0.1" in scanned, "no tool was run"
    given = [each for target in scanned for each in (target if isinstance(target, list) else [target])]
    assert all(ip_network(each).is_loopback for each in given), "a target outside loopback was accepted"
    assert not [record for record in log_records(state) if record["event"] == "lookup"], "a name was resolved"


PROPERTY = {"type": "object", "required": ["count"], "properties": {"count": {"type": "integer"}}}
ANSWER = {"description": "An answer", "content": {"application/json": {"schema": PROPERTY}}}


def operation(**more: Any) -> dict[str, Any]:
    return {"get": {"responses": {"200": ANSWER}, **more}}


WRONG_PAGE: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "A server that differs from its document", "version": "1"},
    "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    "paths": {
        "/right": operation(),
        "/crash": operation(),
        "/shape": operation(),
        "/type": operation(),
        "/status": operation(),
        "/header": operation(
            responses={"200": ANSWER | {"headers": {"X-Kept": {"required": True, "schema": {"type": "string"}}}}}
        ),
        "/open": operation(security=[{"token": []}], responses={"200": ANSWER, "401": {"description": "No token"}}),
        "/bounds": operation(
            parameters=[{"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 9}}]
        ),
        "/picky": operation(
            parameters=[{"name": "word", "in": "query", "required": True, "schema": {"type": "string"}}],
            responses={"200": ANSWER, "422": {"description": "Refused"}},
        ),
    },
}


class WrongServer(BaseHTTPRequestHandler):
    """Responds to every path except ``/right`` differently from what `WRONG_PAGE` says."""

    RIGHT: ClassVar = (200, "application/json", b'{"count": 1}')
    WRONG: ClassVar = {
        "/openapi.json": (200, "application/json", json.dumps(WRONG_PAGE).encode()),
        "/crash": (500, "application/json", b"{}"),
        "/shape": (200, "application/json", b'{"count": "one"}'),
        "/type": (200, "text/plain", b"1"),
        "/status": (202, "application/json", b'{"count": 1}'),
        "/picky": (422, "application/json", b"{}"),
    }

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.answer(*self.WRONG.get(path, self.RIGHT))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self.other_method
        raise AttributeError(name)

    def other_method(self) -> None:
        self.close_connection = True
        status, allow = (200, {}) if self.path == "/shape" else (405, {"Allow": "GET"})
        self.answer(status, "application/json", b'{"count": 1}', allow)

    def answer(self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the base class
        """Print nothing; the report has the requests."""


@contextmanager
def wrong_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), WrongServer) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Report:
    with wrong_server() as base:
        return run(base, "any", tmp_path_factory.mktemp("wrong"))


@pytest.mark.parametrize(
    ("path", "failure"),
    [
        ("/crash", "ServerError"),
        ("/shape", "JsonSchemaError"),
        ("/shape", "UnsupportedMethodResponse"),
        ("/type", "UndefinedContentType"),
        ("/status", "UndefinedStatusCode"),
        ("/header", "MissingHeaders"),
        ("/open", "IgnoredAuth"),
        ("/bounds", "AcceptedNegativeData"),
        ("/picky", "RejectedPositiveData"),
    ],
)
def test_a_wrong_response_is_found(wrong: Report, path: str, failure: str) -> None:
    found = {each for operation, names in wrong.failures.items() if operation.endswith(f" {path}") for each in names}
    assert failure in found, wrong.text


def test_a_correct_response_is_not_reported(wrong: Report) -> None:
    assert not [operation for operation in wrong.failures if operation.endswith(" /right")], wrong.text
