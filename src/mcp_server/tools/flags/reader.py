"""Reads ``extra_args`` into typed settings of one table of flags. Any other text is a typed error.

Nothing is guessed. A word is a flag of the table in its exact spelling, or the value of the flag before it. No shell
reads the text, and quoting does not exist.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from mcp_server.errors import AccessError, ArgumentError
from mcp_server.model.untrusted import sanitize
from mcp_server.tools.flags.table import Flag, Setting
from mcp_server.tools.flags.values import Value

SHOWN_CHARS = 40
"""The maximum number of characters of a caller's word that a message repeats."""

# All characters that a shell, a terminal or a C string treats specially, and all characters that are not ASCII text.
_FORBIDDEN = re.compile(r"""[^ -~]|[;&|`$><\\"']""")


def read(text: str, table: Mapping[str, Flag], *, max_length: int) -> tuple[Setting, ...]:
    """Return the settings in ``text``, in their order. ``max_length`` is the maximum length of ``text`` in characters.

    Raises AccessError ``intrusive_not_allowed`` for a locked flag, and ArgumentError with one of these codes:

    - ``forbidden_characters``
    - ``arguments_too_long``
    - ``argument_not_allowed``: a flag is not in the table, or a word belongs to no flag.
    - ``invalid_arguments``: a value is missing, unsafe or out of bounds, or a flag occurs twice.
    """
    check_characters(text, "extra_args")
    if len(text) > max_length:
        raise ArgumentError(
            f"extra_args has {len(text)} characters. The limit is {max_length}.",
            code="arguments_too_long",
            parameter="extra_args",
            limit=max_length,
        )
    words = [word for word in text.split(" ") if word]
    settings: dict[str, Setting] = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        flag = table.get(word) or _joined(word, table)
        if flag is None:
            _refuse_word(word, table)
        if flag.locked:
            raise AccessError(
                f"{flag.name} is intrusive, and the operator does not allow intrusive calls.",
                code="intrusive_not_allowed",
                parameter="extra_args",
                flag=flag.name,
            )
        if flag.name in settings:
            raise _invalid(flag, f"{flag.name} occurs twice in extra_args.", "Give each flag once.")
        if flag.value is None:
            settings[flag.name] = Setting(flag)
            continue
        if flag.joined:
            written = word[len(flag.name) :]
        else:
            written = words[position] if position < len(words) else ""
            position += 1
        settings[flag.name] = Setting(flag, _parse(flag, flag.value, written))
    return tuple(settings.values())


def check_characters(text: str, parameter: str) -> None:
    """Raise ArgumentError ``forbidden_characters`` unless ``text`` is plain ASCII without shell metacharacters.

    Forbidden are ``; & | ` $ > <``, the backslash, both quotes, control characters and all characters outside of ASCII.
    """
    found = _FORBIDDEN.search(text)
    if found:
        char = found.group()
        raise ArgumentError(
            f"{parameter} holds forbidden metacharacters: '{sanitize(char)}' "
            f"(U+{ord(char):04X}) at position {found.start() + 1}.",
            code="forbidden_characters",
            parameter=parameter,
            character=f"U+{ord(char):04X}",
            position=found.start() + 1,
        )


def _joined(word: str, table: Mapping[str, Flag]) -> Flag | None:
    """Return the joined flag that ``word`` begins with. If there are several, return the longest."""
    fitting = [flag for flag in table.values() if flag.joined and word.startswith(flag.name)]
    return max(fitting, key=lambda flag: len(flag.name), default=None)


def _parse(flag: Flag, value: Value, written: str) -> Any:
    if not written:
        raise _invalid(flag, f"{flag.name} has no value.", f"Write {flag.usage}.")
    shown = sanitize(written, SHOWN_CHARS)
    if written[0] in "-@+":
        raise _invalid(flag, f"The value of {flag.name} begins with '{written[0]}': '{shown}'.", f"Write {flag.usage}.")
    try:
        return value.parse(written)
    except ValueError as error:
        raise _invalid(flag, f"{flag.name} does not take '{shown}': {error}.", f"Write {flag.usage}.") from None


def _invalid(flag: Flag, message: str, hint: str) -> ArgumentError:
    return ArgumentError(message, hint=hint, parameter="extra_args", flag=flag.name)


def _refuse_word(word: str, table: Mapping[str, Flag]) -> NoReturn:
    shown = sanitize(word, SHOWN_CHARS)
    if not word.startswith("-"):
        message = f"extra_args holds '{shown}', which is neither a flag nor the value of one."
        hint = "Remove it. extra_args takes flags only. Use the separate parameter for targets."
    else:
        message = f"extra_args holds '{shown}', which is not a flag of this tool."
        hint = _suggestion(word, table)
    raise ArgumentError(message, code="argument_not_allowed", hint=hint, parameter="extra_args", word=shown)


def _suggestion(word: str, table: Mapping[str, Flag]) -> str:
    """Return the hint for an unknown flag: how to write its value, or a similar flag, or the complete list."""
    with_value = [flag for flag in table.values() if flag.value and word.startswith(flag.name)]
    if with_value:
        flag = max(with_value, key=lambda each: len(each.name))
        return f"Write the value as a separate word: {flag.usage}."
    import difflib

    for similar in difflib.get_close_matches(word[:SHOWN_CHARS], table, n=1, cutoff=0.5):
        return f"A similar flag of this tool is {table[similar].usage}."
    return f"Flags of this tool: {', '.join(table) or 'none'}."
