"""The reader of ``extra_args``: tables of accepted and refused text, and properties over arbitrary text.

`check_all` runs the whole table in-process on any copy of the package; test_flags_mutation.py gives it broken ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.errors import AccessError, ArgumentError, RefusedError
from mcp_server.tools import flags
from mcp_server.tools.flags import reader as reader_module
from mcp_server.tools.flags import values as values_module

MAX_LENGTH = 120


@dataclass(frozen=True)
class Bad:
    """A refused text: its code, and fragments that the message and the hint must hold."""

    text: str
    code: str
    message: str
    hint: str = ""
    max_length: int = MAX_LENGTH


def build_table(pkg: Any, *, allow_intrusive: bool = False) -> dict[str, Any]:
    """A table with one flag of every kind, made by the classes of ``pkg``."""
    return pkg.table(  # type: ignore[no-any-return] # pkg is any copy of the package
        [
            "-n",
            "--verbose",
            "-c INT 1-100",
            "--count INT",
            "-i FLOAT 0.2-60",
            "-W DURATION 100ms-5m",
            "--limit DURATION 1m-2h",
            "--mode WORD",
            "--type CHOICE a|b",
            "--rate=INT 0-9",
            pkg.Flag("-T", value=pkg.IntValue(0, 4), joined=True, field="timing"),
            pkg.Flag("-Tx", value=pkg.IntValue(0, 4), joined=True),
            pkg.Flag("-F", field="ports", const="top"),
            pkg.Flag("-A", intrusive=True),
        ],
        allow_intrusive=allow_intrusive,
    )


GOOD: list[tuple[str, list[str]]] = [
    ("", []),
    ("   ", []),
    ("-n", ["-n"]),
    ("  -n   --verbose ", ["-n", "--verbose"]),
    ("-c 1", ["-c", "1"]),
    ("-c 100", ["-c", "100"]),
    ("--count 0", ["--count", "0"]),
    ("--count 2147483647", ["--count", "2147483647"]),
    ("-n -c 10 -F", ["-n", "-c", "10", "-F"]),
    ("-i 0.2", ["-i", "0.2"]),
    ("-i 60", ["-i", "60"]),
    ("-i 1.50", ["-i", "1.5"]),
    ("-i 12.345", ["-i", "12.345"]),
    ("-W 100ms", ["-W", "100ms"]),
    ("-W 1500ms", ["-W", "1500ms"]),
    ("-W 2000ms", ["-W", "2s"]),
    ("-W 30s", ["-W", "30s"]),
    ("-W 5m", ["-W", "300s"]),
    ("-W 300000ms", ["-W", "300s"]),
    ("--limit 1h", ["--limit", "3600s"]),
    ("--mode a", ["--mode", "a"]),
    ("--mode x_Y-9", ["--mode", "x_Y-9"]),
    ("--mode " + "w" * 64, ["--mode", "w" * 64]),
    ("--type a", ["--type", "a"]),
    ("--type b", ["--type", "b"]),
    ("--rate=0", ["--rate=0"]),
    ("--rate=9 -n", ["--rate=9", "-n"]),
    ("-T0", ["-T0"]),
    ("-n -T4 -c 3", ["-n", "-T4", "-c", "3"]),
    ("-Tx4 -T3", ["-Tx4", "-T3"]),
    ("-n" + " " * 118, ["-n"]),
]

_FORBIDDEN = [
    Bad(f"-c 1{char}", "forbidden_characters", f"forbidden metacharacters: '{shown}' ({name}) at position 5")
    for char, shown, name in [
        (";", ";", "U+003B"),
        ("&", "&", "U+0026"),
        ("|", "|", "U+007C"),
        ("`", "`", "U+0060"),
        ("$", "$", "U+0024"),
        (">", ">", "U+003E"),
        ("<", "<", "U+003C"),
        ("\\", "\\\\", "U+005C"),
        ('"', '"', "U+0022"),
        ("'", "'", "U+0027"),
        ("\n", "\\x0a", "U+000A"),
        ("\r", "\\x0d", "U+000D"),
        ("\t", "\\x09", "U+0009"),
        ("\0", "\\x00", "U+0000"),
        ("\x1b", "\\x1b", "U+001B"),
        ("\x7f", "\\x7f", "U+007F"),
        ("\x85", "\\u0085", "U+0085"),
        ("\u00a0", "\\u00a0", "U+00A0"),
        ("\u0661", "\u0661", "U+0661"),
        ("\uff11", "\uff11", "U+FF11"),
        ("\u2028", "\\u2028", "U+2028"),
        ("\u202e", "\\u202e", "U+202E"),
        ("\U0001d7d9", "\U0001d7d9", "U+1D7D9"),
        ("\udc80", "\\x80", "U+DC80"),
    ]
]

BAD: list[Bad] = [
    *_FORBIDDEN,
    Bad("; rm -rf /", "forbidden_characters", "forbidden metacharacters: ';' (U+003B) at position 1"),
    Bad("-n" + " " * 119, "arguments_too_long", "121 characters. The limit is 120"),
    Bad("-n" * 500_000, "arguments_too_long", "1000000 characters"),
    Bad("-n", "arguments_too_long", "2 characters. The limit is 1", max_length=1),
    Bad("-x", "argument_not_allowed", "'-x', which is not a flag of this tool"),
    Bad("--verbos", "argument_not_allowed", "'--verbos'", "A similar flag of this tool is --verbose."),
    Bad("-verbose", "argument_not_allowed", "'-verbose'", "similar flag of this tool is --verbose"),
    Bad("--Verbose", "argument_not_allowed", "'--Verbose'", "similar flag of this tool is --verbose"),
    Bad("--coun 3", "argument_not_allowed", "'--coun'", "A similar flag of this tool is --count INT 0-2147483647."),
    Bad("--zzzzzzzz", "argument_not_allowed", "'--zzzzzzzz'", "Flags of this tool: -n, --verbose, -c"),
    Bad("--count=3", "argument_not_allowed", "'--count=3'", "Write the value as a separate word: --count INT"),
    Bad("-c5", "argument_not_allowed", "'-c5'", "Write the value as a separate word: -c INT 1-100."),
    Bad("-n=1", "argument_not_allowed", "'-n=1'", "similar flag of this tool is -n"),
    Bad("--verbose=1", "argument_not_allowed", "'--verbose=1'", "similar flag of this tool is --verbose."),
    Bad("-N", "argument_not_allowed", "'-N'"),
    Bad("--", "argument_not_allowed", "'--', which is not a flag"),
    Bad("-", "argument_not_allowed", "'-', which is not a flag"),
    Bad("-oN /tmp/x", "argument_not_allowed", "'-oN'"),
    Bad("10.0.0.1", "argument_not_allowed", "'10.0.0.1', which is neither a flag nor", "extra_args takes flags only"),
    Bad("-n 10.0.0.1", "argument_not_allowed", "'10.0.0.1', which is neither"),
    Bad("-c 3 4", "argument_not_allowed", "'4', which is neither"),
    Bad("n", "argument_not_allowed", "'n', which is neither"),
    Bad("-" + "q" * 60, "argument_not_allowed", f"'-{'q' * 39}…[+21]'"),
    Bad("-n -n", "invalid_arguments", "-n occurs twice", "Give each flag once."),
    Bad("-c 3 -n -c 4", "invalid_arguments", "-c occurs twice"),
    Bad("-T3 -T3", "invalid_arguments", "-T occurs twice"),
    Bad("-c", "invalid_arguments", "-c has no value", "Write -c INT 1-100."),
    Bad("-T", "invalid_arguments", "-T has no value", "Write -TINT 0-4."),
    Bad("--rate=", "invalid_arguments", "--rate= has no value", "Write --rate=INT 0-9."),
    Bad("-n --mode", "invalid_arguments", "--mode has no value", "Write --mode WORD."),
    Bad("--mode -n", "invalid_arguments", "The value of --mode begins with '-': '-n'", "Write --mode WORD."),
    Bad("--mode @x", "invalid_arguments", "The value of --mode begins with '@': '@x'"),
    Bad("--mode +x", "invalid_arguments", "The value of --mode begins with '+': '+x'"),
    Bad("-c -1", "invalid_arguments", "The value of -c begins with '-'"),
    Bad("-T-1", "invalid_arguments", "The value of -T begins with '-'"),
    Bad(
        "-c 0",
        "invalid_arguments",
        "-c does not take '0': expected a whole number from 1 to 100.",
        "Write -c INT 1-100.",
    ),
    Bad("-c 101", "invalid_arguments", "-c does not take '101'"),
    Bad("-c 010", "invalid_arguments", "-c does not take '010'"),
    Bad("-c 1.0", "invalid_arguments", "-c does not take '1.0'"),
    Bad("-c 1e1", "invalid_arguments", "-c does not take '1e1'"),
    Bad("-c 1_0", "invalid_arguments", "-c does not take '1_0'"),
    Bad("-c x", "invalid_arguments", "-c does not take 'x'"),
    Bad("--count 2147483648", "invalid_arguments", "--count does not take '2147483648'"),
    Bad("--count 99999999999", "invalid_arguments", "--count does not take '99999999999'"),
    Bad("-T5", "invalid_arguments", "-T does not take '5'"),
    Bad("-T=4", "invalid_arguments", "-T does not take '=4'"),
    Bad("--rate=10", "invalid_arguments", "--rate= does not take '10'"),
    Bad(
        "-i 0.1",
        "invalid_arguments",
        "-i does not take '0.1': expected a number from 0.2 to 60 with at most three decimals.",
        "Write -i FLOAT 0.2-60.",
    ),
    Bad("-i 60.001", "invalid_arguments", "-i does not take '60.001'"),
    Bad("-i 1.2345", "invalid_arguments", "-i does not take '1.2345'"),
    Bad("-i .5", "invalid_arguments", "-i does not take '.5'"),
    Bad("-i 1.", "invalid_arguments", "-i does not take '1.'"),
    Bad("-i nan", "invalid_arguments", "-i does not take 'nan'"),
    Bad("-i 1e1", "invalid_arguments", "-i does not take '1e1'"),
    Bad(
        "-W 99ms",
        "invalid_arguments",
        "-W does not take '99ms': expected a time from 100ms to 300s with its unit, as in",
    ),
    Bad("-W 301s", "invalid_arguments", "-W does not take '301s'"),
    Bad("-W 300001ms", "invalid_arguments", "-W does not take '300001ms'"),
    Bad("-W 1h", "invalid_arguments", "-W does not take '1h'"),
    Bad("-W 30", "invalid_arguments", "-W does not take '30'"),
    Bad("-W 0s", "invalid_arguments", "-W does not take '0s'"),
    Bad("-W 30S", "invalid_arguments", "-W does not take '30S'"),
    Bad("-W s", "invalid_arguments", "-W does not take 's'"),
    Bad("--mode a.b", "invalid_arguments", "--mode does not take 'a.b': expected 1 to 64 of the characters"),
    Bad("--mode /etc/passwd", "invalid_arguments", "--mode does not take '/etc/passwd'"),
    Bad("--mode " + "w" * 65, "invalid_arguments", "--mode does not take"),
    Bad("--type c", "invalid_arguments", "--type does not take 'c': expected one of a, b.", "Write --type CHOICE a|b."),
    Bad("--type A", "invalid_arguments", "--type does not take 'A'"),
    Bad("--type a,b", "invalid_arguments", "--type does not take 'a,b'"),
    Bad("-A", "intrusive_not_allowed", "-A is intrusive"),
    Bad("-n -A", "intrusive_not_allowed", "-A is intrusive"),
]


def check_good(pkg: Any, text: str, words: list[str]) -> None:
    """Assert that ``text`` is read as the settings that `pkg.emit` spells as ``words``, and that this is stable."""
    table = build_table(pkg)
    settings = pkg.read(text, table, max_length=MAX_LENGTH)
    assert pkg.emit(settings) == words
    assert pkg.read(" ".join(words), table, max_length=MAX_LENGTH) == settings


def check_bad(pkg: Any, case: Bad) -> None:
    """Assert that the text is refused with the code, message and hint of its row, and details that name it."""
    with pytest.raises(RefusedError) as caught:
        pkg.read(case.text, build_table(pkg), max_length=case.max_length)
    error = caught.value
    assert error.code == case.code
    assert case.message in error.message
    assert case.hint in error.hint
    assert error.details["parameter"] == "extra_args"
    assert isinstance(error, AccessError if case.code == "intrusive_not_allowed" else ArgumentError)
    assert len(error.message) < 250


def check_details(pkg: Any) -> None:
    """Check typed values, details of errors, and locked flags under both policies, which no row can express."""
    table = build_table(pkg)
    read = pkg.read("-c 7 -W 2s -i 0.5 -F -T3 -n", table, max_length=MAX_LENGTH)
    assert [(each.flag.name, each.given) for each in read] == [
        ("-c", 7),
        ("-W", 2000),
        ("-i", 0.5),
        ("-F", "top"),
        ("-T", 3),
        ("-n", True),
    ]
    for text, details in [
        ("a;", {"parameter": "extra_args", "character": "U+003B", "position": 2}),
        ("n" * 121, {"parameter": "extra_args", "limit": 120}),
        ("-c 0", {"parameter": "extra_args", "flag": "-c"}),
        ("-A", {"parameter": "extra_args", "flag": "-A"}),
        ("-" + "q" * 60, {"parameter": "extra_args", "word": f"-{'q' * 39}…[+21]"}),
    ]:
        with pytest.raises(RefusedError) as caught:
            pkg.read(text, table, max_length=MAX_LENGTH)
        assert caught.value.details == details
    with pytest.raises(ArgumentError) as caught_empty:
        pkg.read("-x", {}, max_length=MAX_LENGTH)
    assert caught_empty.value.hint == "Flags of this tool: none."
    nested = pkg.table(["-c INT", "-cc INT", pkg.Flag("-cj", value=pkg.IntValue(), joined=True)])
    with pytest.raises(ArgumentError) as caught_nested:
        pkg.read("-cc5", nested, max_length=MAX_LENGTH)
    assert caught_nested.value.hint.startswith("Write the value as a separate word: -cc INT")
    with pytest.raises(ArgumentError) as caught_far:
        pkg.read("--xerbqse" + "q" * 60, table, max_length=MAX_LENGTH)
    assert caught_far.value.hint.startswith("Flags of this tool:")
    unlocked = build_table(pkg, allow_intrusive=True)
    assert pkg.emit(pkg.read("-A", unlocked, max_length=MAX_LENGTH)) == ["-A"]


def check_all(pkg: Any) -> None:
    """Run every row of this file on one copy of the package; raise at the first that fails."""
    check_details(pkg)
    for text, words in GOOD:
        check_good(pkg, text, words)
    for case in BAD:
        check_bad(pkg, case)


@pytest.mark.parametrize(("text", "words"), GOOD, ids=[repr(row[0])[:40] for row in GOOD])
def test_good_text_is_read_and_written_in_its_canonical_spelling(text: str, words: list[str]) -> None:
    check_good(flags, text, words)


@pytest.mark.parametrize("case", BAD, ids=[f"{index}-{case.code}" for index, case in enumerate(BAD)])
def test_bad_text_is_refused_with_its_reason(case: Bad) -> None:
    check_bad(flags, case)


def test_typed_values_error_details_and_locked_flags_are_as_declared() -> None:
    check_details(flags)


def test_only_plain_ascii_characters_are_allowed() -> None:
    refused = set()
    for code in range(0x250):
        try:
            reader_module.check_characters(f"a{chr(code)}b", "ports")
        except ArgumentError as error:
            if error.message.startswith("ports holds forbidden metacharacters"):
                refused.add(code)
    assert refused == set(range(0x20)) | set(map(ord, ";&|`$><\\\"'")) | set(range(0x7F, 0x250))


TABLE = build_table(flags)
CANONICAL = {
    "INT": r"0|[1-9][0-9]{0,9}",
    "FLOAT": r"(0|[1-9][0-9]*)(\.[0-9]{0,2}[1-9])?",
    "DURATION": r"[1-9][0-9]*(ms|s)",
    "WORD": r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}",
    "CHOICE": r"a|b",
}
"""The canonical spelling of each value type, written independently of its class."""

_PIECES = [*TABLE, "1", "100", "0.5", "30s", "1500ms", "a", "b", "-T3", "-T", "--rate=7", "-c", "3", "@x", "-A", "/x"]
_texts = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=60),
    st.lists(st.sampled_from(_PIECES), max_size=8).map(" ".join),
)


@given(_texts)
def test_accepted_text_has_only_flags_of_the_table_and_is_the_same_after_writing_and_reading(text: str) -> None:
    try:
        settings = flags.read(text, TABLE, max_length=MAX_LENGTH)
    except RefusedError:
        return
    words = flags.emit(settings)
    assert flags.read(" ".join(words), TABLE, max_length=MAX_LENGTH) == settings
    rest = iter(words)
    for setting in settings:
        flag = setting.flag
        assert TABLE[flag.name] is flag
        word = next(rest)
        if flag.value is None:
            assert word == flag.name
            continue
        value = word.removeprefix(flag.name) if flag.joined else next(rest)
        assert flag.joined or word == flag.name
        assert re.fullmatch(CANONICAL[flag.value.label.split()[0]], value)
    assert next(rest, None) is None


_typed = st.sampled_from(list(TABLE.values())).flatmap(
    lambda flag: st.builds(flags.Setting, st.just(flag), _values(flag)) if not flag.locked else st.nothing()
)


def _values(flag: flags.Flag) -> st.SearchStrategy[Any]:
    match flag.value:
        case None:
            return st.none()
        case values_module.IntValue(low, high):
            return st.integers(low, high)
        case values_module.FloatValue(low, high):
            return st.integers(int(low * 1000), int(high * 1000)).map(lambda thousandths: thousandths / 1000)
        case values_module.DurationValue(low, high):
            return st.integers(low, high)
        case values_module.ChoiceValue(choices):
            return st.sampled_from(choices)
        case _:
            return st.from_regex(CANONICAL["WORD"], fullmatch=True)


@given(st.lists(_typed, max_size=8, unique_by=lambda setting: setting.flag.name))
def test_every_typed_value_within_bounds_is_the_same_after_writing_and_reading(settings: list[flags.Setting]) -> None:
    text = " ".join(flags.emit(settings))
    assert flags.read(text, TABLE, max_length=10_240) == tuple(settings)


def test_the_cases_run_on_the_package_itself() -> None:
    assert isinstance(flags, ModuleType)
    assert flags.read is reader_module.read
