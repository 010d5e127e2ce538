"""Taking secrets out of records: by the name of a field, and by what stands before a value inside a string.

The patterns are compiled at their first use, not while a server starts. Each repetition in them is bounded or ends
at a blank, so that no text takes longer than its length.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from mcp_server.config.redact import REDACTED, is_secret

# Words, or their ends, as in the script arguments smbpass and mysqlpass; neither bypass, compass nor passive, nor COTP.
_ENDINGS: Final = (
    r"(?:(?<!by)(?<!com)(?<!sur)(?<!tres)(?<!over)(?<!under)pass|psk|jwt|priv[_-]?key|(?<![a-z])[th]?otp)(?![a-z])"
)
_NAMES: Final = rf"token|secret|password|passwd|passphrase|api[_-]?key|credential|community|{_ENDINGS}"
_MORE_NAMES: Final = (
    r"(?i)authori[sz]ation|passphrase|credential|cookie|bearer|community|api[^a-z0-9]?key|private[^a-z0-9]?key|pwd|"
    rf"{_ENDINGS}"
)
_WORD_BOUNDARY: Final = r"(?<=[a-z0-9])(?=[A-Z])"
_ANY: Final = rf"(?i){_NAMES}|key=|authorization|cookie|bearer|://"
_PATTERNS: Final = (
    r"(://[^:@/\s]{0,128}:)\S{1,512}(?=@)",
    rf"(?i)(?<!\S)(--?[\w-]{{0,64}}(?:{_NAMES})[\w-]{{0,64}}\s{{1,16}})(?!-)\S+",
    r"(?i)((?:proxy-)?authorization[\"']?\s{0,16}[=:]\s{0,16}[\"']?|(?:set-)?cookie\s{0,16}:\s{0,16})[^\r\n\"']+",
    # Script arguments, a query, a form: up to where such a value ends.
    rf"(?i)((?:{_NAMES}|(?<=[?&;])key)s?[\"']?\s{{0,16}}[=:]\s{{0,16}}[\"']?)[^\s,;&\"']+",
    r"(?i)\b(bearer\s{1,16})[\w.~+/=-]{8,}",
)


def is_secret_name(name: str) -> bool:
    """Whether a field of this name holds a secret, as ``api_key``, ``apiKey`` or ``Authorization`` do."""
    return bool(re.search(_MORE_NAMES, name)) or is_secret(re.sub(_WORD_BOUNDARY, "_", name))


def without_secrets(text: str) -> str:
    """Return ``text`` with the passwords of URLs and the values of ``password=``, ``Authorization:`` … hidden."""
    if re.search(_ANY, text):
        for pattern in _PATTERNS:
            text = re.sub(pattern, rf"\g<1>{REDACTED}", text)
    return text


def follows_secret_flag(words: Sequence[Any], index: int) -> bool:
    """Whether the word at ``index`` is the value of a flag such as ``--password``."""
    flag = words[index - 1] if index else None
    word = words[index]
    if not isinstance(flag, str) or not isinstance(word, str) or word.startswith("-"):
        return False
    return flag.startswith("-") and "=" not in flag and is_secret_name(flag.lstrip("-"))
