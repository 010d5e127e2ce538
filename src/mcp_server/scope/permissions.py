"""The permission that a call needs for its risk, and the error for a caller who does not have it."""

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
"""The permission for each risk. A permission does not include lower ones, so a credential lists all it can do."""

ALL: Final = frozenset(NEEDED.values())
"""The permissions that together allow any call."""


def require_risk(access: Access, risk: Risk, what: str) -> None:
    """Raise AccessError ``insufficient_scope`` unless ``access`` allows this risk; ``what`` names the call."""
    if NEEDED[risk] not in access.permissions:
        raise insufficient([NEEDED[risk]], f"{what}: a call of risk {risk}")


def require_any_call(access: Access) -> None:
    """Raise AccessError for a caller who may make no call at all, and so must not learn which tools exist."""
    if not access.permissions & ALL:
        raise insufficient([Permission.TOOLS_READ], "A call of a tool")


def require_permission(access: Access, permission: Permission, what: str) -> None:
    """Raise AccessError unless ``access`` has ``permission``. ``what`` names the request in the message."""
    if permission not in access.permissions:
        raise insufficient([permission], what)


def insufficient(needed: Iterable[Permission], what: str) -> AccessError:
    """Return the error for a caller without the permissions ``needed``. Its details have them as an OAuth scope."""
    scope = " ".join(sorted(permission.value for permission in needed))
    return AccessError(f"{what} needs the scope {scope}.", code="insufficient_scope", scope=scope)
