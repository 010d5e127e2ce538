"""What a line says besides its event: what the message's own template names, and what the call it belongs to binds.

Our messages are templates of the form ``"guard.chosen enforcement=%s"``. The *template* is read, never the finished
text: a value that came from a target or a client cannot make itself a field, nor an event.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

OURS: Final = "mcp_server"
"""The package whose messages have this form; others' are events as a whole."""

_EVENT: Final = re.compile(r"([a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)+):?(?=\s|$)")
_PAIR: Final = re.compile(r"\s+([a-z][a-z0-9_]*)=(%[-+#0 ]*\d*(?:\.\d+)?[a-zA-Z]|[^\s%:;,]+)(?=[\s%:;,]|$)")

_bound: ContextVar[Mapping[str, Any]] = ContextVar("mcp_server_log_fields", default={})  # noqa: B039 - never changed in place


@contextmanager
def bound(**fields: Any) -> Iterator[None]:
    """Put ``fields`` on every line that is logged inside, by whatever logger; those that are None are left out.

    Holds for the tasks and threads (`asyncio.to_thread`) begun inside as well. An inner binding wins.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    token = _bound.set({**_bound.get(), **given})
    try:
        yield
    finally:
        _bound.reset(token)


def bound_fields() -> Mapping[str, Any]:
    """What is bound here, with the trace that is being recorded, if any."""
    from mcp_server.observability import tracing

    trace = tracing.trace_id()
    return {**_bound.get(), "trace_id": trace} if trace else _bound.get()


def split(template: Any, args: Any) -> dict[str, Any]:
    """The parts of a message by name: ``event``, its fields, and what is left of it as ``message``.

    Empty where the template does not begin with the name of an event. Numbers stay numbers, and
    what holds other values stays whole, so that secrets are found in it by their names.
    """
    if not isinstance(template, str) or not isinstance(args, tuple) or (found := _EVENT.match(template)) is None:
        return {}
    fields: dict[str, Any] = {"event": found[1]}
    position, values = found.end(), list(args)
    while (pair := _PAIR.match(template, position)) is not None:
        name, given = pair.groups()
        fields[name] = _value(given, values.pop(0)) if given.startswith("%") else given
        position = pair.end()
    left = template[position:]
    message = (left % tuple(values) if args else left).lstrip(" :;,")
    return fields | {"message": message} if message else fields


def _value(spec: str, value: Any) -> Any:
    if spec[-1] in "sdir" and (value is None or isinstance(value, bool | int | float | Mapping | list | tuple)):
        return value
    return float(spec % (value,)) if spec[-1] in "feg" else spec % (value,)
