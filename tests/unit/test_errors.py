"""The error classes, their table, and the sentences of messages and hints in the sources."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from mcp_server import errors
from mcp_server.errors import ERRORS, ExitCode, NetworkToolsError, RefusedError

ROOT: Final = Path(__file__).resolve().parents[2]
SOURCES: Final = sorted((ROOT / "src/mcp_server").rglob("*.py"))
CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, NetworkToolsError)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_has_a_code_of_the_table_and_is_in_the_tree_of_the_docstring(kind: type[NetworkToolsError]) -> None:
    assert kind.default_code in ERRORS
    assert re.search(rf"\b{kind.__name__}\b", inspect.getdoc(errors) or "")


@pytest.mark.parametrize("code", ERRORS)
def test_every_code_is_used(code: str) -> None:
    sources = [path.read_text() for path in SOURCES if path.name != "errors.py"]
    defaults = {kind.default_code for kind in CLASSES}
    assert code in defaults or any(f'"{code}"' in text for text in sources), f"nothing raises {code}"


@pytest.mark.parametrize("code", ERRORS)
def test_each_row_has_an_error_status_a_failing_exit_code_and_a_hint_that_is_a_sentence(code: str) -> None:
    spec = ERRORS[code]
    assert 400 <= spec.http <= 599
    assert spec.exit != ExitCode.OK
    assert spec.hint[:1].isupper() or spec.hint.startswith("'"), f"the hint of {code} begins with a small letter"
    assert spec.hint.endswith("."), f"the hint of {code} has no full stop: {spec.hint}"


def test_a_problem_body_has_code_message_hint_and_retryable() -> None:
    error = RefusedError("The queue is full.", code="too_many_requests", waiting=3)
    assert error.as_dict() == {
        "code": "too_many_requests",
        "message": "The queue is full.",
        "hint": ERRORS["too_many_requests"].hint,
        "retryable": True,
        "details": {"waiting": 3},
    }


def test_the_page_has_a_row_for_every_code_with_its_numbers() -> None:
    rows = dict(
        re.findall(
            r"^\| `(\w+)` \| (\d+ \| \d+ \| [a-z_]+ \| (?:yes|no)) \|",
            (ROOT / "docs/errors.md").read_text(),
            re.MULTILINE,
        )
    )
    expected = {
        code: f"{spec.http} | {spec.exit} | {spec.type.value} | {'yes' if spec.retryable else 'no'}"
        for code, spec in ERRORS.items()
    }
    assert rows == expected


def error_classes() -> set[str]:
    """The names of all classes in the sources that inherit from NetworkToolsError, and LineError."""
    known = {kind.__name__ for kind in CLASSES} | {"LineError"}
    found: set[str] = set()
    while found != known:
        found = set(known)
        for path in SOURCES:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef) and any(ast.unparse(base) in known for base in node.bases):
                    known.add(node.name)
    return known


def endings(text: ast.expr | None) -> Iterator[str]:
    """The ends of the texts that an expression can be; nothing for an end that is only known at run time."""
    if isinstance(text, ast.Constant) and isinstance(text.value, str):
        yield text.value
    elif isinstance(text, ast.JoinedStr) and text.values:
        yield from endings(text.values[-1])
    elif isinstance(text, ast.BinOp):
        yield from endings(text.right)
    elif isinstance(text, ast.IfExp):
        yield from endings(text.body)
        yield from endings(text.orelse)
    elif isinstance(text, ast.BoolOp):
        for value in text.values:
            yield from endings(value)


def texts(node: ast.Call, classes: set[str]) -> Iterator[ast.expr]:
    """The message and the hint that a call passes to an error class or to `schema.refuse`."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in classes or name == "refuse":
        yield from node.args[1:] if name in {"refuse", "LineError"} else node.args[:1]
        yield from (keyword.value for keyword in node.keywords if keyword.arg == "hint")


def test_messages_and_hints_end_with_a_full_stop() -> None:
    classes = error_classes()
    wrong = [
        f"{path.relative_to(ROOT)}:{text.lineno}: {ending[-60:]!r}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        for text in texts(node, classes)
        for ending in endings(text)
        if not ending.rstrip("\n").endswith((".", "…"))
    ]
    assert not wrong, "messages or hints without a full stop:\n" + "\n".join(wrong)
