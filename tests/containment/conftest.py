"""What the proof shares: the lab with a second uplink and a lying resolver, and the wire that is watched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.containment.names import lying_resolver
from tests.containment.wire import Wire, second_uplink
from tests.lab.conftest import lab as lab  # noqa: PLC0414 - pytest finds a fixture by the name in this module
from tests.lab.network.handle import Lab


@pytest.fixture(scope="session")
def ground_lab(lab: Lab) -> Iterator[Lab]:
    """The lab, made ready for the proof."""
    second_uplink(lab)
    with lying_resolver(lab):
        yield lab


@pytest.fixture(scope="session")
def wire(ground_lab: Lab) -> Iterator[Wire]:
    """The tap and the counters on the scanner's ports."""
    with Wire.tap(ground_lab) as watched:
        yield watched
