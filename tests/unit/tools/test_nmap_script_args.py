"""Script arguments: nmap reads exactly the values of the caller, and no value can add an argument."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.base_tool import ToolPolicy
from mcp_server.errors import ArgumentError
from mcp_server.tools.nmap.script_args import ARGS, Agent, Path, ScriptArg, emit_script_args, parse_script_args, unread
from mcp_server.tools.nmap.scripts import INTRUSIVE_NAMES, SAFE_NAMES
from tests.support.processes import binary
from tests.unit.tools.test_nmap_tool import ALL, PLAIN, build_command_of

SPACE = "[ \t]*"
STRING = re.compile(
    SPACE + r"""(?:"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^'\\]|\\.)*)'|(?P<bare>[^\n,{}=]*?))""" + SPACE,
    re.DOTALL,
)


def nmap_reads(text: str) -> list[tuple[str, ...]]:
    """Read ``--script-args`` as nse_main.lua's grammar does, without tables: fields of one or two strings."""
    fields, position = [], 0
    while True:
        field = []
        for _ in range(2):
            match = STRING.match(text, position)
            # A bare word goes on to the next character that ends it, as lpeg's does.
            end = match.end() if match else position
            while match and match["bare"] is not None and end < len(text) and text[end] not in "\n,{}=":
                end += 1
            quoted = match and (match["double"] if match["double"] is not None else match["single"])
            field.append(re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else text[position:end].strip())
            position = end
            if text[position : position + 1] != "=":
                break
            position += 1
        fields.append(tuple(field))
        if position == len(text):
            return fields
        assert text[position] in "\n,", f"not a list of fields at {position}: {text!r}"
        position += 1


WILD = st.one_of(
    st.text(alphabet="/ab.?=,: _{}'\"\\-@+;&%\n\u202e9", max_size=12),
    st.integers(-5, 3_000_000),
    st.booleans(),
    st.sampled_from(["a=b,c={d}", '/x",http.useragent="y', "/x\\", "1e3", "/{a}", "/a,b={c}"]),
)
RIGHT = {
    "PATH": st.text(alphabet="/ab.?=,:_*+~-9", max_size=12).map("/".__add__),
    "TEXT": st.text(alphabet="ab .,:=()/_+-9", min_size=2, max_size=20),
    "BOOL": st.booleans(),
}


def values_of(argument: ScriptArg) -> st.SearchStrategy[Any]:
    """Return a strategy: four of five values have the type of the argument, the others have any type."""
    label = argument.value.label
    if label.startswith("INT"):
        right: st.SearchStrategy[Any] = st.integers(*map(int, label.removeprefix("INT ").split("-")))
    else:
        right = RIGHT[label] if label in RIGHT else st.sampled_from(label.split("|"))
    return st.integers(0, 4).flatmap(lambda number: right if number else WILD)


GIVEN = st.lists(st.sampled_from(ARGS), max_size=3, unique=True).flatmap(
    lambda chosen: st.fixed_dictionaries({argument.name: values_of(argument) for argument in chosen})
)


def test_no_value_of_a_caller_ends_its_quoted_text() -> None:
    seen = {"read": 0, "refused": 0}

    @given(GIVEN)
    def holds(given_values: dict[str, Any]) -> None:
        try:
            arguments = parse_script_args(given_values)
        except (ValueError, ArgumentError):
            seen["refused"] += 1
            return
        if not arguments:
            return
        seen["read"] += 1
        text = emit_script_args(arguments)
        assert nmap_reads(text) == list(arguments)
        assert text.isascii()
        assert text.isprintable()
        assert not set("\\;&|`$<>'\n{}").intersection(text)
        expected = {name: str(value) for name, value in given_values.items() if value is not False}
        assert {name: value.removesuffix("s") if name == "banner.timeout" else value for name, value in arguments} == {
            name: "true" if value == "True" else value for name, value in expected.items()
        }

    holds()
    total = sum(seen.values())
    assert seen["read"] >= 0.2 * total, seen
    assert seen["refused"] >= 0.2 * total, seen


def test_the_grammar_of_this_test_is_that_of_nmap() -> None:
    """Compare with the output of nmap -d2, for the text of the tool and for text that ends the quotes."""
    every = {
        "banner.timeout": 10, "ftp-anon.maxlist": 0, "http-title.url": "/a,b=c?d=e:f", "http-git.root": "/",
        "http-headers.useget": True, "http.useragent": "A b/1.0 (c=d, e: f)", "ssh_hostkey": "sha256",
        "vulns.short": True, "vulns.showall": False,
    }  # fmt: skip
    ours = emit_script_args(parse_script_args(every))
    for text in (ours, 'a="b\\"c",d=\'e,f\'', "a=b , c = d e ,f"):
        fields = nmap_reads(text)
        done = subprocess.run(
            [binary("unshare"), "--net", "--map-root-user", binary("nmap"), "-n", "-sL", "-d2", "--script", "banner",
             "--script-args", text, "127.0.0.1"],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        table = done.stdout.partition("NSE: {\n")[2].partition("\n}")[0]
        named = dict(re.findall(r'\["([^"]+)"\] = "(.*)",$', table, re.MULTILINE))
        listed = dict(re.findall(r"^\s*([A-Za-z_]\w*) = \"(.*)\",$", table, re.MULTILINE))
        assert {field[0]: field[1] for field in fields if len(field) == 2} == {
            name: value.replace('\\"', '"') for name, value in {**named, **listed}.items()
        }, done.stdout[:2000]


@pytest.mark.parametrize("name", [
    "", "unknown", "http-title", "http-title.URL", "http.host", "http-methods.test-all", "ssh-hostkey.known-hosts",
    "smbpassword", "newtargets", "http.useragent=x,newtargets", "@args.txt", "tls.servername", "\u202e",
])  # fmt: skip
def test_an_argument_that_is_not_in_the_table_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a script argument"):
        parse_script_args({name: "x"})


@pytest.mark.parametrize(("name", "value", "said"), [
    ("http-title.url", "login", "a path"),
    ("http-title.url", "//10.0.0.1/x", "a path"),
    ("http-title.url", "http://10.0.0.1/", "a path"),
    ("http-title.url", "/../../etc/passwd", "a path"),
    ("http-title.url", "/a/..", "a path"),
    ("http-title.url", "/%2e%2e/", "a path"),
    ("http-title.url", "/" + "a" * 255, "a path"),
    ("http-title.url", 7, "a path"),
    ("http-title.url", True, "a path"),
    ("banner.timeout", 0, "from 1 to 60"),
    ("banner.timeout", 61, "from 1 to 60"),
    ("banner.timeout", True, "from 1 to 60"),
    ("banner.timeout", "10", "from 1 to 60"),
    ("ssh_hostkey", "sha512", "one of full"),
    ("ssh_hostkey", "SHA256", "one of full"),
    ("vulns.short", "true", "true or false"),
    ("vulns.short", 1, "true or false"),
    ("http.useragent", "-x", "letters"),
    ("http.useragent", "", "letters"),
    ("http.useragent", "x" * 101, "letters"),
])  # fmt: skip
def test_a_value_of_another_type_or_out_of_bounds_is_refused(name: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        parse_script_args({name: value})
    assert name in str(caught.value)


@pytest.mark.parametrize("char", list(";&|`$><\\\"'\n\0\x1b\u202e\uff10"))
def test_a_forbidden_character_is_named(char: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse_script_args({"http-title.url": f"/a{char}b"})
    assert caught.value.code == "forbidden_characters"
    assert caught.value.details["character"] == f"U+{ord(char):04X}"


def test_every_argument_is_read_by_a_listed_script() -> None:
    for argument in ARGS:
        assert argument.scripts
        assert set(argument.scripts) <= SAFE_NAMES | INTRUSIVE_NAMES
        assert unread(((argument.name, "x"),), argument.scripts[:1]) is None
        assert unread(((argument.name, "x"),), ("imap-capabilities",)) == argument.name
        assert argument.value.label


def test_a_call_accepts_arguments_and_refuses_one_that_no_script_reads() -> None:
    parameters = {"scripts": ["http-title"], "script_args": {"http-title.url": "/x", "http.useragent": "me"}}
    args = build_command_of(PLAIN, ("127.0.0.1",), parameters).args
    assert args[args.index("--script-args") + 1] == 'http-title.url="/x",http.useragent="me"'
    for changed, why in (
        ({"scripts": ["banner"]}, "No script of this call reads"),
        ({"scripts": None, "mode": "ports"}, "No script of this call reads"),
        ({"scripts": None, "mode": "discover"}, "contradict"),
        ({"script_args": {"http-title.url": "x"}}, "script_args: http-title.url does not take 'x'"),
        ({"script_args": {"script-args-file": "/etc/passwd"}}, "is not a script argument"),
    ):
        with pytest.raises(ArgumentError, match=re.escape(why)):
            build_command_of(
                PLAIN, ("127.0.0.1",), {key: value for key, value in {**parameters, **changed}.items() if value}
            )
    silent = build_command_of(ALL, ("127.0.0.1",), {"scripts": ["ssl-poodle"], "script_args": {"vulns.short": False}})
    assert "--script-args" not in silent.args


def test_a_call_cannot_name_a_file_of_arguments() -> None:
    for text in ("--script-args-file x", "--script-args x=y", "--script-args-fil x", "-script-args x"):
        with pytest.raises(ArgumentError) as caught:
            build_command_of(ToolPolicy(), ("127.0.0.1",), {"extra_args": text})
        assert caught.value.code == "argument_not_allowed"


def test_types_refuse_values_that_would_need_quoting() -> None:
    for value in ('a"', "a\\", "a\n"):
        with pytest.raises(ValueError, match=r"letters|path"):
            Path().emit(f"/{value}")
        with pytest.raises(ValueError, match=r"letters|path"):
            Agent().emit(f"x{value}x")
