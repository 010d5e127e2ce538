"""Every tool's own escape: seen on the wire where nothing stops it, and not seen where only the guard stands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.containment.cell import Cell, Done, cell
from tests.containment.escapes import ESCAPES, IN_SCOPE, words
from tests.containment.wire import Traffic, Wire
from tests.lab.network.handle import Lab

_SECONDS = 8.0


@pytest.fixture(scope="module")
def guarded_cell(ground_lab: Lab) -> Iterator[Cell]:
    with cell(ground_lab, "guarded") as made:
        yield made


@pytest.fixture(scope="module")
def bare(ground_lab: Lab, wire: Wire) -> tuple[Done, Traffic]:
    """All escapes at once with nothing in their way: the control."""
    with cell(ground_lab, "bare") as made:
        wire.reset()
        done = made.run([escape.words("eth0") for escape in ESCAPES], seconds=_SECONDS)
        return done, wire.read()


@pytest.fixture(scope="module")
def guarded(guarded_cell: Cell, wire: Wire) -> tuple[Done, Traffic]:
    """All escapes and the scans in scope at once, with the guard around them."""
    wire.reset()
    commands = [escape.words("scope0") for escape in ESCAPES]
    commands += [words(command, "scope0") for command in IN_SCOPE]
    done = guarded_cell.run(commands, seconds=_SECONDS)
    return done, wire.read()


def test_every_escape_is_one(bare: tuple[Done, Traffic]) -> None:
    bare[1].check_eyes()
    unseen = [e.name for e in ESCAPES if e.fault and not any(e.fault in fault for fault in bare[1].faults)]
    assert not unseen, f"{unseen}: not on the wire, so that the guard would prove nothing; {sorted(bare[1].faults)}"


def test_with_the_guard_alone_nothing_leaves_the_scope(guarded: tuple[Done, Traffic]) -> None:
    guarded[1].assert_held(at_least=15)


def test_every_rule_had_something_to_drop(guarded: tuple[Done, Traffic]) -> None:
    rules = {escape.rule for escape in ESCAPES if escape.rule}
    assert rules <= guarded[0].drops.keys(), guarded[0].drops


def test_what_is_in_scope_went_on_beside_it(guarded: tuple[Done, Traffic]) -> None:
    done, traffic = guarded
    assert done.codes[len(ESCAPES) :] == [0] * len(IN_SCOPE)
    assert {"tcp", "udp", "icmp", "arp", "nd"} <= traffic.rightly.keys()
    assert done.passed >= traffic.scans > 0
