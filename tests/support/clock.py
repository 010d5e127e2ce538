"""How long tests wait for what takes a moment: they share the machine's cores with each other."""

from __future__ import annotations

from typing import Final

SOON: Final = 5.0
"""Seconds for what a machine of its own does within one. What it must be told from takes half a minute or for ever."""
