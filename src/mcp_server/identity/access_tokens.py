"""OAuth access tokens: JWTs of one issuer that are meant for this server (RFC 9068, RFC 8725, RFC 8707)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from mcp_server.config.sections import AuthConfig
from mcp_server.identity.base import Directory, Identity, Rejected, bounded, subject_name
from mcp_server.identity.issuer_keys import IssuerKeys, issuer_keys
from mcp_server.model.access import Permission, Role

MAX_CHARS: Final = 8192
"""The longest token that is accepted, in characters."""

_JWT: Final = re.compile(r"[A-Za-z0-9_-]{1,4096}\.[A-Za-z0-9_-]{1,8192}\.[A-Za-z0-9_-]{0,2048}")
_TYPES: Final = frozenset({"at+jwt", "application/at+jwt", "jwt", "application/jwt"})
_RANK: Final = (Role.VIEWER, Role.OPERATOR, Role.ADMIN)
_MAX_ROLES: Final = 100


class AccessTokens:
    """The tokens of the issuer in the current configuration. Without an issuer, no token is accepted."""

    def __init__(self, settings: Callable[[], AuthConfig], directory: Directory) -> None:
        self._settings = settings
        self._directory = directory
        self._keys: IssuerKeys | None = None
        self._keys_of: tuple[object, ...] = ()

    def claims(self, credential: str) -> bool:
        """Return whether ``credential`` has the form of a signed JWT."""
        return credential.count(".") == 2 and len(credential) <= MAX_CHARS and _JWT.fullmatch(credential) is not None

    @property
    def keys(self) -> IssuerKeys | None:
        """The keys of the issuer, or None if there is no issuer."""
        settings = self._settings()
        wanted = (settings.issuer, settings.jwks_url, settings.jwks_file)
        if wanted != self._keys_of:
            self._keys = issuer_keys(settings) if settings.issuer else None
            self._keys_of = wanted
        return self._keys

    async def check(self, credential: str) -> Identity:
        """Return the actor ``sub:SUBJECT``.

        Raises Rejected, or PlatformError ``identity_unavailable`` while the keys of the issuer are not available.
        """
        keys, settings = self.keys, self._settings()
        if keys is None:
            raise Rejected("jwt", "not_taken")
        header, unverified = _decode(credential)
        if str(header.get("typ", "")).lower() not in _TYPES or "crit" in header:
            raise Rejected("jwt", "header")
        algorithm, key_id = header.get("alg"), header.get("kid")
        if algorithm not in settings.algorithms or not isinstance(algorithm, str):
            raise Rejected("jwt", "algorithm")
        if not isinstance(key_id, str | None):
            raise Rejected("jwt", "header")
        # Check the issuer before looking for the key: an unknown caller must not make this server fetch keys.
        if unverified.get("iss") != settings.issuer:
            raise Rejected("jwt", "issuer")
        key = await keys.find(key_id, algorithm, _seconds(unverified.get("iat")))
        claims = _verify(credential, key, algorithm, settings)
        role = _role_of(claims, settings)
        if role is None:
            raise Rejected("jwt", "no_role", guess=False)
        name = subject_name(claims["sub"])
        return Identity(name, bounded(self._directory.find(name, role), granted(claims)))


def granted(claims: Mapping[str, Any]) -> frozenset[Permission]:
    """Return the permissions in the claim ``scope`` (RFC 8693 section 4.2), or ``scp`` as some issuers call it."""
    words: set[str] = set()
    for name in ("scope", "scp"):
        value = claims.get(name)
        words |= set(value.split(" ")) if isinstance(value, str) else set()
        words |= {word for word in value if isinstance(word, str)} if isinstance(value, list) else set()
    return frozenset(permission for permission in Permission if permission.value in words)


def _decode(credential: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the header and the claims, without verification."""
    from jwt.utils import base64url_decode

    try:
        parts = [json.loads(base64url_decode(part)) for part in credential.split(".")[:2]]
    except (ValueError, RecursionError):
        raise Rejected("jwt", "malformed") from None
    if not all(isinstance(part, dict) for part in parts):
        raise Rejected("jwt", "malformed")
    return parts[0], parts[1]


def _verify(credential: str, key: Any, algorithm: str, settings: AuthConfig) -> dict[str, Any]:
    import jwt

    try:
        claims: dict[str, Any] = jwt.decode(
            credential,
            key,
            algorithms=[algorithm],
            issuer=settings.issuer,
            audience=settings.audience,
            leeway=settings.clock_skew_sec,
            options={"require": ["exp", "iat", "iss", "aud", "sub"]},
        )
    except jwt.ExpiredSignatureError:
        raise Rejected("jwt", "expired", guess=False) from None
    except jwt.ImmatureSignatureError:
        raise Rejected("jwt", "not_yet_valid", guess=False) from None
    except jwt.InvalidAudienceError:
        raise Rejected("jwt", "audience", guess=False) from None
    except jwt.InvalidSignatureError:
        raise Rejected("jwt", "signature") from None
    except (jwt.PyJWTError, ValueError, RecursionError, OverflowError):
        raise Rejected("jwt", "claims") from None
    if not claims["sub"]:
        raise Rejected("jwt", "claims")
    return claims


def _role_of(claims: Mapping[str, Any], settings: AuthConfig) -> Role | None:
    value: Any = claims if settings.role_claim else None
    for part in _path(claims, settings.role_claim):
        value = value.get(part) if isinstance(value, Mapping) else None
    words = [value] if isinstance(value, str) else value[:_MAX_ROLES] if isinstance(value, list) else []
    named = [role for role in _RANK if role.value in words]
    if named:
        return named[-1]
    return None if settings.default_role == "none" else Role(settings.default_role)


def _path(claims: Mapping[str, Any], claim: str) -> list[str]:
    # The name of a claim may be a URL with dots, so try it as a whole first.
    return [claim] if claim in claims else claim.split(".") if claim else []


def _seconds(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value < 1e12 else 0.0
