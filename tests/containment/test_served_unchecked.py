"""Tools that check nothing, served under the guard: road, sandbox and guard stand, and say what happened."""

from __future__ import annotations

import itertools

import pytest

from tests.containment import ground
from tests.containment.corpus import CORPUS
from tests.containment.drive import Harvest, Sent, harvest
from tests.containment.escapes import ESCAPES, IN_SCOPE, SENDER, words
from tests.containment.unchecked import TOOLS
from tests.containment.wire import Traffic, Wire
from tests.lab.network.handle import Lab

GUARDED_INTERFACES = ("stdio", "http", "rest")
WITHOUT_GUARD = (
    ("unguarded ping", TOOLS["fping"], {"target": ground.INSIDE, "words": ["-c1", ground.ROUTED_OUT]}),
    *(
        (
            f"unguarded sender {kind}",
            TOOLS["python3.11"],
            {"target": ground.INSIDE, "words": ["-I", "-S", SENDER, kind, "eth0"]},
        )
        for kind in ("routed", "arp", "spoofed")
    ),
)
"""Raw senders over the command line, which runs in the argument tier here: they get no raw socket."""


def raw_calls() -> list[Sent]:
    """Every escape, scan in scope and attack on nmap, as words for a tool that takes any, through one interface in turn."""
    interfaces = itertools.cycle(GUARDED_INTERFACES)
    commands = [(escape.name, escape.words("scope0")) for escape in ESCAPES]
    commands += [(f"in scope {n}", words(command, "scope0")) for n, command in enumerate(IN_SCOPE)]
    commands += [(attack.name, ["nmap", *attack.words]) for attack in CORPUS if attack.words]
    return [
        Sent(name, TOOLS[argv[0]], {"target": ground.INSIDE, "words": argv[1:], "timeout_sec": 3}, (next(interfaces),))
        for name, argv in commands
    ]


pytestmark = pytest.mark.timeout(300)  # far more than it takes on a machine that does nothing else


@pytest.fixture(scope="module")
def unchecked(ground_lab: Lab, wire: Wire) -> tuple[Harvest, Traffic]:
    calls = [*raw_calls(), *(Sent(name, tool, arguments, ("cli",)) for name, tool, arguments in WITHOUT_GUARD)]
    wire.reset()
    found = harvest(ground_lab, calls)
    return found, wire.read()


def test_nothing_left_the_scope(unchecked: tuple[Harvest, Traffic]) -> None:
    unchecked[1].assert_held(at_least=300)


def test_every_tool_ran_through_every_guarded_interface(unchecked: tuple[Harvest, Traffic]) -> None:
    guarded = [outcome for outcome in unchecked[0].outcomes if outcome.interface != "cli"]
    assert len(guarded) == len(raw_calls()) > 600
    assert {outcome.interface for outcome in guarded} == set(GUARDED_INTERFACES)
    assert {outcome.code for outcome in guarded} <= {None, "timeout"}


def test_without_a_guard_raw_senders_send_nothing(unchecked: tuple[Harvest, Traffic]) -> None:
    found = {each.name: each for each in unchecked[0].outcomes if each.interface == "cli"}
    assert set(found) == {name for name, _, _ in WITHOUT_GUARD}
    for outcome in found.values():
        assert outcome.code == "permission_denied", outcome


def test_drops_are_alarms_and_mark_their_runs(unchecked: tuple[Harvest, Traffic]) -> None:
    records = unchecked[0].records
    alarms = {r["run_id"]: r["dropped"] for r in records if r.get("event") == "alarm" and r["alarm"] == "guard_drops"}
    ends = {r["run_id"]: r for r in records if r.get("event") == "end"}
    assert len(alarms) > len(ESCAPES) / 2
    for run, dropped in alarms.items():
        assert ends[run]["guard"]["dropped"] == dropped
    assert {rule for dropped in alarms.values() for rule in dropped} >= {e.rule for e in ESCAPES if e.rule}


def test_every_record_says_how_the_scope_was_enforced(unchecked: tuple[Harvest, Traffic]) -> None:
    accepted = [r for r in unchecked[0].records if r.get("decision") == "accept"]
    assert {(r["interface"], r["enforcement"]) for r in accepted} == {
        (interface, "kernel") for interface in GUARDED_INTERFACES
    }
    assert all(r["ruleset"] for r in accepted)
    denied = [r for r in unchecked[0].records if r.get("decision") == "deny"]
    assert {r["enforcement"] for r in denied if r["interface"] == "cli"} == {"argument"}


def test_no_file_was_left_and_none_was_shown(unchecked: tuple[Harvest, Traffic]) -> None:
    assert unchecked[0].files == []
    assert [outcome for outcome in unchecked[0].outcomes if outcome.marks] == []
