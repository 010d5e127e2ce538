"""The contract of a kind of credential, and the directory that says what an actor may do."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import Final, Protocol

from mcp_server.model.access import NOBODY, Access, Permission, Role

TOKEN_NAME: Final = "token"  # noqa: S105 - a name, not a secret
"""The name of the actor that has the local token."""

_PLAIN_SUBJECT: Final = re.compile(r"[A-Za-z0-9._@|:/+=-]{1,96}")


@dataclass(frozen=True, slots=True)
class Identity:
    """A known caller: its stable name, and what it may do.

    The name is ``token``, ``key:NAME`` or ``sub:SUBJECT``. The prefix separates the kinds from each other, and from
    users of this machine, whose names have no colon (passwd(5)).
    """

    name: str
    access: Access


class Rejected(Exception):  # noqa: N818 - a finding, not a failure of the server
    """A credential was refused: it is unknown, wrong, expired or revoked.

    ``kind`` and ``reason`` are words of this package for the log and a metric. The caller sees neither. ``guess`` says
    whether the caller may be guessing: a credential that was valid and has expired is not a guess. ``key_id`` is the
    public part of an API key that exists.
    """

    def __init__(self, kind: str, reason: str, *, guess: bool = True, key_id: str | None = None) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind = kind
        self.reason = reason
        self.guess = guess
        self.key_id = key_id


class Credentials(Protocol):
    """One kind of credential."""

    def claims(self, credential: str) -> bool:
        """Return whether ``credential`` has the form of this kind."""
        ...

    async def check(self, credential: str) -> Identity:
        """Return the identity that ``credential`` belongs to.

        Raises Rejected, or PlatformError ``identity_unavailable`` if that cannot be found out now.
        """
        ...


class Directory(Protocol):
    """Returns the access of an actor. It is called after every authentication, on the event loop, so it must not block.

    The permissions that a token does not have are removed afterwards.
    """

    def find(self, name: str, role: Role) -> Access:
        """Return the access of the actor ``name`` if its credential has ``role``. `NOBODY` allows nothing."""
        ...


class RoleDirectory:
    """A directory without limits for single actors: the role alone decides."""

    def find(self, name: str, role: Role) -> Access:  # noqa: ARG002 - part of the contract
        """Return the permissions of ``role``."""
        return Access(role.permissions)


def bounded(access: Access, granted: frozenset[Permission]) -> Access:
    """``access`` without the permissions that are not in ``granted``."""
    held = access.permissions & granted
    return replace(access, permissions=held) if held else NOBODY


def subject_name(subject: str) -> str:
    """Return the actor name for the subject of a token: unique, and printable ASCII only.

    A subject with other characters, or of more than 96, becomes its plain characters and a hash of the whole subject.
    """
    if _PLAIN_SUBJECT.fullmatch(subject):
        return f"sub:{subject}"
    plain = re.sub(r"[^A-Za-z0-9._@|:/+=-]", "_", subject[:48])
    return f"sub:{plain}#{hashlib.sha256(subject.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
