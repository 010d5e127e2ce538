"""A JWK Set (RFC 7517) as it was read: the public keys in it that may sign access tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mcp_server.errors import ConfigError
from mcp_server.logger import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = get_logger(__name__)

MAX_BYTES: Final = 256 * 1024
"""Bytes of a set that are read: a hundred keys with certificate chains."""
MAX_KEYS: Final = 100

_LEAST_RSA_BITS: Final = 2048  # RFC 7518 section 3.3
_CURVES: Final = {"ES256": {"P-256"}, "ES384": {"P-384"}, "ES512": {"P-521"}, "EdDSA": {"Ed25519", "Ed448"}}
_TYPES: Final = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
_PUBLIC: Final = {"RSA": ("kty", "n", "e"), "EC": ("kty", "crv", "x", "y"), "OKP": ("kty", "crv", "x")}


@dataclass(frozen=True, slots=True)
class _JsonWebKey:
    id: str | None
    algorithm: str | None
    kind: str
    curve: str | None
    public: dict[str, str]

    def fits(self, algorithm: str) -> bool:
        # An RSA key serves RS and PS, but none serves HS: its public half would be the secret (RFC 8725 section 2.1).
        if self.kind != _TYPES.get(algorithm[:2]) or self.algorithm not in {None, algorithm}:
            return False
        return self.kind == "RSA" or self.curve in _CURVES[algorithm]


class JwkSet:
    """The keys of one reading. Made of the text; raises ConfigError where that is no set, or holds no usable key."""

    def __init__(self, text: bytes) -> None:
        try:
            content = json.loads(text)
            listed = content["keys"]
        except (ValueError, RecursionError, TypeError, KeyError):
            raise ConfigError("this is no JWK Set: a JSON object with a list 'keys'") from None
        if not isinstance(listed, list) or len(listed) > MAX_KEYS:
            raise ConfigError(f"this is no JWK Set: 'keys' is no list of {MAX_KEYS} keys or fewer")
        self._loaded: dict[tuple[int, str], Any] = {}
        self._keys = [key for each in listed if (key := _read(each)) is not None]
        if not self._keys:
            raise ConfigError("the JWK Set holds no public key that may sign: RSA of 2048 bits, EC or Ed25519")

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, identity: str | None, algorithm: str) -> Any | None:
        """The public key to verify with, or None. Without an id only where a single key fits."""
        fitting = [key for key in self._keys if key.fits(algorithm)]
        if identity is not None:
            fitting = [key for key in fitting if key.id == identity][:1]
        if len(fitting) != 1:
            return None
        cache_key = (id(fitting[0]), algorithm)
        if cache_key not in self._loaded:  # it takes as long as a signature
            self._loaded[cache_key] = _load(fitting[0], algorithm)
        return self._loaded[cache_key]


def _read(entry: Any) -> _JsonWebKey | None:
    """The public half of one entry, or None for one that is not for signatures."""
    if not isinstance(entry, dict) or entry.get("kty") not in _PUBLIC:
        return None
    kind, operations = entry["kty"], entry.get("key_ops")
    if entry.get("use", "sig") != "sig" or (isinstance(operations, list) and "verify" not in operations):
        return None
    public = {name: value for name in _PUBLIC[kind] if isinstance(value := entry.get(name), str)}
    identity, algorithm = entry.get("kid"), entry.get("alg")
    if len(public) < len(_PUBLIC[kind]):
        return None
    if not isinstance(identity, str | None) or not isinstance(algorithm, str | None):
        return None
    key = _JsonWebKey(identity, algorithm, kind, entry.get("crv"), public)
    fits = next((name for name in _names(key) if key.fits(name)), None)
    if fits is None or _load(key, fits) is None:
        logger.warning("identity.key_left_out", kty=kind, message="it cannot be used for signatures")
        return None
    return key


def _names(key: _JsonWebKey) -> Sequence[str]:
    return (key.algorithm,) if key.algorithm and key.algorithm[:2] in _TYPES else ("RS256", *_CURVES)


def _load(key: _JsonWebKey, algorithm: str) -> Any | None:
    from jwt import PyJWK
    from jwt.exceptions import PyJWTError

    try:
        loaded = PyJWK(key.public, algorithm).key
    except (PyJWTError, ValueError, TypeError):
        return None
    return None if key.kind == "RSA" and loaded.key_size < _LEAST_RSA_BITS else loaded
