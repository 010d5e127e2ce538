"""Chooses the tier when the server starts, from the operator's settings and from what works on this host."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mcp_server.errors import PlatformError
from mcp_server.logger import get_logger
from mcp_server.netguard import DEFAULT_USER, Enforcement

if TYPE_CHECKING:
    from mcp_server.config import Config

logger = get_logger(__name__)

_NEEDS_ROOT: Final = "The kernel tier needs root."
_AS_CONFIGURED: Final = "security.guard is set to this tier."


@dataclass(frozen=True, slots=True)
class GuardChoice:
    """The chosen tier. ``reason`` says in full sentences why it is not a stronger one, and is empty for the strongest.

    The sentences are for the log and for error messages.
    """

    enforcement: Enforcement
    reason: str = ""

    def log(self) -> None:
        """Log the tier. It is a warning if only arguments are checked and the operator did not ask for that."""
        unexpected = self.enforcement is Enforcement.ARGUMENT and self.reason != _AS_CONFIGURED
        level = logging.WARNING if unexpected else logging.INFO
        reason = {"message": self.reason} if self.reason else {}
        logger.log(level, "guard.chosen", enforcement=self.enforcement.value, **reason)


def choose_guard(config: Config) -> GuardChoice:
    """Return the tier that ``security.guard`` asks for, or for ``auto`` the strongest that works here.

    Raises PlatformError ``guard_unavailable`` if a tier that was asked for cannot be set up, and
    ``enforcement_too_weak`` if the tier is weaker than ``security.require_enforcement``.
    """
    wanted = config.security.guard
    if wanted != "auto":
        choice = _as_configured(wanted)
    else:
        choice = _best_without_root() if os.geteuid() else _best_as_root(config)
    require(config, choice)
    return choice


def require(config: Config, choice: GuardChoice) -> None:
    """Raise PlatformError ``enforcement_too_weak`` if a tier is weaker than ``security.require_enforcement``."""
    required = Enforcement(config.security.require_enforcement)
    if not choice.enforcement.at_least(required):
        message = (
            f"security.require_enforcement is {required.value}, but only {choice.enforcement.value} is available here. "
        )
        raise PlatformError((message + choice.reason).rstrip(), code="enforcement_too_weak")


def _as_configured(wanted: str) -> GuardChoice:
    if wanted == "rootless" and (reason := _rootless_unavailable()):
        raise PlatformError(f"The rootless tier cannot be set up. {reason}", code="guard_unavailable")
    return GuardChoice(Enforcement(wanted), _AS_CONFIGURED if wanted == "argument" else "")


def _best_as_root(config: Config) -> GuardChoice:
    if not config.guard.user and not _exists(DEFAULT_USER):
        reason = f"guard.user is not set, and the user {DEFAULT_USER} does not exist."
        return GuardChoice(Enforcement.ARGUMENT, reason)
    from mcp_server.netguard.kernel import kernel_unavailable

    reason = kernel_unavailable(config)
    return GuardChoice(Enforcement.ARGUMENT, reason) if reason else GuardChoice(Enforcement.KERNEL)


def _exists(user: str) -> bool:
    import pwd

    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _best_without_root() -> GuardChoice:
    if reason := _rootless_unavailable():
        return GuardChoice(Enforcement.ARGUMENT, f"{_NEEDS_ROOT} The rootless tier cannot be set up. {reason}")
    return GuardChoice(Enforcement.ROOTLESS, _NEEDS_ROOT)


def _rootless_unavailable() -> str:
    """Return why this process cannot set up the rootless tier, in full sentences, or an empty string if it can."""
    from mcp_server.netguard.rootless import rootless_unavailable

    return rootless_unavailable()
