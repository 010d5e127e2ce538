"""Time limits of tests, which share the cores of the machine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

SOON: Final = 5.0
"""Seconds for something that an idle machine does within one. The case to detect takes half a minute or never ends."""


async def within_a_second(attempt: Callable[[], Awaitable[float]]) -> None:
    """Require that one of three attempts took less than a second; each attempt returns the seconds it took.

    Other tests on the same cores may delay one attempt, but hardly all three. Something that is really slow fails in
    all three.
    """
    took: list[float] = []
    while not took or took[-1] >= 1:
        assert len(took) < 3, f"every attempt took a second or more: {took}"
        took.append(await attempt())
