"""The validated configuration: defaults, then a file, then the environment; every key in one place.

`get_config` gives the process's configuration, `load_config` builds one from explicit arguments, and
`Config.effective` holds each limit once, however many keys may set it. `mcp_server.config.show` has what only people
read, and is left out of the start path.
"""

from mcp_server.config.effective import EffectiveLimits
from mcp_server.config.load import (
    READ_SINCE,
    get_config,
    load_config,
    log_notices,
    read_again,
    replace_config,
    reset_config,
    set_config,
)
from mcp_server.config.model import (
    ClampedValue,
    Config,
    UnusedKey,
)
from mcp_server.config.redact import redact, redact_tree

describe = Config.describe
"""One `mcp_server.config.show.KeyInfo` for every key of a configuration."""

__all__ = [
    "READ_SINCE",
    "ClampedValue",
    "Config",
    "EffectiveLimits",
    "UnusedKey",
    "describe",
    "get_config",
    "load_config",
    "log_notices",
    "read_again",
    "redact",
    "redact_tree",
    "replace_config",
    "reset_config",
    "set_config",
]
