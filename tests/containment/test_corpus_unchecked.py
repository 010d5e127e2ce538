"""The attack corpus with nothing checked: nmap gets its words as they are, and only the guard stands."""

from __future__ import annotations

import pytest

from tests.containment.cell import Done, cell
from tests.containment.corpus import CORPUS
from tests.containment.wire import Traffic, Wire
from tests.lab.network.handle import Lab

pytestmark = pytest.mark.timeout(300)  # a quarter of a minute, on a machine that does nothing else
SECONDS = 6.0
"""Time for each; sweeps of whole networks do not end by themselves."""


@pytest.fixture(scope="module")
def unchecked(ground_lab: Lab, wire: Wire) -> tuple[Done, Traffic]:
    """What became of all attacks on nmap at once, and what was on the wire."""
    with cell(ground_lab, "guarded") as made:
        wire.reset()
        done = made.run([["nmap", *attack.words] for attack in CORPUS if attack.words], seconds=SECONDS)
    return done, wire.read()


def test_nothing_left_the_scope(unchecked: tuple[Done, Traffic]) -> None:
    unchecked[1].assert_held(at_least=300)


def test_the_attacks_were_really_sent(unchecked: tuple[Done, Traffic]) -> None:
    done, _ = unchecked
    assert len(done.codes) >= 500
    assert done.dropped > 500, done.drops


def test_every_kind_of_rule_was_met(unchecked: tuple[Done, Traffic]) -> None:
    expected = {"target4", "arp_target", "target6", "nd_target", "source4", "header4", "protocol4", "source_mac"}
    assert expected <= unchecked[0].drops.keys()
