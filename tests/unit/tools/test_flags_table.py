"""Flag tables: the notation of plain strings, refused declarations, and intrusive flags."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_server.base_tool import MCPBaseTool, ToolPolicy
from mcp_server.errors import ConfigError
from mcp_server.model.run import Risk
from mcp_server.tools import flags
from mcp_server.tools.flags import ChoiceValue, DurationValue, Flag, FloatValue, IntValue, WordValue

DECLARATIONS: list[tuple[str, str, str, tuple[Any, ...]]] = [
    ("-n", "-n", "", ()),
    ("--numeric-only", "--numeric-only", "", ()),
    ("-4", "-4", "", ()),
    ("-c INT", "-c", "IntValue", (0, 2**31 - 1)),
    ("-c INT 1-100", "-c", "IntValue", (1, 100)),
    ("-c INT 5-5", "-c", "IntValue", (5, 5)),
    ("-i FLOAT", "-i", "FloatValue", (0.0, float(2**31 - 1))),
    ("-i FLOAT 0.2-60", "-i", "FloatValue", (0.2, 60.0)),
    ("-W DURATION", "-W", "DurationValue", (1, 86_400_000)),
    ("-W DURATION 100ms-5m", "-W", "DurationValue", (100, 300_000)),
    ("--mode WORD", "--mode", "WordValue", ()),
    ("--type CHOICE a|b-c|d_1", "--type", "ChoiceValue", (("a", "b-c", "d_1"),)),
    ("--rate=INT 1-9", "--rate=", "IntValue", (1, 9)),
]

BAD_DECLARATIONS: list[tuple[Any, str]] = [
    ("", "'' cannot be read"),
    ("n", "'n' cannot be read"),
    ("-n ", "'-n ' cannot be read"),
    (" -n", "' -n' cannot be read"),
    ("-", "'-' is not a flag"),
    ("--", "'--' is not a flag"),
    ("---x", "'---x' is not a flag"),
    ("-" + "x" * 41, "is not a flag"),
    ("--rate=", "'--rate=' names no value type"),
    ("-c  INT", "'-c  INT' cannot be read"),
    ("-c int", "'-c int' cannot be read"),
    ("-c INT 1-2 3", "'-c INT 1-2 3' cannot be read"),
    ("-c PATH", "'-c PATH' has the unknown value type 'PATH'"),
    ("-c HOST", "unknown value type 'HOST'"),
    ("-c INT 9-1", "the bounds of '-c INT 9-1' are wrong: 9 is more than 1"),
    ("-c INT 5", "two bounds with '-' between them are needed"),
    ("-c INT a-b", "a whole number from 0 to 2147483647"),
    ("-c INT 0-99999999999", "a whole number"),
    ("-i FLOAT 1e3-5", "a number from 0 to 2147483647"),
    ("-W DURATION 1-5", "a time from 1ms to 86400s"),
    ("--mode WORD 1-5", "WORD has no bounds"),
    ("--type CHOICE", "CHOICE needs its words"),
    ("--type CHOICE a||b", "1 to 64 of the characters"),
    ("-n\n", "'-n\\n' is not a flag"),
    (42, "42 is not a flag"),
    (None, "None is not a flag"),
    (Flag("n"), "is not a flag"),
    (Flag("-n x"), "is not a flag"),
]


def check_table(pkg: Any) -> None:
    """Run every row of this file on one copy of the package; raise at the first that fails."""
    for text, name, kind, bounds in DECLARATIONS:
        built = pkg.table([text])
        assert list(built) == [name]
        flag = built[name]
        assert flag.name == name
        assert flag.joined == name.endswith("=")
        expected = getattr(pkg, kind)(*bounds) if kind else None
        assert flag.value == expected
        assert flag.usage.replace(" ", "").startswith(name)
    for declaration, message in BAD_DECLARATIONS:
        given = pkg.Flag(declaration.name) if isinstance(declaration, Flag) else declaration
        with pytest.raises(ConfigError) as caught:
            pkg.table(["-z", given])
        assert message in caught.value.message
        assert caught.value.message.startswith("allowed_flags: ")
        assert caught.value.hint
    with pytest.raises(ConfigError, match="-n is declared twice"):
        pkg.table(["-n", "-c INT", "-n"])
    intrusive = pkg.Flag("-A", intrusive=True)
    plain = pkg.table([intrusive, "-n"])
    allowed = pkg.table([intrusive, "-n"], allow_intrusive=True)
    assert [(flag.locked, flag.risk) for flag in plain.values()] == [(True, Risk.INTRUSIVE), (False, Risk.PASSIVE)]
    assert [(flag.locked, flag.risk) for flag in allowed.values()] == [(False, Risk.INTRUSIVE), (False, Risk.PASSIVE)]
    assert intrusive == pkg.Flag("-A", intrusive=True)


def test_good_declarations_give_flags_and_bad_ones_are_refused() -> None:
    check_table(flags)


@pytest.mark.parametrize(
    ("value", "label", "usage"),
    [
        (None, "", "-x"),
        (IntValue(1, 5), "INT 1-5", "-x INT 1-5"),
        (FloatValue(0.5, 2), "FLOAT 0.5-2", "-x FLOAT 0.5-2"),
        (DurationValue(500, 60_000), "DURATION 500ms-60s", "-x DURATION 500ms-60s"),
        (WordValue(), "WORD", "-x WORD"),
        (ChoiceValue(("a", "b")), "CHOICE a|b", "-x CHOICE a|b"),
    ],
)
def test_usage_is_the_notation_that_declares_the_flag(value: flags.Value | None, label: str, usage: str) -> None:
    flag = Flag("-x", value=value)
    assert flag.usage == usage
    if value is not None:
        assert value.label == label
    assert flags.table([usage])["-x"] == flag


def test_a_joined_flag_is_shown_and_written_as_one_word() -> None:
    flag = Flag("-T", value=IntValue(0, 4), joined=True)
    assert flag.usage == "-TINT 0-4"
    assert flags.Setting(flag, 3).words() == ["-T3"]


class FlaggedTool(MCPBaseTool):
    command_name = "true"
    allowed_flags = ("-n", Flag("-A", intrusive=True))


def test_a_tool_builds_its_table_for_its_policy_and_never_changes_the_base_list() -> None:
    base = tuple(FlaggedTool.allowed_flags)
    for allow, locked in [(False, True), (True, False), (False, True)]:
        tool = FlaggedTool(ToolPolicy(allow_intrusive=allow))
        assert list(tool.flags()) == ["-n", "-A"]
        assert tool.flags()["-A"].locked is locked
        assert tool.flags() is not tool.flags()
    assert tuple(FlaggedTool.allowed_flags) == base


def test_a_bad_declaration_is_found_when_the_tool_builds_its_table() -> None:
    class WrongTool(MCPBaseTool):
        command_name = "true"
        allowed_flags = ("-c NUMBER",)

    with pytest.raises(ConfigError, match="unknown value type 'NUMBER'"):
        WrongTool().flags()
