"""The attack corpus through all interfaces with arguments checked: refused with a typed error, or in scope only."""

from __future__ import annotations

from collections import Counter

import pytest

from mcp_server.errors import ERRORS
from tests.containment.corpus import CORPUS
from tests.containment.drive import Harvest, corpus_calls, harvest
from tests.containment.wire import Traffic, Wire
from tests.lab.network.handle import Lab
from tests.support.interfaces import INTERFACES

WITHOUT_RAW = {"flags-harmless", "flags-harmless-v6"}
"""Taken where raw sockets are; the command line has none, in the argument tier."""

pytestmark = pytest.mark.timeout(300)  # far more than it takes on a machine that does nothing else


@pytest.fixture(scope="module")
def checked(ground_lab: Lab, wire: Wire) -> tuple[Harvest, Traffic]:
    """The whole corpus, and what was on the wire meanwhile."""
    wire.reset()
    found = harvest(ground_lab, corpus_calls())
    return found, wire.read()


def test_the_corpus_is_large_and_each_call_is_another() -> None:
    assert len(CORPUS) >= 300
    assert max(Counter(attack.name for attack in CORPUS).values()) == 1
    assert max(Counter((attack.tool, repr(attack.arguments)) for attack in CORPUS).values()) == 1


def test_every_call_got_an_answer_through_every_interface_that_can_say_it(checked: tuple[Harvest, Traffic]) -> None:
    answered = {(outcome.name, outcome.interface) for outcome in checked[0].outcomes}
    assert answered == {(call.name, interface) for call in corpus_calls() for interface in call.interfaces}
    assert len({interface for _, interface in answered}) == len(INTERFACES)


def test_every_refusal_is_typed_and_for_the_right_reason(checked: tuple[Harvest, Traffic]) -> None:
    wrong = []
    by_name = {attack.name: attack for attack in CORPUS}
    for outcome in checked[0].outcomes:
        codes = by_name[outcome.name].codes or {"held"}
        if outcome.name in WITHOUT_RAW and outcome.interface == "cli":
            codes = {"permission_denied"}
        if not outcome.typed or (outcome.code and outcome.code not in ERRORS):
            wrong.append(f"{outcome.name} over {outcome.interface}: not a typed error: {outcome.text}")
        elif (outcome.code or "held") not in codes:
            wrong.append(
                f"{outcome.name} over {outcome.interface}: {outcome.code}, not {sorted(codes)}: {outcome.text[:160]}"
            )
    assert not wrong, f"{len(wrong)} of {len(checked[0].outcomes)}:\n" + "\n".join(wrong)


def test_nothing_left_the_scope(checked: tuple[Harvest, Traffic]) -> None:
    checked[1].assert_held(at_least=40)


def test_the_guard_had_nothing_to_do(checked: tuple[Harvest, Traffic]) -> None:
    assert [record for record in checked[0].records if record.get("event") == "alarm"] == []


def test_every_decision_is_on_the_audit_log(checked: tuple[Harvest, Traffic]) -> None:
    decided = Counter(r["decision"] for r in checked[0].records if r.get("event") == "decision")
    taken = sum(outcome.code is None for outcome in checked[0].outcomes)
    assert decided["accept"] == taken
    # What is no call at all (an unknown tool's name, a body of another shape) may end before the road begins.
    assert decided["deny"] >= 0.9 * (len(checked[0].outcomes) - taken)


def test_no_file_was_left_and_none_was_shown(checked: tuple[Harvest, Traffic]) -> None:
    assert checked[0].files == []
    assert [outcome for outcome in checked[0].outcomes if outcome.marks] == []
