"""Which tier a start is to have: what the owner asks for, what works here, and what is required."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mcp_server.errors import PlatformError
from mcp_server.logger import get_logger
from mcp_server.netguard import Enforcement

if TYPE_CHECKING:
    from mcp_server.config import Config

logger = get_logger(__name__)

DEFAULT_USER: Final = "mcp-network-tools"
"""Whom the server becomes in the kernel tier where ``guard.user`` names nobody."""
_ASKED_FOR = "security.guard asks for no more"


@dataclass(frozen=True, slots=True)
class GuardChoice:
    """The tier a start is to have, and why it has no stronger one (empty for the strongest)."""

    enforcement: Enforcement
    reason: str = ""

    def log(self) -> None:
        """Say in one line which tier it is; a warning where only arguments are checked and nobody asked for that."""
        unasked = self.enforcement is Enforcement.ARGUMENT and self.reason != _ASKED_FOR
        level = logging.WARNING if unasked else logging.INFO
        why = {"message": f"because {self.reason}"} if self.reason else {}
        logger.log(level, "guard.chosen", enforcement=self.enforcement.value, **why)


def choose_guard(config: Config) -> GuardChoice:
    """The tier that ``security.guard`` asks for, or with ``auto`` the best that works here.

    Raises PlatformError: ``guard_unavailable`` for a tier that was asked for and cannot be, ``enforcement_too_weak``
    for one that is weaker than ``security.require_enforcement``.
    """
    wanted = config.security.guard
    choice = _best() if wanted == "auto" and os.geteuid() else _as_root(config) if wanted == "auto" else _asked(wanted)
    require(config, choice)
    return choice


def require(config: Config, choice: GuardChoice) -> None:
    """Raise PlatformError ``enforcement_too_weak`` where a tier is weaker than ``security.require_enforcement``."""
    required = Enforcement(config.security.require_enforcement)
    if not choice.enforcement.at_least(required):
        why = f": {choice.reason}" if choice.reason else ""
        raise PlatformError(
            f"security.require_enforcement is {required.value}, and here it would be {choice.enforcement.value}{why}",
            code="enforcement_too_weak",
        )


def _asked(wanted: str) -> GuardChoice:
    if wanted == "rootless" and (reason := _rootless_missing()):
        raise PlatformError(f"the rootless tier cannot be set up: {reason}", code="guard_unavailable")
    return GuardChoice(Enforcement(wanted), {"argument": _ASKED_FOR}.get(wanted, ""))


def _as_root(config: Config) -> GuardChoice:
    if not config.guard.user and not _exists(DEFAULT_USER):
        why = f"guard.user names no user to become, and there is no user {DEFAULT_USER}"
        return GuardChoice(Enforcement.ARGUMENT, why)
    from mcp_server.netguard.kernel import kernel_missing

    reason = kernel_missing(config)
    return GuardChoice(Enforcement.ARGUMENT, reason) if reason else GuardChoice(Enforcement.KERNEL)


def _exists(user: str) -> bool:
    import pwd

    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _best() -> GuardChoice:
    if reason := _rootless_missing():
        return GuardChoice(
            Enforcement.ARGUMENT, f"the kernel tier is set up by root, and the rootless tier cannot be: {reason}"
        )
    return GuardChoice(Enforcement.ROOTLESS, "the kernel tier is set up by root")


def _rootless_missing() -> str | None:
    """Why the rootless tier cannot be set up by this process; None where it can."""
    if os.geteuid() == 0:
        return "it is for users other than root, who has the kernel tier"
    from mcp_server.netguard.rootless import rootless_available

    return rootless_available()
