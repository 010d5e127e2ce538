r"""The one function that text from a target passes before anyone sees it, and the limits of how much of it there is.

Control, format, bidirectional, tag, private and unassigned characters become visible escapes; nothing is
removed silently. Text is not normalised: evidence stays what it was. Categories are those of Unicode UAX #44
as Python's ``unicodedata`` has them; the invisible letters are those of its Default_Ignorable_Code_Point.

The escapes cannot be forged, because what they are made of is itself escaped: a backslash is doubled, and an
ellipsis, which marks a cut, is written ``\u2026``. They can be read back: ``\xNN`` is a control character
below 0x80 or an undecodable byte from 0x80 up, ``\uNNNN`` and ``\UNNNNNNNN`` are code points.

`sanitize` is applied once, where text is parsed; `visible` is the net at every way out (docs/untrusted-output.md).
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Final

FIELD_LIMIT: Final = 512
"""Characters of output allowed for one field, before the mark of a cut."""
HOST_TEXT_LIMIT: Final = 256 * 1024
"""Characters of text from one host that a run keeps; a field beyond them is only the mark of its cut."""
CALL_TEXT_LIMIT: Final = 16 * 1024 * 1024
"""Characters of text from all hosts of one call together."""

FROM_TARGET: Final = "from_target"
"""The key under which every interface shows text of targets, by source, and nothing else does."""
VERSION_PROBE: Final = "version_probe"
"""The source of product, version and the like: what a service answered when it was asked what it is."""

_ESCAPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Letters and marks that render as nothing: the grapheme joiner, Hangul fillers, Khmer inherent vowels,
# Mongolian variation selectors, the blank braille pattern and the null notehead.
_INVISIBLE = frozenset(
    {0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x2800, 0x3164, 0xFFA0, 0x1D159}
)
_CUT = "…"


@lru_cache(maxsize=4096)
def hidden(char: str) -> bool:
    """Whether a character shows nothing, or makes a terminal or a reader do something."""
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
    if code < 0x80:  # from 0x80 up this form stands for a byte, so that the two cannot be confused
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def sanitize(text: str | bytes, limit: int = FIELD_LIMIT) -> str:
    """Return ``text`` with everything invisible or active made visible, at most ``limit`` characters of it.

    Bytes are read as UTF-8. A cut is marked with ``…`` and the number of input characters left out, e.g.
    ``…[+65024]``, which comes on top of the limit; an escape is never cut in two.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    # ASCII and printable is exactly 0x20 to 0x7e; this is what nearly every string is.
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
    r"""Return ``text`` with whatever is still hidden in it escaped, line breaks apart.

    The net before a terminal or a log: it does not change what `sanitize` has made, and what slipped past that
    still cannot act there. Backslashes stay as they are, so its escapes are not proof against forgery.
    """
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(char if char == "\n" or not hidden(char) else _escaped(char) for char in text)


def quoted(text: str, limit: int = 60) -> str:
    """Return ``text`` in quotes, as an error message repeats it: escaped, and at most ``limit`` characters of it."""
    return f"'{sanitize(text, limit)}'"


class TextBudget:
    """What is left of the limits per host and per call, while the output of one run is read."""

    def __init__(self, *, host: int = HOST_TEXT_LIMIT, call: int = CALL_TEXT_LIMIT) -> None:
        self._per_host = host
        self._call = call
        self._host = host

    def next_host(self) -> None:
        """Begin a host: it may use its own limit, within what is left of the call's."""
        self._host = self._per_host

    @property
    def room(self) -> int:
        """Characters that may still be kept now."""
        return min(self._host, self._call)

    def spend(self, characters: int) -> None:
        """Count characters that were kept."""
        self._host = max(0, self._host - characters)
        self._call = max(0, self._call - characters)

    def take(self, text: str, limit: int = FIELD_LIMIT) -> str:
        """Return ``text`` sanitized, cut to ``limit`` and to what is left, and count it."""
        out = sanitize(text, min(limit, self.room))
        self.spend(len(out))
        return out
