r"""Sanitizes text from targets, and limits how much of it a run keeps.

Control, format, bidirectional, tag, private-use and unassigned characters become visible escapes. Nothing is removed
silently, and text is not normalized, so that evidence stays as it was. The categories are those of Unicode UAX #44 in
Python's ``unicodedata``; the invisible letters are from Unicode's Default_Ignorable_Code_Point.

A target cannot forge an escape, because its parts are escaped too: a backslash is doubled, and an ellipsis, which marks
a cut, is written ``\u2026``. Escapes can be read back: ``\xNN`` is a control character below 0x80 or an undecodable
byte from 0x80 up, and ``\uNNNN`` and ``\UNNNNNNNN`` are code points.

`sanitize` is applied once, when text is parsed. `escape` is applied at every output (docs/untrusted-output.md).
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Final

FIELD_LIMIT: Final = 512
"""The most characters of one field, without the mark of a cut."""
HOST_TEXT_LIMIT: Final = 256 * 1024
"""The most characters of text from one host that a run keeps. A field after that is only the mark of a cut."""
CALL_TEXT_LIMIT: Final = 16 * 1024 * 1024
"""The most characters of text from all hosts of one call together."""

FROM_TARGET: Final = "from_target"
"""The key under which every interface shows text of targets, by source. It appears nowhere else."""
VERSION_PROBE: Final = "version_probe"
"""The source of product, version and similar text: the answer of a service to nmap's version probes."""

_ESCAPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Letters and marks that show nothing: the grapheme joiner, Hangul fillers, Khmer inherent vowels,
# Mongolian variation selectors, the blank braille pattern and the null notehead.
_INVISIBLE = frozenset(
    {0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x2800, 0x3164, 0xFFA0, 0x1D159}
)
_CUT = "…"


@lru_cache(maxsize=4096)
def hidden(char: str) -> bool:
    """Return whether a character shows nothing, or controls a terminal or the direction of text."""
    code = ord(char)
    category = unicodedata.category(char)
    return (
        category in _ESCAPED_CATEGORIES
        or 0xE0000 <= code <= 0xE0FFF  # tags and variation selectors supplement
        or 0xFE00 <= code <= 0xFE0F  # variation selectors
        or (category == "Zs" and code != 0x20)
        or code in _INVISIBLE
    )


@lru_cache(maxsize=4096)
def _escape(char: str) -> str:
    if char == "\\":
        return "\\\\"
    return _escaped(char) if hidden(char) or char == _CUT else char


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # an undecodable byte, kept by surrogateescape
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:  # from 0x80 up this form means a byte
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def sanitize(text: str | bytes, limit: int = FIELD_LIMIT) -> str:
    """Return at most ``limit`` characters of ``text``, with every hidden character escaped.

    Bytes are read as UTF-8. A cut is marked with ``…`` and the number of input characters left out, for example
    ``…[+65024]``. The mark does not count toward the limit. An escape is never cut in two.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    # Nearly every string is printable ASCII, which is exactly 0x20 to 0x7e.
    if len(text) <= limit and text.isascii() and text.isprintable() and "\\" not in text:
        return text
    out: list[str] = []
    used = 0
    for index, char in enumerate(text):
        piece = _escape(char)
        used += len(piece)
        if used > limit:
            return f"{''.join(out)}{_CUT}[+{len(text) - index}]"
        out.append(piece)
    return "".join(out)


def escape(text: str) -> str:
    """Return ``text`` with hidden characters escaped, except line breaks.

    This is the last check before a terminal or a log. It does not change the output of `sanitize`. Backslashes stay as
    they are, so these escapes can be forged.
    """
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(char if char == "\n" or not hidden(char) else _escaped(char) for char in text)


def quoted(text: str, limit: int = 60) -> str:
    """Return ``text`` in quotes, as an error message repeats it: escaped, and at most ``limit`` characters of it."""
    return f"'{sanitize(text, limit)}'"


class TextBudget:
    """The text that a run may still keep, for the current host and for the whole call."""

    def __init__(self, *, host: int = HOST_TEXT_LIMIT, call: int = CALL_TEXT_LIMIT) -> None:
        self._per_host = host
        self._call = call
        self._host = host

    def next_host(self) -> None:
        """Start a new host, which has its own limit within the remaining limit of the call."""
        self._host = self._per_host

    @property
    def remaining(self) -> int:
        """The number of characters that may be kept now."""
        return min(self._host, self._call)

    def spend(self, characters: int) -> None:
        """Count characters that were kept."""
        self._host = max(0, self._host - characters)
        self._call = max(0, self._call - characters)

    def take(self, text: str, limit: int = FIELD_LIMIT) -> str:
        """Return ``text`` sanitized, cut to ``limit`` and to the remaining characters, and count it."""
        out = sanitize(text, min(limit, self.remaining))
        self.spend(len(out))
        return out
