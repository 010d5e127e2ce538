"""ScopeTool: its answer to a query, and its use of the context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from mcp_server.base_tool import ToolContext
from mcp_server.errors import ArgumentError, BusyError, NotFoundError, TargetError
from mcp_server.model.access import FULL_ACCESS, Access, Permission
from mcp_server.model.run import Actor, Risk
from mcp_server.model.target import Evidence
from mcp_server.scope.policy import ScopePolicy
from mcp_server.tools.context import Assessment
from mcp_server.tools.scope_tool import ScopeParameters, ScopeTool

POLICY = ScopePolicy.from_entries(["10.0.0.0/8", ".lab.internal"])
GRANTED = Assessment(Risk.SCAN, 1, 100, 104, 3.14, 50.0, None)


class Context:
    """Makes a context, and records each call of its functions."""

    def __init__(self, assessed: Assessment | Exception = GRANTED, access: Access = FULL_ACCESS) -> None:
        self.counted = 0
        self.lookups: list[str] = []
        self.assessed: list[tuple[str, Mapping[str, Any]]] = []
        self._result = assessed
        self.context = ToolContext(
            actor=Actor("tester", "test", access=access),
            policy=POLICY,
            allow_intrusive=False,
            resolver=self,
            count_call=self.count_call,
            assess=self.assess,
        )

    async def count_call(self) -> None:
        self.counted += 1

    async def lookup(self, name: str) -> Evidence:
        self.lookups.append(name)
        raise TargetError(f"{name} has no address.", code="target_unresolvable")

    async def assess(self, tool: str, arguments: Mapping[str, Any]) -> Assessment:
        self.assessed.append((tool, arguments))
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


async def ask(context: Context, **query: Any) -> dict[str, Any]:
    return (await ScopeTool().answer(ScopeParameters(**query), context.context)).body


async def test_a_query_with_a_name_counts_as_one_call_and_one_without_does_not() -> None:
    context = Context()
    await ask(context, target=["10.0.0.1", "8.8.8.8"])
    assert context.counted == 0
    await ask(context, target=["a.lab.internal", "b.lab.internal"])
    assert (context.counted, context.lookups) == (1, ["a.lab.internal", "b.lab.internal"])


async def test_a_rate_limit_refuses_the_whole_query_before_any_lookup() -> None:
    class Limited(Context):
        async def count_call(self) -> None:
            raise BusyError("too often", code="rate_limited")

    context = Limited()
    with pytest.raises(BusyError):
        await ask(context, target="a.lab.internal")
    assert context.lookups == []


async def test_a_plan_shows_the_cost_and_the_decision_of_the_assessment() -> None:
    context = Context()
    body = await ask(context, target="10.0.0.1", tool="nmap", parameters={"ports": "1-100"})
    assert context.assessed == [("nmap", {"ports": "1-100", "target": "10.0.0.1"})]
    assert body["plan"] == {
        "tool": "nmap",
        "allowed": True,
        "risk": "scan",
        "addresses": 1,
        "ports": 100,
        "probes": 104,
        "seconds": 3.1,
        "packets_per_second": 50.0,
    }


async def test_a_plan_that_would_be_refused_shows_the_refusal_beside_its_cost() -> None:
    refusal = TargetError("It is outside.", code="target_out_of_scope")
    refused = Assessment(Risk.SCAN, 1, 100, 104, 3.14, None, refusal)
    plan = (await ask(Context(refused), target="10.0.0.1", tool="nmap"))["plan"]
    assert (plan["allowed"], plan["code"], plan["reason"]) == (False, "target_out_of_scope", "It is outside.")
    assert plan["addresses"] == 1


async def test_a_target_that_cannot_be_planned_is_shown_and_a_wrong_argument_is_an_error() -> None:
    plan = (await ask(Context(TargetError("It is outside.")), target="8.8.8.8", tool="nmap"))["plan"]
    assert plan["allowed"] is False
    assert "addresses" not in plan
    for error in (ArgumentError("wrong", parameter="ports"), NotFoundError("no tool", code="unknown_tool")):
        with pytest.raises(type(error)) as caught:
            await ask(Context(error), target="10.0.0.1", tool="nmap")
        assert "parameter" in caught.value.details, "expected an error about a parameter of the query"


@pytest.mark.parametrize("query", [{"parameters": {}}, {"tool": "nmap"}, {"target": "10.0.0.1", "parameters": {}}])
async def test_a_query_without_the_parameters_that_it_needs_is_refused(query: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError) as caught:
        await ask(Context(), **query)
    assert caught.value.hint.endswith(".")


async def test_only_an_actor_with_limits_sees_limits_beside_the_policy() -> None:
    limited = Access(frozenset({Permission.TOOLS_READ}), networks=("10.1.0.0/16",), tools=("nmap",))
    body = await ask(Context(access=limited))
    assert body["caller"]["networks"] == ["10.1.0.0/16"]
    assert body["policy"]["allow_total"] == 2
    assert "caller" not in await ask(Context())


async def test_the_text_has_a_line_for_each_target_and_the_plan() -> None:
    context = Context()
    query = ScopeParameters(target=["10.0.0.1", "8.8.8.8"], tool="nmap")
    lines = (await ScopeTool().answer(query, context.context)).text.splitlines()
    assert lines[0].startswith("allowed: 10.0.0.1: ")
    assert lines[1].startswith("refused: 8.8.8.8: ")
    assert lines[2] == "plan nmap: would run (risk scan, addresses 1, ports 100, probes 104, seconds 3.1)"
