"""Count tokens as four characters each."""

from __future__ import annotations

import json
from typing import Any


def result_tokens(result: dict[str, Any]) -> float:
    """Return the tokens of a tool result, its text and its structured content together."""
    return json_tokens(result["structuredContent"]) + sum(len(block["text"]) for block in result["content"]) / 4


def json_tokens(value: Any) -> float:
    """Return the tokens of a value as compact JSON."""
    return len(json.dumps(value, separators=(",", ":"), ensure_ascii=False)) / 4
