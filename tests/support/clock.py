"""How long tests wait for what takes a moment: they share the machine's cores with each other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

SOON: Final = 5.0
"""Seconds for what a machine of its own does within one. What it must be told from takes half a minute or for ever."""


async def within_a_second(attempt: Callable[[], Awaitable[float]]) -> None:
    """Require that one of three attempts took less than a second; each gives the seconds it took.

    Tests on the same cores may hold up one attempt, hardly all three; an ending that is slow by itself fails them all.
    """
    took: list[float] = []
    while not took or took[-1] >= 1:
        assert len(took) < 3, f"every attempt took a second or more: {took}"
        took.append(await attempt())
