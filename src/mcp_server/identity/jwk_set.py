"""A JWK Set (RFC 7517): its public keys that may sign access tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from mcp_server.errors import ConfigError
from mcp_server.logger import get_logger

logger = get_logger(__name__)

MAX_BYTES: Final = 256 * 1024
"""The largest set in bytes: a hundred keys with certificate chains."""
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
        # An RSA key fits RS and PS. No key fits HS: its public half would be the secret (RFC 8725 section 2.1).
        if self.kind != _TYPES.get(algorithm[:2]) or self.algorithm not in {None, algorithm}:
            return False
        return self.kind == "RSA" or self.curve in _CURVES[algorithm]


class JwkSet:
    """The keys of a JWK Set, read from its JSON; raises ConfigError for a malformed set or one without usable keys."""

    def __init__(self, content: bytes) -> None:
        try:
            listed = json.loads(content)["keys"]
        except (ValueError, RecursionError, TypeError, KeyError):
            raise ConfigError("This is not a JWK Set: a JSON object with a list 'keys'.") from None
        if not isinstance(listed, list) or len(listed) > MAX_KEYS:
            raise ConfigError(f"This is not a JWK Set: 'keys' is not a list of at most {MAX_KEYS} keys.")
        self._loaded: dict[tuple[int, str], Any] = {}
        self._keys = [key for each in listed if (key := _read(each)) is not None]
        if not self._keys:
            raise ConfigError("The JWK Set has no public key for signatures: RSA of 2048 bits, EC or Ed25519.")

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, key_id: str | None, algorithm: str) -> Any | None:
        """Return the public key for a signature, or None. Without an id, a key is found only if exactly one fits."""
        fitting = [key for key in self._keys if key.fits(algorithm)]
        if key_id is not None:
            fitting = [key for key in fitting if key.id == key_id][:1]
        if len(fitting) != 1:
            return None
        cache_key = (id(fitting[0]), algorithm)
        if cache_key not in self._loaded:  # loading a key takes as long as checking a signature
            self._loaded[cache_key] = _load(fitting[0], algorithm)
        return self._loaded[cache_key]


def _read(entry: Any) -> _JsonWebKey | None:
    """Return the public half of one entry, or None if the entry is not a key for signatures."""
    if not isinstance(entry, dict) or entry.get("kty") not in _PUBLIC:
        return None
    kind, operations = entry["kty"], entry.get("key_ops")
    if entry.get("use", "sig") != "sig" or (isinstance(operations, list) and "verify" not in operations):
        return None
    public = {name: value for name in _PUBLIC[kind] if isinstance(value := entry.get(name), str)}
    key_id, algorithm = entry.get("kid"), entry.get("alg")
    if len(public) < len(_PUBLIC[kind]):
        return None
    if not isinstance(key_id, str | None) or not isinstance(algorithm, str | None):
        return None
    key = _JsonWebKey(key_id, algorithm, kind, entry.get("crv"), public)
    fits = next((name for name in _algorithms(key) if key.fits(name)), None)
    if fits is None or _load(key, fits) is None:
        logger.warning("identity.key_left_out", kty=kind, message="Keys of this type cannot verify signatures.")
        return None
    return key


def _algorithms(key: _JsonWebKey) -> Sequence[str]:
    return (key.algorithm,) if key.algorithm and key.algorithm[:2] in _TYPES else ("RS256", *_CURVES)


def _load(key: _JsonWebKey, algorithm: str) -> Any | None:
    from jwt import PyJWK
    from jwt.exceptions import PyJWTError

    try:
        loaded = PyJWK(key.public, algorithm).key
    except (PyJWTError, ValueError, TypeError):
        return None
    return None if key.kind == "RSA" and loaded.key_size < _LEAST_RSA_BITS else loaded
