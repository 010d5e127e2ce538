"""The error tree and its table agree with each other and with the page that documents them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from mcp_server import errors
from mcp_server.errors import ERRORS, ExitCode, NetworkToolsError, RefusedError

ROOT = Path(__file__).resolve().parents[2]
CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, NetworkToolsError)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_has_a_code_of_the_table_and_stands_in_the_printed_tree(kind: type[NetworkToolsError]) -> None:
    assert kind.default_code in ERRORS
    assert re.search(rf"\b{kind.__name__}\b", inspect.getdoc(errors) or "")


@pytest.mark.parametrize("code", ERRORS)
def test_every_code_is_used_somewhere(code: str) -> None:
    sources = [path.read_text() for path in (ROOT / "src").rglob("*.py") if path.name != "errors.py"]
    defaults = {kind.default_code for kind in CLASSES}
    assert code in defaults or any(f'"{code}"' in text for text in sources), f"nothing raises {code}"


@pytest.mark.parametrize("code", ERRORS)
def test_statuses_and_exit_codes_are_consistent(code: str) -> None:
    spec = ERRORS[code]
    assert 400 <= spec.http <= 599
    assert spec.exit != ExitCode.OK
    assert spec.hint.endswith(".")


def test_a_problem_body_carries_code_message_hint_and_retryable() -> None:
    error = RefusedError("no", code="too_many_requests", waiting=3)
    assert error.as_dict() == {
        "code": "too_many_requests",
        "message": "no",
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
