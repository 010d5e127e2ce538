"""One word per thing: retired words do not come back, neither in names nor in text.

`NAMES` holds words that no identifier, file name, JSON field, column or label may contain; `PROSE` holds words that
have no everyday meaning in this project, and that no comment, docstring, message or page may contain. Each has the word
to use. `ALLOWED` lists the names of other projects that happen to contain one.
"""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.processes import binary

ROOT: Final = Path(__file__).resolve().parents[2]

NAMES: Final = {
    "anew": "again",
    "authorise": "authorize",
    "authorised": "authorized",
    "authoriser": "authorizer",
    "beat": "progress",
    "beats": "progress",
    "door": "interface",
    "doors": "interfaces",
    "doubt": "invalidate",
    "doubted": "invalidated",
    "era": "protocol revision",
    "eras": "protocol revisions",
    "figures": "metrics",
    "flood": "log rate limit",
    "floods": "log rate limits",
    "fold": "projection",
    "folded": "projected",
    "gate": "authenticator or admission controller",
    "gatekeeper": "authenticator",
    "guardian": "guard helper",
    "guardians": "guard helpers",
    "hear": "observe",
    "heard": "observed",
    "invocation": "command",
    "neutralise": "sanitize",
    "neutralised": "sanitized",
    "news": "change",
    "pins": "allowed checksums",
    "place": "slot, position or executor",
    "places": "slots, positions or executors",
    "printable": "escape",
    "remember": "record",
    "road": "pipeline",
    "room": "package, space or slot",
    "rooms": "packages",
    "spread": "histogram or range",
    "stranger": "unknown caller",
    "strangers": "failed authentications",
    "tally": "counter",
    "tell": "notify",
    "told": "notified",
    "toolbox": "registry",
    "undertaker": "reaper",
    "upkeep": "background tasks",
    "whoever": "the caller",
}
PROSE: Final = re.compile(
    r"\b(doors?|roads?|rooms?|gatekeepers?|undertakers?|strangers?|upkeep|toolbox(es)?|anew|whoever)\b", re.IGNORECASE
)
ALLOWED: Final = frozenset({"isprintable", "PRINTABLE", "fold", "serve_dual_era_loop"})
"""Whole names that are not ours."""
FILES: Final = tuple(
    path
    for name in subprocess.run(
        [binary("git"), "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    if (path := ROOT / name).is_file() and not name.startswith("tests/data/") and not name.endswith(".lock")
    if path != Path(__file__).resolve() and path.suffix != ".png"
)
PYTHON: Final = tuple(path for path in FILES if path.suffix == ".py")


def words_of(name: str) -> set[str]:
    """Return the words of an identifier or file name in lower case: ``HostGuard`` and ``host-guard`` have the same."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def tokens(path: Path) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(path.read_text()).readline)


def names_in(path: Path) -> Iterator[tuple[int, str]]:
    """Yield identifiers of a module, and its strings of a single word, which are fields, columns and labels."""
    before: tuple[str, str] = ("", "")
    for token in tokens(path):
        if token.type == tokenize.NAME and before not in {("tell", "."), ("datetime", ".")}:
            yield token.start[0], token.string
        elif token.type == tokenize.STRING and (match := re.fullmatch(r"[\"']([a-z][a-z_.-]*)[\"']", token.string)):
            yield token.start[0], match[1]
        before = (before[1], token.string)


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_has_a_retired_word(path: Path) -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line}: {name} ({word}: say {NAMES[word]})"
        for line, name in names_in(path)
        if name not in ALLOWED
        for word in words_of(name) & NAMES.keys()
    }
    assert not found, "retired words in names:\n" + "\n".join(sorted(found))


def test_no_file_name_has_a_retired_word() -> None:
    found = [str(path.relative_to(ROOT)) for path in FILES if words_of(str(path.relative_to(ROOT))) & NAMES.keys()]
    assert not found, f"retired words in file names: {found}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_has_a_retired_word(path: Path) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        for match in PROSE.finditer(line)
    ]
    assert not found, "retired words in text:\n" + "\n".join(found)
