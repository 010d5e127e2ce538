"""The attack corpus without any check of arguments: only the guard protects."""

from __future__ import annotations

import pytest

from tests.containment.attack_runner import AttackResult, attack_runner
from tests.containment.corpus import CORPUS
from tests.containment.wire import Traffic, Wire
from tests.lab.network.handle import Lab

pytestmark = pytest.mark.timeout(300)  # about 15 s on an idle machine
SECONDS = 6.0
"""Time limit for each command, because scans of whole networks take too long."""


@pytest.fixture(scope="module")
def unchecked(prepared_lab: Lab, wire: Wire) -> tuple[AttackResult, Traffic]:
    """The result of all attacks on nmap, run concurrently, and the traffic."""
    with attack_runner(prepared_lab, "guarded") as made:
        wire.reset()
        done = made.run([["nmap", *attack.words] for attack in CORPUS if attack.words], seconds=SECONDS)
    return done, wire.read()


def test_no_frame_was_out_of_scope(unchecked: tuple[AttackResult, Traffic]) -> None:
    unchecked[1].assert_in_scope(at_least=300)


def test_the_attacks_did_send_frames(unchecked: tuple[AttackResult, Traffic]) -> None:
    done, _ = unchecked
    assert len(done.codes) >= 500
    assert done.dropped > 500, done.drops


def test_every_kind_of_rule_dropped_frames(unchecked: tuple[AttackResult, Traffic]) -> None:
    expected = {"target4", "arp_target", "target6", "nd_target", "source4", "header4", "protocol4", "source_mac"}
    assert expected <= unchecked[0].drops.keys()
