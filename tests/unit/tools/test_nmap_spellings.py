"""Every spelling of a flag that nmap accepts and the table does not list is refused."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from mcp_server.base_tool import ToolPolicy
from mcp_server.errors import ArgumentError
from mcp_server.tools.flags import read
from mcp_server.tools.nmap.flags import FLAGS
from mcp_server.tools.nmap_tool import NmapTool
from tests.support.processes import binary
from tests.unit.tools.test_nmap_tool import build_command_of

TABLE = NmapTool(ToolPolicy(allow_intrusive=True, raw_sockets=True)).flags()
JOINED = tuple(flag.name for flag in FLAGS if flag.joined)
OURS_ONLY = {"--noninteractive", "--no-stylesheet", "--stats-every", "--privileged", "--unprivileged", "--datadir"}


def long_options() -> set[str]:
    """The long options in nmap's own program: every word that looks like one, and more words."""
    words = re.findall(rb"\0([a-zA-Z][a-zA-Z0-9_-]{1,30})(?=\0)", Path(binary("nmap")).resolve().read_bytes())
    return {word.decode() for word in words}


def spellings(name: str) -> set[str]:
    """Spellings that getopt_long_only accepts for a flag, and similar ones."""
    bare = name.lstrip("-")
    forms = {f"{dashes}{bare[:length]}" for dashes in ("-", "--") for length in range(1, len(bare) + 1)}
    forms |= {f"{form}=1" for form in forms} | {f"{form}1" for form in forms}
    forms |= {name.upper(), name.capitalize(), name.replace("-", "_"), f"{name}=", f"-{name}", f"{name},", f"={name}"}
    return forms


def refused(word: str) -> bool:
    try:
        read(f"{word} 1", TABLE, max_length=2048)
    except ArgumentError as error:
        # -T takes its value in the same word, so that -TCP is a wrong value of it.
        return error.code == "argument_not_allowed" or word.startswith("-T")
    return False


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_only_the_exact_spelling_is_a_flag(flag: object) -> None:
    name: str = flag.name  # type: ignore[attr-defined]  # a Flag
    for word in spellings(name) - set(TABLE):
        if word.startswith(JOINED) and re.fullmatch(r"-T[0-9]", word):
            continue
        if word.startswith(JOINED):
            with pytest.raises(ArgumentError):
                read(word, TABLE, max_length=2048)
            continue
        assert refused(word), word


def test_a_long_option_of_the_program_is_refused_unless_it_is_in_the_table() -> None:
    options = long_options()
    known = {"excludefile", "script-args-file", "datadir", "proxies", "dns-servers", "spoof-mac", "max-rate"}
    assert known <= options, "the list that is read from the program is not that of its options"
    taken = {f"--{option}" for option in options if not refused(f"--{option}")}
    assert taken <= set(TABLE)
    assert {f"-{option}" for option in options if len(option) > 2 and not refused(f"-{option}")} <= set(TABLE)


@pytest.mark.parametrize("word", ["--max-rate=5", "-max-rate=5", "--max-rat 5", "-max-rat 5", "--max-rate=5 127.0.0.2"])
def test_nmap_accepts_these_spellings(word: str) -> None:
    """Run a list scan, which sends nothing. If nmap refused these spellings, this file would test nothing."""
    done = subprocess.run(
        [binary("nmap"), "-n", "-sL", *word.split(), "127.0.0.1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "127.0.0.1" in done.stdout
    with pytest.raises(ArgumentError) as caught:
        build_command_of(ToolPolicy(), ("127.0.0.1",), {"extra_args": word})
    assert caught.value.code == "argument_not_allowed"


@pytest.mark.parametrize("parameter", ["ports", "scripts", "extra_args"])
@pytest.mark.parametrize("char", list(";&|`$><\\\"'\n\r\t\0\x1b\x7f\x85\u00a0\u202e\uff11\U000e0041"))
def test_every_text_parameter_names_the_forbidden_character(parameter: str, char: str) -> None:
    text = f"80{char}"
    with pytest.raises(ArgumentError, match="forbidden metacharacters") as caught:
        build_command_of(ToolPolicy(), ("127.0.0.1",), {parameter: [text] if parameter == "scripts" else text})
    assert caught.value.code == "forbidden_characters"
    assert f"U+{ord(char):04X}" in caught.value.message


@pytest.mark.parametrize("parameter", ["ports", "scripts"])
@pytest.mark.parametrize("leader", list("-@+"))
def test_no_text_may_begin_like_an_option_a_file_or_a_switch(parameter: str, leader: str) -> None:
    text = f"{leader}80"
    with pytest.raises(ArgumentError, match=re.escape(f"{parameter} begins with '{leader}'")) as caught:
        build_command_of(ToolPolicy(), ("127.0.0.1",), {parameter: [text] if parameter == "scripts" else text})
    assert caught.value.code == "forbidden_characters"
