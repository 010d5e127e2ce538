"""Step 1: arguments become types, or an error that names the parameter."""

from __future__ import annotations

import getpass
import json
import math
import os
import re
from typing import Any

import pytest

from mcp_server.base_tool import MCPBaseTool
from mcp_server.errors import ArgumentError
from mcp_server.model.run import Actor
from mcp_server.pipeline.validate import new_run_id, read_call, user_name
from mcp_server.tools.nmap_tool import NmapTool

ACTOR = Actor("tester", "test")


class PlainTool(MCPBaseTool):
    command_name = "echo"


def refused(arguments: dict[Any, Any], tool: MCPBaseTool | None = None) -> ArgumentError:
    with pytest.raises(ArgumentError) as caught:
        read_call(tool or NmapTool(), arguments, ACTOR)
    assert caught.value.code == "invalid_arguments"
    assert len(json.dumps(caught.value.as_dict())) < 4000
    assert caught.value.message.isprintable()
    return caught.value


def test_good_arguments_become_a_typed_call() -> None:
    call = read_call(NmapTool(), {"target": ["10.0.0.1"], "timing": 4, "correlation_id": "a-1"}, ACTOR)
    assert (call.actor, call.correlation_id) == (ACTOR, "a-1")
    assert call.parameters.model_dump(exclude_defaults=True) == {
        "target": ["10.0.0.1"],
        "timing": 4,
        "correlation_id": "a-1",
    }


def test_a_call_without_an_id_gets_its_runs() -> None:
    first, second = (read_call(PlainTool(), {"target": "10.0.0.1"}, ACTOR) for _ in range(2))
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
def test_the_sentence_names_the_parameter_and_the_value(arguments: dict[str, Any], sentence: str) -> None:
    assert sentence in refused(arguments).message


def test_all_problems_are_told_and_the_hint_lists_what_there_is() -> None:
    error = refused({"prots": "80", "timing": "4"})
    assert error.details["problems"] == [
        "parameter 'target' is required",
        "parameter 'timing': Input should be a valid integer (given: 4)",
        "unknown parameter 'prots'",
    ]
    assert error.hint == f"Known parameters: {', '.join(NmapTool.parameters.model_fields)}."
    assert refused({}, PlainTool()).hint == "Known parameters: extra_args, timeout_sec, correlation_id, target."


def test_thousands_of_wrong_parameters_are_a_short_answer() -> None:
    assert "5000 parameters are too many" in refused({f"{number}" * 100: number for number in range(5000)}).message
    assert len(refused({f"{number}" * 100: number for number in range(60)}).details["problems"]) == 8
    refused({"x" * 1_000_000: "y" * 1_000_000, "target": "z" * 1_000_000})


def test_nothing_of_our_types_is_in_the_sentence() -> None:
    error = refused({"target": {"host": "10.0.0.1"}, "scripts": ["a", 5]})
    assert "constrained" not in json.dumps(error.as_dict())
    assert "list[" not in json.dumps(error.as_dict())


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_name() == getpass.getuser()
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert user_name() == "uid 4000000"
