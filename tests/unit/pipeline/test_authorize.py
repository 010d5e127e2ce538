"""Step 3: one pure function decides whether a plan may run."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mcp_server.base_tool import Command, Estimate, MCPBaseTool, PreparedParameters, ToolInput
from mcp_server.errors import RefusedError
from mcp_server.model.access import FULL_ACCESS, Access, Permission
from mcp_server.model.run import Actor, PortsTested, Risk
from mcp_server.model.target import Target, Targets
from mcp_server.pipeline.authorize import PlannedCall, decide
from mcp_server.pipeline.plan import Plan
from mcp_server.pipeline.validate import Call
from mcp_server.scope.grant import Grant
from mcp_server.scope.policy import ScopePolicy

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
POLICY = """
version: 1
windows:
  night: {days: mon, from: "22:00", to: "23:00", timezone: UTC}
allow:
  - 10.0.0.0/8
  - {network: 10.1.0.0/16, max_risk: probe}
  - {network: 10.2.0.0/16, windows: [night]}
  - {network: 10.3.0.0/16, packets_per_second: 50}
  - {network: 10.4.0.0/16, max_risk: intrusive}
limits: {packets_per_run: 1000}
"""


class PlainTool(MCPBaseTool):
    command_name = "true"


class PacedTool(PlainTool):
    limits_rate = True


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> ScopePolicy:
    path: Path = tmp_path_factory.mktemp("policy") / "policy.yaml"
    path.write_text(POLICY)
    path.chmod(0o600)
    return ScopePolicy.from_file(path)


def plan(network: str = "10.0.0.1", risk: Risk = Risk.SCAN, *, probes: int = 0, paced: bool = False) -> Plan:
    tool = PacedTool() if paced else PlainTool()
    prepared = PreparedParameters(ToolInput(target=network), (), risk)
    host: Any = SimpleNamespace()  # the decision does not read the other fields
    return Plan(
        call=Call("r_1", tool, prepared, Actor("tester", "test"), "r_1"),
        targets=Targets((Target(network, (ip_network(network),)),)),
        command=Command((), (PortsTested("tcp", "1-2", 2, "connect"),), Estimate(1, 2, probes, 3.5)),
        binary=host,
        argv=(),
        limits=host,
        sandbox=host,
        executor=host,
        usual_timeout_sec=1.0,
    )


def code_of(decision: Grant | RefusedError) -> str | None:
    return decision.code if isinstance(decision, RefusedError) else None


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (plan(), None),
        (plan("8.8.8.8"), "target_out_of_scope"),
        (plan("10.1.0.1"), "risk_not_allowed"),
        (plan("10.1.0.1", Risk.PROBE), None),
        (plan("10.2.0.1"), "outside_time_window"),
        (plan("10.3.0.1"), "risk_not_allowed"),
        (plan("10.3.0.1", paced=True), None),
        (plan(probes=1001), "budget_exceeded"),
        (plan("10.4.0.1", Risk.INTRUSIVE), "intrusive_not_allowed"),
    ],
)
def test_the_policy_allows_a_plan_or_refuses_it_with_a_code(policy: ScopePolicy, asked: Plan, code: str | None) -> None:
    assert code_of(decide(asked, policy, FULL_ACCESS, allow_intrusive=False, now=NOW)) == code


def test_the_operator_may_allow_intrusive_calls(policy: ScopePolicy) -> None:
    decision = decide(plan("10.4.0.1", Risk.INTRUSIVE), policy, FULL_ACCESS, allow_intrusive=True, now=NOW)
    assert isinstance(decision, Grant)


def test_a_call_is_allowed_inside_the_time_window(policy: ScopePolicy) -> None:
    decision = decide(plan("10.2.0.1"), policy, FULL_ACCESS, allow_intrusive=False, now=NOW.replace(hour=22))
    assert isinstance(decision, Grant)


def test_the_permission_is_checked_first(policy: ScopePolicy) -> None:
    reader = Access(frozenset({Permission.TOOLS_READ}))
    decision = decide(plan("8.8.8.8"), policy, reader, allow_intrusive=False, now=NOW)
    assert code_of(decision) == "insufficient_scope"


def test_the_same_plan_gets_the_same_decision_each_time(policy: ScopePolicy) -> None:
    decisions = [
        decide(plan("10.3.0.1", paced=True), policy, FULL_ACCESS, allow_intrusive=False, now=NOW) for _ in "ab"
    ]
    assert decisions[0] == decisions[1]
    assert isinstance(decisions[0], Grant)
    assert decisions[0].packets_per_second == 50


def test_an_assessment_has_the_cost_of_the_plan_and_the_decision(policy: ScopePolicy) -> None:
    asked = plan(probes=7)
    granted = PlannedCall(asked, Grant(packets_per_second=9.0)).assessment()
    assert (granted.addresses, granted.ports, granted.probes, granted.seconds) == (1, 2, 7, 3.5)
    assert (granted.refusal, granted.packets_per_second) == (None, 9.0)
    refusal = decide(plan("8.8.8.8"), policy, FULL_ACCESS, allow_intrusive=False, now=NOW)
    assert isinstance(refusal, RefusedError)
    refused = replace(PlannedCall(asked, refusal)).assessment()
    assert (refused.refusal, refused.packets_per_second) == (refusal, None)
