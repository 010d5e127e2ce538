"""The attack corpus through all interfaces: each call is refused with a typed error or stays in scope."""

from __future__ import annotations

from collections import Counter

import pytest

from mcp_server.errors import ERRORS
from tests.containment.calls import CallResults, corpus_calls, send_calls
from tests.containment.corpus import CORPUS
from tests.containment.wire import Traffic, Wire
from tests.lab.network.handle import Lab
from tests.support.interfaces import INTERFACES

WITHOUT_RAW = {"flags-harmless", "flags-harmless-v6"}
"""Attacks that are accepted only with raw sockets. The command line has none, because it is in the argument tier."""

pytestmark = pytest.mark.timeout(300)  # much longer than on an idle machine


@pytest.fixture(scope="module")
def checked(prepared_lab: Lab, wire: Wire) -> tuple[CallResults, Traffic]:
    """The outcomes of the whole corpus, and the traffic during it."""
    wire.reset()
    found = send_calls(prepared_lab, corpus_calls())
    return found, wire.read()


def test_the_corpus_is_large_and_has_no_duplicates() -> None:
    assert len(CORPUS) >= 300
    assert max(Counter(attack.name for attack in CORPUS).values()) == 1
    assert max(Counter((attack.tool, repr(attack.arguments)) for attack in CORPUS).values()) == 1


def test_every_call_was_answered_through_every_interface_that_can_express_it(
    checked: tuple[CallResults, Traffic],
) -> None:
    answered = {(outcome.name, outcome.interface) for outcome in checked[0].outcomes}
    assert answered == {(call.name, interface) for call in corpus_calls() for interface in call.interfaces}
    assert len({interface for _, interface in answered}) == len(INTERFACES)


def test_every_refusal_is_a_typed_error_with_an_expected_code(checked: tuple[CallResults, Traffic]) -> None:
    wrong = []
    by_name = {attack.name: attack for attack in CORPUS}
    for outcome in checked[0].outcomes:
        codes = by_name[outcome.name].codes or {"accepted"}
        if outcome.name in WITHOUT_RAW and outcome.interface == "cli":
            codes = {"permission_denied"}
        if not outcome.typed or (outcome.code and outcome.code not in ERRORS):
            wrong.append(f"{outcome.name} over {outcome.interface}: expected a typed error, found {outcome.text}")
        elif (outcome.code or "accepted") not in codes:
            where = f"{outcome.name} over {outcome.interface}"
            wrong.append(f"{where}: expected {sorted(codes)}, found {outcome.code}: {outcome.text[:160]}")
    assert not wrong, f"expected no other codes, found {len(wrong)}:\n" + "\n".join(wrong)


def test_no_frame_was_out_of_scope(checked: tuple[CallResults, Traffic]) -> None:
    checked[1].assert_in_scope(at_least=40)


def test_the_guard_dropped_nothing(checked: tuple[CallResults, Traffic]) -> None:
    assert [record for record in checked[0].records if record.get("event") == "alarm"] == []


def test_every_decision_is_on_the_audit_log(checked: tuple[CallResults, Traffic]) -> None:
    decided = Counter(r["decision"] for r in checked[0].records if r.get("event") == "decision")
    accepted = sum(outcome.code is None for outcome in checked[0].outcomes)
    assert decided["accept"] == accepted
    # A request that is not a valid call (an unknown tool, an invalid body) can be refused before the pipeline.
    assert decided["deny"] >= 0.9 * (len(checked[0].outcomes) - accepted)


def test_no_file_was_written_and_none_was_disclosed(checked: tuple[CallResults, Traffic]) -> None:
    assert checked[0].files == []
    assert [outcome for outcome in checked[0].outcomes if outcome.marks] == []
