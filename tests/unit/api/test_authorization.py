"""The table of permissions has every route and method. A request without a row is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mcp_server.api.http.application import build_application
from mcp_server.api.http.authorization import METHODS, ROUTES, PermissionMiddleware, route_of, served, step_up
from mcp_server.api.http.callers import with_identity
from mcp_server.api.mcp.handlers import build_mcp_server
from mcp_server.api.rest.app import build_rest
from mcp_server.config import load_config
from mcp_server.errors import AccessError
from mcp_server.identity.base import Identity
from mcp_server.model.access import FULL_ACCESS, NOBODY, Access, Permission, Role
from mcp_server.model.run import Actor, Risk
from mcp_server.scope.permissions import ALL, NEEDED, insufficient, require_any_call, require_risk
from mcp_server.server import EnhancedMCPServer
from mcp_server.server.services import rest_services
from tests.support.interfaces import environment


@pytest.fixture
def server(tmp_path: Any) -> EnhancedMCPServer:
    return EnhancedMCPServer(load_config(env=environment(tmp_path / "state")))


def test_every_route_that_is_served_has_a_row_and_every_row_a_route(server: EnhancedMCPServer) -> None:
    routes = {row for row in served(build_rest(rest_services(server.services)).routes) if row[1] != "/mcp"}
    assert routes == {row for row in ROUTES if row[1] != "/mcp"}
    assert {method for method, path in ROUTES if path == "/mcp"} == {"GET", "POST", "DELETE"}


def test_a_route_without_a_row_is_not_served(server: EnhancedMCPServer) -> None:
    async def app(*_: Any) -> None: ...

    with pytest.raises(LookupError, match="/new"):
        PermissionMiddleware(app, server.pipeline, [SimpleNamespace(path="/new", methods={"GET"})])
    build_application(
        rest_services(server.services), server.services.authenticator, server.services.failed_authentications
    )


def test_every_method_with_a_handler_has_a_row(server: EnhancedMCPServer) -> None:
    built = build_mcp_server(server.pipeline, "http")
    handled = set(built._request_handlers)
    assert handled <= set(METHODS), "every method with a handler must have a row"
    assert set(METHODS) - handled <= {"initialize", "server/discover"}


@pytest.mark.parametrize(
    ("method", "path", "row"),
    [
        ("GET", "/runs/r_1", ("GET", "/runs/{run_id}")),
        ("GET", "/runs/r_1/", ("GET", "/runs/{run_id}")),
        ("HEAD", "/docs", ("GET", "/docs")),
        ("GET", "/tools/", ("GET", "/tools")),
        ("POST", "/admin/tools/nmap/enable", ("POST", "/admin/tools/{tool_name}/{action}")),
        ("POST", "/tools/../execute", ("POST", "/tools/{tool_name}/execute")),
        ("POST", "/mcp/", ("POST", "/mcp")),
        ("GET", "", ("GET", "/")),
        ("GET", "/runs/a/b", None),
        ("DELETE", "/tools", None),
        ("get", "/tools", None),
        ("GET", "//runs", None),
        ("GET", "/config\n", ("GET", "/config")),
        ("GET", "/runs/r_1/raw\n", ("GET", "/runs/{run_id}/raw")),
    ],
)
def test_a_request_has_the_row_of_its_route_or_none(method: str, path: str, row: tuple[str, str] | None) -> None:
    assert route_of({"method": method, "path": path}) == row


def test_a_challenge_names_the_permissions_that_the_caller_has_and_lacks() -> None:
    access = Access(frozenset({Permission.RUNS_READ}))
    scope = with_identity({"type": "http"}, Identity("key:a", access))
    name, value = step_up(scope, insufficient([Permission.TOOLS_SCAN], "nmap"))
    assert (name, value) == (b"www-authenticate", b'Bearer error="insufficient_scope", scope="runs:read tools:scan"')


@pytest.mark.parametrize("risk", Risk)
def test_each_risk_needs_its_own_permission(risk: Risk) -> None:
    require_risk(FULL_ACCESS, risk, "x")
    require_risk(Access(frozenset({NEEDED[risk]})), risk, "x")
    for access in (NOBODY, Access(frozenset(Permission) - {NEEDED[risk]})):
        with pytest.raises(AccessError) as refused:
            require_risk(access, risk, "x")
        assert (refused.value.code, refused.value.spec.http) == ("insufficient_scope", 403)
        assert refused.value.details == {"scope": NEEDED[risk].value}
    with pytest.raises(AccessError):
        require_any_call(Access(frozenset(Permission) - ALL))


def test_an_actor_without_a_given_access_may_do_nothing() -> None:
    actor = Actor("a", "http")
    assert actor.access == NOBODY
    assert actor.own_runs == "a"
    assert Actor("a", "http", access=FULL_ACCESS).own_runs is None
    assert Actor("a", "stdio").over_http == ""


def test_each_role_has_its_permissions() -> None:
    assert Role.VIEWER.permissions == {Permission.TOOLS_READ, Permission.RUNS_READ}
    assert Role.OPERATOR.permissions == Role.VIEWER.permissions | {Permission.TOOLS_PROBE, Permission.TOOLS_SCAN}
    assert Role.ADMIN.permissions == frozenset(Permission)


def test_the_page_names_every_scope_route_and_method() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/actors.md").read_text()
    for permission in Permission:
        assert f"| `{permission.value}` |" in page
    for method, path in ROUTES:
        short = "/admin/..." if method == "POST" and path.startswith("/admin") else path
        assert short in page or path == "/docs/oauth2-redirect", (method, path)
    for method in METHODS:
        assert f"`{method}`" in page
