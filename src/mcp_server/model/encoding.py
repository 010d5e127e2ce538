"""The one JSON form of runs, hosts and their parts, made by pydantic from the types themselves.

The store keeps this form, and every interface shows it. A field that has its default value is left out.
Times are RFC 3339.
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError

T = TypeVar("T")

_SURROGATE = re.compile("[\ud800-\udfff]")


_adapters: dict[type[Any], TypeAdapter[Any]] = {}


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def encode(value: Any) -> dict[str, Any]:
    """Return a dataclass of the model as a dictionary that is ready for JSON."""
    encoded: dict[str, Any] = _adapter(type(value)).dump_python(value, mode="json", exclude_defaults=True)
    return encoded


def encode_json(value: Any) -> str:
    """Return a dataclass of the model as JSON text. A lone surrogate, which JSON cannot hold, is escaped."""
    try:
        return _adapter(type(value)).dump_json(value, exclude_defaults=True).decode()
    except PydanticSerializationError:
        text = json.dumps(encode(value), ensure_ascii=False, separators=(",", ":"))
        return _SURROGATE.sub(lambda match: rf"\\u{ord(match[0]):04x}", text)


def decode(kind: type[T], text: str | bytes) -> T:
    """Return the value that `encode_json` wrote; raise pydantic's ValidationError for any other text."""
    return _adapter(kind).validate_json(text, strict=True)
