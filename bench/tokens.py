"""What a model is charged for, counted as four characters a token."""

from __future__ import annotations

import json
from typing import Any


def answer_tokens(result: dict[str, Any]) -> float:
    """The tokens of a tool result, its text and its structure together."""
    return json_tokens(result["structuredContent"]) + sum(len(block["text"]) for block in result["content"]) / 4


def json_tokens(value: Any) -> float:
    """The tokens of a value as compact JSON."""
    return len(json.dumps(value, separators=(",", ":"), ensure_ascii=False)) / 4
