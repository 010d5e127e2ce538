"""Names in the documentation exist: command lines, variables, settings, codes, metrics, routes, messages."""

from __future__ import annotations

import ast
import errno
import os
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mcp_server.config.keys import keys, sections
from mcp_server.config.sources import CLIENT_VARIABLES, FILE_VARIABLE
from mcp_server.errors import ERRORS
from mcp_server.metrics.table import METRICS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(DOCS.rglob("*.md"))]
PROGRAM = re.compile(r"(?:^|[ /])(?<!-[un] )(?<! deploy/)mcp-network-tools (?!mcp-)(?=[a-z-])")
"""Matches the program, but not the user (after -u), the namespace (after -n) or the deployment of that name."""
GROUPS = ("audit", "config", "guard", "keys", "runs", "scope")
CHECKS = {"audit log"}
"""Checks of /health that look like a command."""
MISSPELLED = {"MCP_SECURITY_ALOWED_TARGETS"}
"""A misspelled variable that a message quotes."""
NAME = re.compile(r"[a-z]+(?:_[a-z0-9]+)+")
BRACKETS = re.compile(r"[()]")
VALUES = re.compile(r"token|nn?map|addresses|probe|scan|kernel|argument|mon|tue|wed|thu|fri|UTC|RFC1918")
"""Example values in messages on the troubleshooting page."""
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path) -> str:
    """Return the code blocks of a page, fenced and indented."""
    text = page.read_text()
    fenced = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*fenced, *re.findall(r"^    (?! )(.*)", rest, re.MULTILINE)])


def inline(page: Path) -> list[str]:
    """Return the inline code of a page."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL))


def command_lines(page: Path) -> Iterator[tuple[list[str], bool]]:
    """Yield the words after the program name of every command line, and whether the command line is complete."""
    joined = blocks(page).replace("\\\n", " ")
    for number, text in enumerate((joined, "\n".join(inline(page)))):
        for line in text.splitlines():
            for found in PROGRAM.finditer(line):
                # Some clients add their own options after the command of the server.
                theirs = line.startswith(("npx ", "claude "))
                yield words(line[found.end() :].split(" --")[0] if theirs else line[found.end() :]), number == 0
    for code in inline(page):  # a command is also named without the program
        first, _, rest = code.partition(" ")
        if first in GROUPS and code not in CHECKS and re.match(r"[a-z-]+(?: |$)", rest):
            yield words(code), False


def words(text: str) -> list[str]:
    """Return the words of a command, up to a comment, a pipe or the next command."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    found = []
    for word in lexer:
        if re.fullmatch(r"[|&;<>()]+", word):
            break
        found.append(word.rstrip(",.:…") or word)
    return [word for word in found if word not in {"...", "…"}]


def parse(line: list[str], *, whole: bool = True) -> None:
    """Parse the words with the real command line, without running the command; raise click's errors.

    If the command line is not ``whole``, for example in a sentence, only its commands and options must exist.
    """
    import typer.main

    from mcp_server.cli import app

    command: Any = typer.main.get_command(app)
    rest = list(line)
    while children := getattr(command, "commands", None):
        if not rest:
            return  # only a group, for example in a sentence
        name = rest.pop(0)
        if name.startswith("-"):
            assert name in {option for each in command.params for option in each.opts} | {"--help"}, name
            return
        assert name in children, f"There is no command {name!r}."
        command = children[name]
    if not whole:
        options = {option for each in command.params for option in each.opts} | {"--help"}
        assert {word.split("=")[0] for word in rest if word.startswith("--")} <= options, rest
        return
    command.make_context(" ".join(line), rest)


@by_page
def test_the_program_accepts_every_command_line(page: Path) -> None:
    for line, whole in command_lines(page):
        try:
            parse(line, whole=whole)
        except Exception as error:
            raise AssertionError(f"{page.name}: mcp-network-tools {shlex.join(line)}: {error}") from error


def test_a_wrong_command_line_is_found() -> None:
    for wrong in (
        ["serve", "--gard", "kernel"],
        ["runs", "lst"],
        ["audit", "show", "--limit", "many"],
        ["runs", "show"],
    ):
        with pytest.raises(Exception, match=r"gard|lst|valid integer|run_id"):
            parse(wrong)
    with pytest.raises(AssertionError, match="--gard"):
        parse(["serve", "--gard"], whole=False)


NOT_HERE = {"server.workers", "MCP_SERVER_WORKERS"}
"""Names of the specification that the page of differences lists because they do not exist here."""


@cache
def variables() -> set[str]:
    """Return every variable that the server or a script of the project reads."""
    known = {name for key in keys().values() for name in key.env} | {FILE_VARIABLE, *CLIENT_VARIABLES}
    return known | MISSPELLED


@by_page
def test_every_variable_exists(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"\bMCP_[A-Z0-9_]+[A-Z0-9]\b", text)) - set(re.findall(r"\$\{env:(\w+)\}", text))
    named -= NOT_HERE if page.name == "differences.md" else set()
    assert named <= variables(), f"{page.name}: {sorted(named - variables())}"


@by_page
def test_every_setting_exists(page: Path) -> None:
    known = {f"{key.section}.{key.name}" for key in keys().values() if key.section}
    found = {
        code
        for code in inline(page)
        if re.fullmatch(r"[a-z_]+\.[a-z_]+", code)
        and code.split(".")[0] in sections()
        and not page.name.startswith("00")
    }
    known |= NOT_HERE if page.name == "differences.md" else set()
    # A log event has the same form; its template is in the source.
    unknown = {name for name in found - known if name not in source() and not (ROOT / "src/mcp_server" / name).exists()}
    assert not unknown, f"{page.name}: {sorted(unknown)}"


@by_page
def test_every_metric_exists(page: Path) -> None:
    known = set(METRICS)
    for name in re.findall(r"\b(?:mcp|circuit_breaker)_[a-z_]+\b", "\n".join([*inline(page), blocks(page)])):
        if name.startswith(("mcp_server", "mcp_network_tools", "mcp_scope")) and name not in known:
            continue  # the package, attributes of spans, tables of the ruleset
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        others = any(each.startswith(f"{name}_") for each in known) or name in source()
        assert {name, base} & known or others, f"{page.name}: {name}"


@cache
def source() -> str:
    """Return all text of the project that may define a name: package, scripts, deployment, tests and benchmarks."""
    folders = ("src", "scripts", "deploy", "bench", "tests/support", "tests/containment", "tests/contract", "tests/lab")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = [path.read_text(errors="replace") for path in files if path.suffix not in {".gz", ".png", ".pyc"}]
    return "\n".join([*texts, (ROOT / "pyproject.toml").read_text(), (ROOT / "Makefile").read_text()])


@cache
def names() -> set[str]:
    """Return every name of lower-case words with underscores in that text, and the names of the test files.

    Rules of the guard and steps of a release are also added without their prefix.
    """
    found = set(NAME.findall(source()))
    rules = {name.removeprefix("drop_") for name in found if name.startswith("drop_")}
    found |= {name.removeprefix("step_") for name in found if name.startswith("step_")}
    return found | rules | {path.stem for path in (ROOT / "tests").rglob("*.py")}


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent.name != "decisions"], ids=lambda page: page.name
)
def test_every_name_in_backticks_exists(page: Path) -> None:
    """Decisions are left out, because they name rejected libraries and former names."""
    named = {code for code in inline(page) if NAME.fullmatch(code)}
    assert named <= names(), f"{page.name}: {sorted(named - names())}"


@cache
def routes() -> list[tuple[str, re.Pattern[str]]]:
    """Return every route of the REST interface, with a pattern for its path."""
    text = (DOCS / "rest.md").read_text()
    found = re.findall(r"^### ([A-Z]+) (/\S*)$", text, re.MULTILINE)
    found += [("GET", "/mcp"), ("POST", "/mcp"), ("DELETE", "/mcp"), ("GET", "/docs"), ("GET", "/openapi.json")]
    return [(method, re.compile(re.sub(r"\\{[a-z_]+\\}", "[^/]+", re.escape(path)))) for method, path in found]


@by_page
def test_every_route_exists(page: Path) -> None:
    for code in inline(page):
        if found := re.fullmatch(r"(GET|POST|DELETE|PUT) (/[^\s?]*)(?:\?\S*)?", code):
            method, path = found.groups()
            path = path.rstrip("/") or "/"
            assert any(method == each and way.fullmatch(path) for each, way in routes()), f"{page.name}: {code}"


@cache
def written() -> str:
    """Return the fixed text of all strings of the package, and the error messages of the system."""
    found = {os.strerror(number) for number in errno.errorcode}
    for path in (ROOT / "src").rglob("*.py"):
        tree = ast.parse(path.read_text())
        found |= {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
    return "\n".join(f" {' '.join(BRACKETS.sub('', text).split())} " for text in found)


def is_value(word: str) -> bool:
    """Return whether a word of a message is a value: a number, path, quoted text, flag, host name or example."""
    plain = word.strip("(),.:;")
    return bool(re.search(r"[0-9/'…]|^-|^\.|\.lab\.internal$", plain) or VALUES.fullmatch(plain))


def unwritten(message: str) -> str:
    """Return the rest of a message from the first words that are in no string of the program; empty if all are.

    Adjacent words must be adjacent in one string. A single word between values must begin or end a string.
    """
    words = BRACKETS.sub("", re.sub(r"^[a-z_.]+: ", "", message)).split()  # the message begins with the key or section
    reached = {0}
    for start in range(len(words)):
        if start not in reached:
            continue
        if is_value(words[start]):
            reached.add(start + 1)
        if f"\n {words[start]} " in written() or f" {words[start]} \n" in written():
            reached.add(start + 1)
        for end in range(start + 2, len(words) + 1):
            if f" {' '.join(words[start:end])} " not in written():
                break
            reached.add(end)
    return " ".join(words[max(reached) :])


def messages() -> list[tuple[str, str]]:
    """Return each message that the troubleshooting page quotes: its code and its words."""
    quoted = [re.fullmatch(r"([a-z_]+): (.+)", code) for code in inline(DOCS / "troubleshooting.md")]
    return [(found[1], found[2]) for found in quoted if found and found[1] in ERRORS]


def test_every_code_on_the_troubleshooting_page_exists() -> None:
    first = re.findall(r"^\| `([a-z]+_[a-z_]+)\b", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(first) > 30
    assert set(first) <= set(ERRORS)


@pytest.mark.parametrize("message", [message for _, message in messages()], ids=lambda message: message[:40])
def test_every_quoted_message_is_in_the_program(message: str) -> None:
    rest = unwritten(message) and unwritten(message.removesuffix("."))  # the full stop may be added to a part
    assert not rest, f"the program has no message with: {rest}"


def test_a_message_with_a_wrong_word_is_found() -> None:
    for _, message in messages():
        longest = max((word for word in message.split() if word.isalpha() and not is_value(word)), key=len)
        changed = message.replace(longest, "wibble")
        assert unwritten(changed), changed
