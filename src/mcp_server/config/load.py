"""Load the configuration: defaults, then the file, then the environment; and keep the configuration of this process."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from mcp_server.config.base import bounds, config_error
from mcp_server.config.keys import sections
from mcp_server.config.model import ClampedValue, Config
from mcp_server.config.sources import FILE_VARIABLE, GivenValue, from_env, from_file

_logger = logging.getLogger("mcp_server.config")

READ_SINCE: Final = time.time()
"""The time when this module was loaded, in seconds since 1970. The configuration is read later."""


def load_config(
    path: str | os.PathLike[str] | None = None, env: Mapping[str, str] | None = None, *, notify: bool = True
) -> Config:
    """Build a configuration from a file and an environment, without changing the configuration of this process.

    ``path`` takes precedence over ``MCP_CONFIG_FILE`` in ``env``. ``env`` None means the environment of this process. A
    number outside its range is moved to the nearest bound, and a warning is logged unless ``notify`` is False. Raises
    ConfigError for anything else that is wrong.
    """
    env = os.environ if env is None else env
    chosen = path or env.get(FILE_VARIABLE) or None
    file = None if chosen is None else Path(chosen).expanduser().absolute()
    merged: dict[tuple[str, str], GivenValue] = {}
    for given in [*(from_file(file) if file else ()), *from_env(env)]:
        merged[given.key.section, given.key.name] = given  # the environment comes last, so it wins for each key
    values, clamped = _clamp(merged.values())
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        origins = {given.key.dotted: given.origin for given in merged.values()}
        raise config_error(error, origins=origins) from None
    config.mark_loaded(file=file, clamped=clamped, sources={name: given.source for name, given in merged.items()})
    if notify:
        log_notices(config)
    return config


def log_notices(config: Config) -> None:
    """Log a warning for each number that was moved into its range.

    `load_config` does this once. A server that opens its log after loading calls it again.
    """
    for notice in config.clamped:
        _logger.warning(notice)


class _Current:
    """The configuration of this process, and the file that it was asked to read."""

    config: Config | None = None
    path: str | os.PathLike[str] | None = None


def get_config(force_new: bool = False, *, notify: bool = True) -> Config:
    """Return the configuration of this process, and load it at the first call.

    ``force_new`` loads it again. If that raises ConfigError, the old one stays. A server that opens its log afterwards
    passes ``notify`` False and calls `log_notices` then.
    """
    if _Current.config is None or force_new:
        _Current.config = load_config(_Current.path, notify=notify)
    return _Current.config


def read_again() -> Config:
    """Read file and environment as at the start, without changing the configuration of this process.

    The options of the command line are not part of the result. Raises ConfigError.
    """
    return load_config(_Current.path)


def replace_config(old: Config, new: Config) -> None:
    """Make ``new`` the configuration of this process if that is ``old``."""
    if _Current.config is old:
        _Current.config = new


def set_config(config: Config, *, path: str | os.PathLike[str] | None = None) -> None:
    """Make ``config`` the configuration of this process; ``path`` is the file that a reload reads."""
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
        # Clamp only finite numbers of the right type. Anything else is a mistake that the validation reports.
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
