"""Step 1: arguments become types, or an error that names the parameter; the permission is checked once."""

from __future__ import annotations

import getpass
import json
import math
import os
import re
from dataclasses import replace
from typing import Any

import pytest

from mcp_server.base_tool import MCPBaseTool
from mcp_server.errors import ArgumentError, NetworkToolsError
from mcp_server.model.access import FULL_ACCESS, Access, Permission
from mcp_server.model.run import Actor, Risk
from mcp_server.pipeline.validate import Call, ValidatedRequest, new_run_id, user_name, validate
from mcp_server.tools.nmap_tool import NmapTool
from mcp_server.tools.registry import ToolRegistry
from mcp_server.tools.scope_tool import ScopeTool

ACTOR = Actor("tester", "test")


class PlainTool(MCPBaseTool):
    command_name = "echo"


REGISTRY = ToolRegistry({"nmap": NmapTool(), "plain": PlainTool(), "scope": ScopeTool()})


def validated(
    name: str, arguments: dict[Any, Any], permissions: frozenset[Permission] = FULL_ACCESS.permissions
) -> ValidatedRequest:
    actor = replace(ACTOR, access=Access(permissions))
    return validate(REGISTRY, name, arguments, actor, max_args_length=2048)


def refused(arguments: dict[Any, Any], tool: str = "nmap") -> ArgumentError:
    with pytest.raises(ArgumentError) as caught:
        validated(tool, arguments).require(Call)
    assert caught.value.code == "invalid_arguments"
    assert len(json.dumps(caught.value.as_dict())) < 4000
    assert caught.value.message.isprintable()
    return caught.value


def test_good_arguments_become_a_typed_call() -> None:
    call = validated("nmap", {"target": ["10.0.0.1"], "timing": 4, "correlation_id": "a-1"}).require(Call)
    assert (call.actor, call.correlation_id) == (ACTOR, "a-1")
    assert call.parameters.model_dump(exclude_defaults=True) == {
        "target": ["10.0.0.1"],
        "timing": 4,
        "correlation_id": "a-1",
    }


def test_a_call_without_a_correlation_id_gets_the_id_of_its_run() -> None:
    first, second = (validated("plain", {"target": "10.0.0.1"}).require(Call) for _ in range(2))
    assert first.correlation_id == first.id
    assert first.id != second.id
    assert re.fullmatch(r"r_[0-9a-f]{24}", new_run_id())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "nmap: parameter 'target' is required"),
        ({"target": "10.0.0.1", "prots": "80"}, "nmap: unknown parameter 'prots'"),
        ({"target": "10.0.0.1", "timing": "4"}, "nmap: parameter 'timing': Input should be a valid integer (given: 4)"),
        ({"target": "10.0.0.1", "timing": True}, "(given: bool)"),
        ({"target": "10.0.0.1", "timing": 10**5000}, "nmap: parameter 'timing': Input should be less than"),
        ({"target": "10.0.0.1", "timeout_sec": math.nan}, "nmap: parameter 'timeout_sec': "),
        ({"target": "10.0.0.1", "timeout_sec": math.inf}, "nmap: parameter 'timeout_sec': "),
        ({"target": 5}, "nmap: parameter 'target': Input should be a valid string (given: int)"),
        ({"target": None}, "nmap: parameter 'target': "),
        ({"target": "a" * 300}, "nmap: parameter 'target': String should have at most 255 characters"),
        ({"target": ["10.0.0.1"] * 300}, "nmap: parameter 'target': List should have at most 256 items"),
        ({"target": []}, "nmap: parameter 'target': List should have at least 1 item"),
        ({"target": ["10.0.0.1", ""]}, "nmap: parameter 'target.1': String should have at least 1 character"),
        ({"target": "10.0.0.1", "mode": "x\x1b[31m"}, r"(given: x\x1b[31m)"),
        ({"target": "10.0.0.1", "a\x1b[31m": 1}, r"nmap: unknown parameter 'a\\x1b[31m'"),
        ({"target": "10.0.0.1", "a\udcff": 1}, r"nmap: unknown parameter 'a\\xff'"),
        ({"target": "10.0.0.\udcff"}, r"(given: 10.0.0.\xff)"),
        ({"target": "10.0.0.1", "correlation_id": "a b"}, "nmap: parameter 'correlation_id': "),
    ],
)
def test_the_error_names_the_parameter_and_the_value(arguments: dict[str, Any], sentence: str) -> None:
    assert sentence in refused(arguments).message


def test_the_details_list_all_problems_and_the_hint_lists_the_parameters() -> None:
    error = refused({"prots": "80", "timing": "4"})
    assert error.details["problems"] == [
        "parameter 'target' is required",
        "parameter 'timing': Input should be a valid integer (given: 4)",
        "unknown parameter 'prots'",
    ]
    assert error.hint == f"Known parameters: {', '.join(NmapTool.parameters.model_fields)}."
    assert refused({}, "plain").hint == "Known parameters: extra_args, timeout_sec, correlation_id, target."


def test_thousands_of_wrong_parameters_give_a_short_error() -> None:
    assert "5000 parameters are too many" in refused({f"{number}" * 100: number for number in range(5000)}).message
    assert len(refused({f"{number}" * 100: number for number in range(60)}).details["problems"]) == 8
    refused({"x" * 1_000_000: "y" * 1_000_000, "target": "z" * 1_000_000})


def test_the_error_does_not_show_internal_types() -> None:
    error = refused({"target": {"host": "10.0.0.1"}, "scripts": ["a", 5]})
    assert "constrained" not in json.dumps(error.as_dict())
    assert "list[" not in json.dumps(error.as_dict())


def test_a_user_without_a_name_is_shown_as_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_name() == getpass.getuser()
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert user_name() == "uid 4000000"


def test_the_risk_of_a_call_follows_from_its_parameters() -> None:
    risks = {
        mode: validated("nmap", {"target": "10.0.0.1", "mode": mode}).require(Call).prepared.risk
        for mode in ("discover", "ports")
    }
    assert risks == {"discover": Risk.PROBE, "ports": Risk.SCAN}


@pytest.mark.parametrize(
    ("held", "arguments", "needed"),
    [
        ({Permission.TOOLS_PROBE}, {"target": "10.0.0.1", "mode": "ports"}, "tools:scan"),
        ({Permission.TOOLS_READ}, {"target": "10.0.0.1", "mode": "ports"}, "tools:scan"),
        ({Permission.TOOLS_READ}, {"target": "10.0.0.1", "mode": "discover"}, "tools:probe"),
        ({Permission.TOOLS_READ}, {"target": "10.0.0.1", "wrong": 1}, "tools:probe"),
        ({Permission.RUNS_READ}, {"target": "10.0.0.1"}, "tools:read"),
    ],
)
def test_the_error_names_the_permission_that_the_call_needs(
    held: set[Permission], arguments: dict[str, Any], needed: str
) -> None:
    request = validated("nmap", arguments, frozenset(held))
    assert request.lacks_permission
    assert isinstance(request.result, NetworkToolsError)
    assert request.result.details["scope"] == needed


def test_with_the_permission_the_error_is_about_the_arguments() -> None:
    request = validated("nmap", {"target": "10.0.0.1", "wrong": 1}, frozenset({Permission.TOOLS_PROBE}))
    assert isinstance(request.result, ArgumentError)
    assert not request.lacks_permission


def test_a_tool_that_runs_no_program_needs_the_permission_to_read_and_has_no_plan() -> None:
    query = validated("scope", {"target": "10.0.0.1"}, frozenset({Permission.TOOLS_READ}))
    assert not isinstance(query.result, NetworkToolsError)
    with pytest.raises(ArgumentError, match="runs no program"):
        query.require(Call)
    assert validated("scope", {"target": "10.0.0.1"}, frozenset({Permission.TOOLS_SCAN})).lacks_permission
    assert isinstance(validated("scope", {"target": 1}).result, ArgumentError)
