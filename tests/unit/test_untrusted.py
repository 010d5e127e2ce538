"""Sanitizing of text from targets, over all of Unicode."""

from __future__ import annotations

import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.model.untrusted import FIELD_LIMIT, TextBudget, escape, hidden, sanitize

# Default_Ignorable_Code_Point of Unicode's DerivedCoreProperties, and the blanks that are letters or symbols.
INVISIBLE_RANGES = (
    (0x00AD, 0x00AD),
    (0x034F, 0x034F),
    (0x061C, 0x061C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0x2800, 0x2800),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0x1BCA0, 0x1BCA3),
    (0x1D159, 0x1D159),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)
ESCAPE = re.compile(r"\\(?:\\|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")


def read_back(text: str) -> str:
    """Undo the escapes as the docstring of the module describes them."""

    def one(match: re.Match[str]) -> str:
        byte, short, long = match.groups()
        if byte is not None:
            return chr(int(byte, 16)) if int(byte, 16) < 0x80 else chr(0xDC00 + int(byte, 16))
        return chr(int(short or long, 16)) if short or long else "\\"

    return ESCAPE.sub(one, text)


@pytest.mark.no_cover
def test_every_code_point_is_visible_or_escaped() -> None:
    seen: set[str] = set()
    covered = 0
    for start in range(0, sys.maxunicode + 1, 4096):
        block = "".join(map(chr, range(start, start + 4096)))
        safe = sanitize(block, limit=10 * len(block))
        assert read_back(safe) == block
        seen.update(safe)
        covered += len(block)
    assert covered == 1_114_112
    assert {char for char in seen if not char.isprintable()} == set()
    hidden = {chr(code) for first, last in INVISIBLE_RANGES for code in range(first, last + 1)}
    assert seen & hidden == set()
    assert {unicodedata.category(char) for char in seen} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} == set()
    # Letters of ordinary text are not escaped.
    assert {"é", "中", "ß", "🙂", "\u05d0"} <= seen


def test_known_attacks_become_visible() -> None:
    assert sanitize("\x1b]0;pwn\x07") == r"\x1b]0;pwn\x07"
    assert sanitize("a\u202egnp.exe") == r"a\u202egnp.exe"
    assert sanitize("\U000e0041") == r"\U000e0041"
    assert sanitize("a\x00b\r\n") == r"a\x00b\x0d\x0a"


def test_undecodable_bytes_differ_from_characters_of_the_same_number() -> None:
    assert sanitize(b"\x85\xff") == r"\x85\xff"
    assert sanitize("\x85") == r"\u0085"


def test_escapes_and_the_mark_of_a_cut_cannot_be_forged() -> None:
    assert sanitize(r"\x1b") == r"\\x1b"
    assert sanitize("…[+5]") == r"\u2026[+5]"


def test_a_cut_counts_the_missing_characters_and_never_splits_an_escape() -> None:
    assert sanitize("a" * 70_000) == "a" * FIELD_LIMIT + f"…[+{70_000 - FIELD_LIMIT}]"
    assert sanitize("abc\x1bdef", limit=5) == "abc…[+4]"
    assert sanitize("abc", limit=0) == "…[+3]"


@given(st.text(), st.integers(0, 40))
def test_text_is_kept_up_to_the_limit(text: str, limit: int) -> None:
    safe = sanitize(text, limit=limit)
    kept, cut, rest = safe.partition("…")
    assert len(kept) <= limit
    shown = read_back(kept)
    assert text.startswith(shown)
    assert (rest == f"[+{len(text) - len(shown)}]") if cut else (shown == text)


@given(st.binary())
def test_every_byte_can_be_read_back(data: bytes) -> None:
    assert read_back(sanitize(data, limit=100_000)).encode("utf-8", "surrogateescape") == data


@pytest.mark.no_cover
def test_escape_leaves_sanitized_text_unchanged() -> None:
    for start in range(0, sys.maxunicode + 1, 4096):
        block = "".join(map(chr, range(start, start + 4096)))
        shown = escape(block).replace("\n", "")
        assert not any(map(hidden, set(shown)))
        assert shown.isprintable()
        safe = sanitize(block, limit=10 * len(block))
        assert escape(safe) == safe
    assert escape("a\x1b[2J\nb\\") == "a\\x1b[2J\nb\\"
    assert escape("\x7f\x00") == r"\x7f\x00"


def test_a_budget_limits_each_host_and_the_whole_call() -> None:
    budget = TextBudget(host=10, call=30)
    kept = []
    for _ in range(4):
        budget.next_host()
        kept.append([budget.take("abcdef"), budget.take("gh\x1b"), budget.remaining])
    assert kept[0][0] == "abcdef"
    assert kept[0][1] == "gh…[+1]"
    assert [remaining for *_, remaining in kept] == [0, 0, 0, 0]
    assert kept[2][0] == "abcd…[+2]"
    assert kept[3] == ["…[+6]", "…[+3]", 0]
