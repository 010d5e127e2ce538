"""Which permission a call needs, by its risk; and the refusal of whoever does not hold it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mcp_server.errors import AccessError
from mcp_server.model.access import Access, Permission
from mcp_server.model.run import Risk

NEEDED: Final = {
    Risk.PASSIVE: Permission.TOOLS_READ,
    Risk.PROBE: Permission.TOOLS_PROBE,
    Risk.SCAN: Permission.TOOLS_SCAN,
    Risk.INTRUSIVE: Permission.TOOLS_INTRUSIVE,
}
"""One for each risk: a higher one holds no lower one, so that a credential says all that it can be used for."""

ALL: Final = frozenset(NEEDED.values())
"""Whoever holds these lacks nothing for any call."""


def require_risk(access: Access, risk: Risk, what: str) -> None:
    """Raise AccessError ``insufficient_scope`` unless ``access`` covers a call of this risk; ``what`` names it."""
    if NEEDED[risk] not in access.permissions:
        raise insufficient([NEEDED[risk]], f"{what}: this call is {risk}")


def require_any_call(access: Access) -> None:
    """Raise AccessError for whoever may call nothing at all, and so does not even learn which tools there are."""
    if not access.permissions & ALL:
        raise insufficient([Permission.TOOLS_READ], "a tool was called")


def require_permission(access: Access, permission: Permission, what: str) -> None:
    """Raise AccessError ``insufficient_scope`` unless ``access`` holds ``permission``; ``what`` begins the sentence."""
    if permission not in access.permissions:
        raise insufficient([permission], what)


def insufficient(needed: Iterable[Permission], what: str) -> AccessError:
    """The refusal of a caller that does not hold ``needed``; its details name them as one OAuth ``scope``."""
    scope = " ".join(sorted(permission.value for permission in needed))
    return AccessError(f"{what}, and needs the scope {scope}", code="insufficient_scope", scope=scope)
