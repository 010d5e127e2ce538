"""Tools without any check on a guarded server: pipeline, sandbox and guard protect and report what happened."""

from __future__ import annotations

import itertools

import pytest

from tests.containment import lab_scope
from tests.containment.calls import CallResults, CallToSend, send_calls
from tests.containment.corpus import CORPUS
from tests.containment.escapes import ESCAPES, IN_SCOPE, SENDER, words
from tests.containment.unchecked import TOOLS
from tests.containment.wire import Traffic, Wire
from tests.lab.network.handle import Lab

GUARDED_INTERFACES = ("stdio", "http", "rest")
WITHOUT_GUARD = (
    ("unguarded ping", TOOLS["fping"], {"target": lab_scope.INSIDE, "words": ["-c1", lab_scope.ROUTED_OUT]}),
    *(
        (
            f"unguarded sender {kind}",
            TOOLS["python3.11"],
            {"target": lab_scope.INSIDE, "words": ["-I", "-S", SENDER, kind, "eth0"]},
        )
        for kind in ("routed", "arp", "spoofed")
    ),
)
"""Programs that need raw sockets, over the command line. It runs in the argument tier, so they get none."""


def raw_calls() -> list[CallToSend]:
    """Calls with every escape, scan in scope and attack on nmap, each through the next of the interfaces."""
    interfaces = itertools.cycle(GUARDED_INTERFACES)
    commands = [(escape.name, escape.words("scope0")) for escape in ESCAPES]
    commands += [(f"in scope {n}", words(command, "scope0")) for n, command in enumerate(IN_SCOPE)]
    commands += [(attack.name, ["nmap", *attack.words]) for attack in CORPUS if attack.words]
    return [
        CallToSend(
            name, TOOLS[argv[0]], {"target": lab_scope.INSIDE, "words": argv[1:], "timeout_sec": 3}, (next(interfaces),)
        )
        for name, argv in commands
    ]


pytestmark = pytest.mark.timeout(300)  # much longer than on an idle machine


@pytest.fixture(scope="module")
def unchecked(prepared_lab: Lab, wire: Wire) -> tuple[CallResults, Traffic]:
    calls = [*raw_calls(), *(CallToSend(name, tool, arguments, ("cli",)) for name, tool, arguments in WITHOUT_GUARD)]
    wire.reset()
    found = send_calls(prepared_lab, calls)
    return found, wire.read()


def test_no_frame_was_out_of_scope(unchecked: tuple[CallResults, Traffic]) -> None:
    unchecked[1].assert_in_scope(at_least=300)


def test_every_tool_ran_through_every_guarded_interface(unchecked: tuple[CallResults, Traffic]) -> None:
    guarded = [outcome for outcome in unchecked[0].outcomes if outcome.interface != "cli"]
    assert len(guarded) == len(raw_calls()) > 600
    assert {outcome.interface for outcome in guarded} == set(GUARDED_INTERFACES)
    assert {outcome.code for outcome in guarded} <= {None, "timeout"}


def test_without_a_guard_raw_sockets_are_refused(unchecked: tuple[CallResults, Traffic]) -> None:
    found = {each.name: each for each in unchecked[0].outcomes if each.interface == "cli"}
    assert set(found) == {name for name, _, _ in WITHOUT_GUARD}
    for outcome in found.values():
        assert outcome.code == "permission_denied", outcome


def test_drops_are_alarms_and_are_recorded_with_their_runs(unchecked: tuple[CallResults, Traffic]) -> None:
    records = unchecked[0].records
    alarms = {r["run_id"]: r["dropped"] for r in records if r.get("event") == "alarm" and r["alarm"] == "guard_drops"}
    ends = {r["run_id"]: r for r in records if r.get("event") == "end"}
    assert len(alarms) > len(ESCAPES) / 2, f"expected alarms for most of {len(ESCAPES)} escapes, found {len(alarms)}"
    for run, dropped in alarms.items():
        assert ends[run]["guard"]["dropped"] == dropped
    assert {rule for dropped in alarms.values() for rule in dropped} >= {e.rule for e in ESCAPES if e.rule}


def test_every_audit_record_has_the_enforcement(unchecked: tuple[CallResults, Traffic]) -> None:
    accepted = [r for r in unchecked[0].records if r.get("decision") == "accept"]
    assert {(r["interface"], r["enforcement"]) for r in accepted} == {
        (interface, "kernel") for interface in GUARDED_INTERFACES
    }
    assert [r for r in accepted if not r["ruleset"]] == []
    denied = [r for r in unchecked[0].records if r.get("decision") == "deny"]
    assert {r["enforcement"] for r in denied if r["interface"] == "cli"} == {"argument"}


def test_no_file_was_written_and_none_was_disclosed(unchecked: tuple[CallResults, Traffic]) -> None:
    assert unchecked[0].files == []
    assert [outcome for outcome in unchecked[0].outcomes if outcome.marks] == []
