"""The validated configuration: defaults, then a file, then the environment.

`get_config` returns the configuration of the process, and `load_config` builds one from explicit arguments.
`Config.effective` has each limit once, however many keys may set it. `mcp_server.config.show` describes the keys for
people, and is not imported at the start of a server.
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
from mcp_server.config.model import ClampedValue, Config
from mcp_server.config.redact import redact, redact_tree

__all__ = [
    "READ_SINCE",
    "ClampedValue",
    "Config",
    "EffectiveLimits",
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
