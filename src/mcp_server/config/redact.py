"""Taking secrets out of anything that is shown: by the key's name, and passwords inside URLs."""

from __future__ import annotations

import re
from typing import Any, Final

REDACTED: Final = "***"

_SECRET_WORDS: Final = frozenset({"token", "secret", "password", "passwd", "key"})
# Greedy up to the last "@": a password may hold "/", "?" or an unquoted "@", and hiding too much is the safe side.
_URL_PASSWORD: Final = re.compile(r"(?s)(://[^:@/]*:).*@")
# "scheme://user:password" with the host forgotten; a real port is all digits, and an IPv6 host stands in brackets.
_URL_WITHOUT_HOST: Final = re.compile(r"(://(?!\[)[^:@/]*:)(?![0-9]+(?:[/?#]|$))[^/?#]+")
_QUERY_SECRET: Final = re.compile(r"(?i)([?&;][^=&;]*(?:token|secret|password|passwd|key)[^=&;]*=)[^&;]*")


def is_secret(name: str) -> bool:
    """Whether a key of this name holds a secret: one of its words is token, secret, password, passwd or key."""
    return not _SECRET_WORDS.isdisjoint(_words(name))


def redact(name: str, value: Any) -> Any:
    """Return ``value`` as it may be shown under the key ``name``; empty values stay, so that "not set" is visible."""
    if value is None or value in ("", (), []):
        return value
    if is_secret(name):
        return REDACTED
    if isinstance(value, list | tuple):
        return [redact(name, item) for item in value]
    if not isinstance(value, str):
        return value
    if "://" not in value:
        # What stands for a URL and is none may be a password that was pasted alone.
        return REDACTED if "url" in _words(name) else value
    pattern, kept = (_URL_PASSWORD, rf"\g<1>{REDACTED}@") if "@" in value else (_URL_WITHOUT_HOST, rf"\g<1>{REDACTED}")
    return _QUERY_SECRET.sub(rf"\g<1>{REDACTED}", pattern.sub(kept, value))


def redact_tree(data: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of nested ``data`` with every secret redacted."""
    return {
        name: redact_tree(value) if isinstance(value, dict) and not is_secret(name) else redact(name, value)
        for name, value in data.items()
    }


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", name.lower())
