"""The contract of a kind of credential, and the seam through which an owner bounds single actors."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import Final, Protocol

from mcp_server.model.access import NOBODY, Access, Permission, Role

TOKEN_NAME: Final = "token"  # noqa: S105 - a name, not a secret
"""The actor that holds the local token."""

_PLAIN_SUBJECT: Final = re.compile(r"[A-Za-z0-9._@|:/+=-]{1,96}")


@dataclass(frozen=True, slots=True)
class Identity:
    """A known caller: its stable name, and what it may do.

    Names are ``token``, ``key:NAME`` or ``sub:SUBJECT``: the mark before the colon keeps the kinds apart, and no user
    of this machine has a colon in its name (passwd(5)).
    """

    name: str
    access: Access


class Rejected(Exception):  # noqa: N818 - a finding, not a failure of the server
    """A credential that stands for nobody.

    ``kind`` and ``reason`` are words of this package, for the log and a metric; the caller is told neither. ``guess``
    says whether somebody may be trying: an expired credential, once good, is no guess. ``key_id`` is the public part of
    an API key that exists.
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
        """Whether this text is of this kind, by its form alone."""
        ...

    async def check(self, credential: str) -> Identity:
        """Whom it stands for.

        Raises Rejected, or PlatformError ``identity_unavailable`` where that cannot be found out at present.
        """
        ...


class Directory(Protocol):
    """What an actor may do, by its name and role: asked after every verification, on the event loop, so from memory.

    The permissions of a token are taken off afterwards: ``find`` says what the actor may do at most. For an actor that
    may not come in at all, `NOBODY`.
    """

    def find(self, name: str, role: Role) -> Access:
        """The bounds of the actor ``name`` (see `Identity`), whom its credential gives ``role``."""
        ...


class RoleDirectory:
    """The directory of an owner who bounds nobody in particular: what the role may do, and nothing else."""

    def find(self, name: str, role: Role) -> Access:  # noqa: ARG002 - the contract's
        """The permissions of the role."""
        return Access(role.permissions)


def bounded(access: Access, granted: frozenset[Permission]) -> Access:
    """``access`` without the permissions that a token does not hold."""
    held = access.permissions & granted
    return replace(access, permissions=held) if held else NOBODY


def subject_name(subject: str) -> str:
    """The actor's name of a token's subject: no two subjects share one, and none holds more than printable ASCII.

    A subject with other characters, or of more than 96, is shown by what of it is plain, and a hash of all of it.
    """
    if _PLAIN_SUBJECT.fullmatch(subject):
        return f"sub:{subject}"
    shown = re.sub(r"[^A-Za-z0-9._@|:/+=-]", "_", subject[:48])
    return f"sub:{shown}#{hashlib.sha256(subject.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
