"""Escapes of every tool: they are seen on the wire without the guard, and not with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.containment.attack_runner import AttackResult, AttackRunner, attack_runner
from tests.containment.escapes import ESCAPES, IN_SCOPE, words
from tests.containment.wire import Traffic, Wire
from tests.lab.network.handle import Lab

_SECONDS = 8.0


@pytest.fixture(scope="module")
def guarded_runner(prepared_lab: Lab) -> Iterator[AttackRunner]:
    with attack_runner(prepared_lab, "guarded") as made:
        yield made


@pytest.fixture(scope="module")
def bare(prepared_lab: Lab, wire: Wire) -> tuple[AttackResult, Traffic]:
    """All escapes, run concurrently without the guard, as the control."""
    with attack_runner(prepared_lab, "bare") as made:
        wire.reset()
        done = made.run([escape.words("eth0") for escape in ESCAPES], seconds=_SECONDS)
        return done, wire.read()


@pytest.fixture(scope="module")
def guarded(guarded_runner: AttackRunner, wire: Wire) -> tuple[AttackResult, Traffic]:
    """All escapes and the scans in scope, run concurrently with the guard."""
    wire.reset()
    commands = [escape.words("scope0") for escape in ESCAPES]
    commands += [words(command, "scope0") for command in IN_SCOPE]
    done = guarded_runner.run(commands, seconds=_SECONDS)
    return done, wire.read()


def test_every_escape_works_without_the_guard(bare: tuple[AttackResult, Traffic]) -> None:
    bare[1].check_instruments()
    unseen = [e.name for e in ESCAPES if e.fault and not any(e.fault in fault for fault in bare[1].faults)]
    assert not unseen, f"expected all escapes on the wire, found none of {unseen} in {sorted(bare[1].faults)}"


def test_with_the_guard_no_frame_is_out_of_scope(guarded: tuple[AttackResult, Traffic]) -> None:
    guarded[1].assert_in_scope(at_least=15)


def test_every_rule_dropped_frames(guarded: tuple[AttackResult, Traffic]) -> None:
    rules = {escape.rule for escape in ESCAPES if escape.rule}
    assert rules <= guarded[0].drops.keys(), guarded[0].drops


def test_scans_in_scope_succeeded_at_the_same_time(guarded: tuple[AttackResult, Traffic]) -> None:
    done, traffic = guarded
    assert done.codes[len(ESCAPES) :] == [0] * len(IN_SCOPE)
    assert {"tcp", "udp", "icmp", "arp", "nd"} <= traffic.allowed.keys()
    assert done.passed >= traffic.scans > 0
