"""One class per thing: no two classes of the sources have the same name."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]

ALLOWED: Final[dict[str, str]] = {}
"""Names that several classes may have, each with the reason."""


def test_no_two_classes_have_the_same_name() -> None:
    found_in: dict[str, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found_in[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    repeated = [f"{name}: {', '.join(found)}" for name, found in sorted(found_in.items()) if len(found) > 1]
    unexpected = [each for each in repeated if each.partition(":")[0] not in ALLOWED]
    assert not unexpected, "several classes have the same name:\n" + "\n".join(unexpected)


def test_every_allowed_name_is_repeated() -> None:
    names = [
        node.name
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    unused = [name for name in ALLOWED if names.count(name) < 2]
    assert not unused, f"these names are not repeated, so remove them from ALLOWED: {unused}"
