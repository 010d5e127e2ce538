"""What a reload can bring into force: everything but the keys that are read at the start, and what was set in code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from mcp_server.config.base import refusal
from mcp_server.config.keys import Key, keys
from mcp_server.config.model import Config
from mcp_server.config.redact import redact


@dataclass(frozen=True, slots=True)
class Pending:
    """A key whose new value waits for a restart. Both values are ready for JSON, and redacted."""

    key: str
    running: Any
    configured: Any


def under(running: Config, read: Config) -> tuple[Config, tuple[Pending, ...]]:
    """What a server with the configuration ``running`` may use of ``read``, and which keys wait for a restart.

    A value that code has set (an option of the command line) stays: nothing that is read stands above it. Raises
    `ConfigError` where the live keys of ``read`` do not go with the other keys that are in force.
    """
    config, pending = read.model_copy(deep=True), []
    for key in keys().values():
        set_by_code = key.holder(running).source_of(key.name) == "code"
        if not set_by_code and (key.status == "live" or key.of(running) == key.of(read)):
            continue
        if not set_by_code:
            pending.append(Pending(key.dotted, _shown(key, running), _shown(key, read)))
        key.holder(config).adopt(key.name, key.holder(running))
    try:
        Config.model_validate(config.model_dump())
    except ValidationError as error:
        raise refusal(error) from None
    return config, tuple(pending)


def changed(before: Config, after: Config) -> tuple[str, ...]:
    """The keys whose values differ, by their full names."""
    return tuple(key.dotted for key in keys().values() if key.of(before) != key.of(after))


def _shown(key: Key, config: Config) -> Any:
    return redact(key.name, key.holder(config).model_dump(mode="json")[key.name])
