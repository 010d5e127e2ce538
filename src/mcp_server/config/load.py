"""Loading: defaults, then the file, then the environment; and the one configuration of this process."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from mcp_server.config.base import bounds, refusal
from mcp_server.config.keys import sections
from mcp_server.config.model import ClampedValue, Config, UnusedKey
from mcp_server.config.sources import FILE_VARIABLE, GivenValue, from_env, from_file

_logger = logging.getLogger("mcp_server.config")

READ_SINCE: Final = time.time()
"""No configuration of this process was read before this moment, in seconds since 1970."""


def load_config(
    path: str | os.PathLike[str] | None = None, env: Mapping[str, str] | None = None, *, notify: bool = True
) -> Config:
    """Build a configuration from a file and an environment; nothing is remembered between calls.

    ``path`` wins over ``MCP_CONFIG_FILE`` in ``env``; ``env`` is the process's own where None. A number outside its
    range is moved to the nearest bound, and a warning is logged unless ``notify`` is False. Raises `ConfigError` for
    anything else that is bad.
    """
    env = os.environ if env is None else env
    chosen = path or env.get(FILE_VARIABLE) or None
    file = None if chosen is None else Path(chosen).expanduser().absolute()
    merged: dict[tuple[str, str], GivenValue] = {}
    for given in [*(from_file(file) if file else ()), *from_env(env)]:
        merged[given.key.section, given.key.name] = given  # the environment comes last, key by key
    values, clamped = _clamp(merged.values())
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        origins = {given.key.dotted: given.origin for given in merged.values()}
        raise refusal(error, origins=origins) from None
    not_yet_used = tuple(UnusedKey(g.key.section, g.key.name) for g in merged.values() if g.key.status == "later")
    sources = {name: given.source for name, given in merged.items()}
    config.mark_loaded(file=file, clamped=clamped, not_yet_used=not_yet_used, sources=sources)
    if notify:
        log_notices(config)
    return config


def log_notices(config: Config) -> None:
    """Log as warnings what was clamped and what is set without a reader yet.

    `load_config` does it once; a server that opens its log after loading may do it again.
    """
    for notice in (*config.clamped, *config.not_yet_used):
        _logger.warning(notice)


class _Current:
    """The configuration of this process, and the file it was asked to come from."""

    config: Config | None = None
    path: str | os.PathLike[str] | None = None


def get_config(force_new: bool = False, *, notify: bool = True) -> Config:
    """Return the configuration of this process, loading it at the first call.

    ``force_new`` loads it again; where that raises `ConfigError`, the old one stays. A server that opens its log
    afterwards passes ``notify`` False and calls `log_notices` then.
    """
    if _Current.config is None or force_new:
        _Current.config = load_config(_Current.path, notify=notify)
    return _Current.config


def read_again() -> Config:
    """Read file and environment as at the start, without making that the configuration of this process.

    Raises `ConfigError` where they are bad. What the command line set is not in it.
    """
    return load_config(_Current.path)


def replace_config(old: Config, new: Config) -> None:
    """Make ``new`` the configuration of this process where ``old`` was it."""
    if _Current.config is old:
        _Current.config = new


def set_config(config: Config, *, path: str | os.PathLike[str] | None = None) -> None:
    """Make ``config`` the configuration of this process; ``path`` is the file a reload reads."""
    _Current.config, _Current.path = config, path


def reset_config() -> None:
    """Forget the configuration of this process; the next `get_config` loads it."""
    _Current.config, _Current.path = None, None


def _clamp(given: Iterable[GivenValue]) -> tuple[dict[str, Any], tuple[ClampedValue, ...]]:
    values: dict[str, Any] = {name: {} for name in sections()}
    clamped = []
    for item in given:
        section, name, value = item.key.section, item.key.name, item.value
        limits = bounds(item.key.field)
        # Only whole numbers for whole keys, and no bool, NaN or infinity: those are mistakes of type, for validation.
        if limits and _is_number(value, item.key.field.annotation):
            adjusted = min(max(value, limits[0]), limits[1])
            if adjusted != value:
                clamped.append(ClampedValue(section, name, value, adjusted, limits))
            value = adjusted
        (values.setdefault(section, {}) if section else values)[name] = value
    return values, tuple(clamped)


def _is_number(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return True
    return kind is float and isinstance(value, float) and math.isfinite(value)
