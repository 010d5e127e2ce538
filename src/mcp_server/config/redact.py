"""Remove secrets from everything that is shown or kept, by the name of a field and by the text before a value.

The configuration, the audit log and the logs use the same list of names. The patterns are compiled at their first use,
not while a server starts. Each repetition in a pattern is bounded or ends at a blank, so the time is linear in the
length of a text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

REDACTED: Final = "***"

# Whole words of a name: "token" is a secret, and "tokens" is a number.
_WORDS: Final = frozenset({"token", "secret", "password", "passwd", "key"})
# Words or their ends, as in the script arguments smbpass and mysqlpass, but not bypass, compass, passive or COTP.
_ENDINGS: Final = (
    r"(?:(?<!by)(?<!com)(?<!sur)(?<!tres)(?<!over)(?<!under)pass|psk|jwt|priv[_-]?key|(?<![a-z])[th]?otp)(?![a-z])"
)
_PARTS: Final = rf"passphrase|credential|community|{_ENDINGS}"
# In a name any character may separate two words. Some names are secret only as the whole name of a field.
_IN_NAMES: Final = rf"(?i){_PARTS}|authori[sz]ation|cookie|bearer|api[^a-z0-9]?key|private[^a-z0-9]?key|pwd"
_IN_TEXT: Final = rf"token|secret|password|passwd|api[_-]?key|{_PARTS}"
_WORD_BOUNDARY: Final = r"(?<=[a-z0-9])(?=[A-Z])"

_ANY: Final = rf"(?i){_IN_TEXT}|key=|authorization|cookie|bearer|://|mnt_|eyJ"
_PATTERNS: Final = (
    r"(://[^:@/\s]{0,128}:)\S{1,512}(?=@)",
    # A flag and its value, on a command line or as two items of a printed list.
    rf"(?i)(?<![^\s\"'\[(])(--?[\w-]{{0,64}}(?:{_IN_TEXT})[\w-]{{0,64}}[\"']?,?\s{{1,16}}[\"']?)(?!-)[^\s\"']+",
    r"(?i)((?:proxy-)?authorization[\"']?\s{0,16}[=:]\s{0,16}[\"']?|(?:set-)?cookie\s{0,16}:\s{0,16})[^\r\n\"']+",
    # Script arguments, a query or a form, up to the end of the value.
    rf"(?i)((?:{_IN_TEXT}|(?<=[?&;])key)s?[\"']?\s{{0,16}}[=:]\s{{0,16}}[\"']?)[^\s,;&\"']+",
    r"(?i)\b(bearer\s{1,16})[\w.~+/=-]{8,}",
    # API keys of this project, whose id may be shown, and signed JWTs, anywhere in a text.
    r"(?<![\w-])(mnt_[0-9a-f]{12}_)[\w-]+",
    r"(?<![\w.-])(eyJ)[\w-]+\.[\w-]+\.[\w-]*",
)

# Greedy up to the last "@", because a password may contain "/", "?" or an unquoted "@".
_URL_USERINFO: Final = r"(?s)(://[^:@/]*:).*@"
# "scheme://user:password" without a host. A port is all digits, and an IPv6 host is in brackets.
_URL_WITHOUT_HOST: Final = r"(://(?!\[)[^:@/]*:)(?![0-9]+(?:[/?#]|$))[^/?#]+"
_QUERY_SECRET: Final = rf"(?i)([?&;][^=&;]*(?:{_IN_TEXT}|key)[^=&;]*=)[^&;]*"


_LEAST_CHARS: Final = 32
_known: set[str] = set()
"""Secrets that are removed from every text. They have no fixed form, so no pattern can find them."""


def hide(secret: str) -> None:
    """Remove ``secret`` from everything that is shown or kept from now on: a client may send it in a wrong field.

    A short text is ignored. It cannot be a secret of this server, and removing it would damage other texts.
    """
    if len(secret) >= _LEAST_CHARS:
        _known.add(secret)


def is_secret_name(name: str) -> bool:
    """Return whether a field of this name is a secret, such as ``api_key``, ``apiKey`` or ``Authorization``."""
    return bool(re.search(_IN_NAMES, name)) or not _WORDS.isdisjoint(_words(re.sub(_WORD_BOUNDARY, "_", name)))


def without_secrets(text: str) -> str:
    """Return ``text`` without the passwords of URLs and without the values of ``password=``, ``Authorization:`` …"""
    for secret in _known:
        text = text.replace(secret, REDACTED)
    if re.search(_ANY, text):
        for pattern in _PATTERNS:
            text = re.sub(pattern, rf"\g<1>{REDACTED}", text)
    return text


def follows_secret_flag(words: Sequence[Any], index: int) -> bool:
    """Return whether the word at ``index`` is the value of a flag such as ``--password``."""
    flag = words[index - 1] if index else None
    word = words[index]
    if not isinstance(flag, str) or not isinstance(word, str) or word.startswith("-"):
        return False
    return flag.startswith("-") and "=" not in flag and is_secret_name(flag.lstrip("-"))


def redact(name: str, value: Any) -> Any:
    """Return ``value`` as it may be shown under the key ``name``. Empty values stay, so that "not set" is visible."""
    if value is None or isinstance(value, bool) or value in ("", (), []):
        return value
    if is_secret_name(name):
        return REDACTED
    if isinstance(value, list | tuple):
        return [redact(name, item) for item in value]
    if not isinstance(value, str):
        return value
    if "://" not in value:
        # A value that should be a URL but is not one may be a pasted password.
        return REDACTED if "url" in _words(name) else value
    pattern, kept = (_URL_USERINFO, rf"\g<1>{REDACTED}@") if "@" in value else (_URL_WITHOUT_HOST, rf"\g<1>{REDACTED}")
    return re.sub(_QUERY_SECRET, rf"\g<1>{REDACTED}", re.sub(pattern, kept, value))


def redact_tree(data: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of nested ``data`` with every secret redacted."""
    return {
        name: redact_tree(value) if isinstance(value, dict) and not is_secret_name(name) else redact(name, value)
        for name, value in data.items()
    }


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", name.lower())
