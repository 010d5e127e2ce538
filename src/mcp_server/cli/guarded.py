"""Having a command carried out inside the guard: this process is the guard helper, and a child does the work."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from mcp_server.config import Config
    from mcp_server.netguard.choice import GuardChoice
    from mcp_server.netguard.helper import GuardHelper


def run_guarded(
    config: Config,
    choice: GuardChoice,
    words: Sequence[str],
    *,
    bind: Callable[[], socket.socket] | None = None,
    quiet: bool = False,
) -> int:
    """Set up the guard of ``choice`` and run the command ``words`` inside it; returns the exit code of that.

    The command is given ``--inside FD`` at its end. ``bind`` makes the listening socket that it is handed. With
    ``quiet`` only warnings are logged.
    """
    from mcp_server.config import load_config
    from mcp_server.netguard import Enforcement
    from mcp_server.observability.logs import configure_logging

    # The log file is the server's, whose user this is not.
    settings = config.logging.model_copy(update={"file_path": None} | ({"level": "WARNING"} if quiet else {}))
    configure_logging(settings)
    if choice.reason:
        choice.log()

    command = [sys.executable, "-P", "-m", "mcp_server", *words]
    helper: type[GuardHelper]
    if choice.enforcement is Enforcement.ROOTLESS:
        from mcp_server.netguard.rootless import RootlessGuardHelper

        helper = RootlessGuardHelper
    else:
        from mcp_server.netguard.kernel import KernelGuardHelper

        helper = KernelGuardHelper
    return helper(config, command, load_config=lambda: load_config(notify=False), bind=bind).run()
