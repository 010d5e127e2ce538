"""A reload applies all live keys. Keys that need a restart and keys that code has set keep their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from mcp_server.config.base import config_error
from mcp_server.config.keys import Key, keys
from mcp_server.config.model import Config
from mcp_server.config.redact import redact


@dataclass(frozen=True, slots=True)
class Pending:
    """A key whose new value needs a restart. Both values are ready for JSON and redacted."""

    key: str
    running: Any
    configured: Any


def apply_live_keys(running: Config, read: Config) -> tuple[Config, tuple[Pending, ...]]:
    """Return the configuration ``running`` with the live keys of ``read``, and the keys that need a restart.

    A value that code has set, such as an option of the command line, stays, because it takes precedence over file and
    environment. Raises ConfigError if the live keys of ``read`` conflict with the other keys of ``running``.
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
        raise config_error(error) from None
    return config, tuple(pending)


def changed_keys(before: Config, after: Config) -> tuple[str, ...]:
    """Return the full names of the keys whose values differ."""
    return tuple(key.dotted for key in keys().values() if key.of(before) != key.of(after))


def _shown(key: Key, config: Config) -> Any:
    return redact(key.name, key.holder(config).model_dump(mode="json")[key.name])
