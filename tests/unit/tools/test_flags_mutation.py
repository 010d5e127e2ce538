"""Every small fault in the argument reader makes a row of its tables fail.

A mutant is a copy of the package ``mcp_server.tools.flags`` with one change in one syntax node: a condition negated, a
``raise`` dropped, a comparison or an operator exchanged, a number moved by one, an operand removed. The copies are
compiled from the syntax tree and run in this process; nothing is written to disk. `EQUIVALENT` lists the mutants for
which no row can fail, each with the reason.
"""

from __future__ import annotations

import ast
import functools
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import pytest

from mcp_server.tools import flags
from tests.unit.tools.test_flags_reader import check_all
from tests.unit.tools.test_flags_table import check_table

PACKAGE = "mcp_server_flags_mutant"
MODULES = ("values", "table", "reader")
SECONDS_PER_MUTANT = 0.5

EQUIVALENT = {
    "reader.module._suggestion: '1' number moved by 1": "more similar names are requested, and only the first is shown",
}

_SWAPPED: dict[type[ast.AST], Any] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}

Change = Callable[[ast.AST], ast.AST]


@dataclass(frozen=True)
class Mutant:
    """One fault: the module, the number of the node in the order of `ast.walk`, the change, and its name."""

    module: str
    node: int
    change: Change
    name: str


def _changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    """Yield every small fault of one node: its name, and a function that changes a copy of the node."""
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        yield "condition negated", _negate
    if isinstance(node, ast.Raise):
        yield "raise dropped", lambda _: ast.Pass()
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "call dropped", lambda _: ast.Pass()
    if isinstance(node, ast.BoolOp):
        for index in range(len(node.values)):
            yield f"operand {index} dropped", _drop_operand(index)
    yield from _changes_of_values(node)


def _changes_of_values(node: ast.AST) -> Iterator[tuple[str, Change]]:
    if isinstance(node, ast.Compare):
        for index in range(len(node.ops)):
            yield f"comparison {index} exchanged", _swap_comparison(index)
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _SWAPPED:
        yield "operator exchanged", _swap_operator
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "truth exchanged", lambda _: ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        for step in (1, -1):
            yield f"number moved by {step}", _shift(step)


def _negate(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.If | ast.While | ast.IfExp)
    node.test = ast.UnaryOp(ast.Not(), node.test)
    return node


def _swap_operator(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.BinOp | ast.AugAssign)
    node.op = _SWAPPED[type(node.op)]()
    return node


def _swap_comparison(index: int) -> Change:
    def change(node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.Compare)
        node.ops[index] = _SWAPPED[type(node.ops[index])]()
        return node

    return change


def _drop_operand(index: int) -> Change:
    def change(node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.BoolOp)
        rest = node.values[:index] + node.values[index + 1 :]
        return rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)

    return change


def _shift(step: int) -> Change:
    def change(node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.Constant)
        assert isinstance(node.value, int)
        return ast.Constant(node.value + step)

    return change


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else self.generic_visit(node)


def _mutants() -> Iterator[Mutant]:
    for module in MODULES:
        tree = _tree(module)
        decorations = {
            part
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            for decorator in node.decorator_list
            for part in ast.walk(decorator)
        }
        seen: dict[str, int] = {}
        for number, node in enumerate(ast.walk(tree)):
            for what, change in _changes(node) if node not in decorations else ():
                owner = _owner(tree, node)
                name = f"{module}.{owner}: {ast.unparse(node)[:70].splitlines()[0]!r} {what}"
                seen[name] = seen.get(name, 0) + 1
                yield Mutant(module, number, change, name if seen[name] == 1 else f"{name} ({seen[name]})")


def _owner(tree: ast.Module, node: ast.AST) -> str:
    """The innermost function or class that holds the node, or the statement's own line for module level."""
    owner = "module"
    for each in ast.walk(tree):
        if isinstance(each, ast.FunctionDef | ast.ClassDef) and any(part is node for part in ast.walk(each)):
            owner = each.name if isinstance(each, ast.ClassDef) else f"{owner}.{each.name}"
    return owner


def _tree(name: str) -> ast.Module:
    """Read a module of the package, with its imports of the others changed to the copies."""
    tree = ast.parse((Path(flags.__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mcp_server.tools.flags"):
            node.module = node.module.replace("mcp_server.tools.flags", PACKAGE)
    return tree


@functools.cache
def _unchanged(name: str) -> CodeType:
    return compile(_tree(name), f"<{name}>", "exec")


def _faulty(mutant: Mutant) -> CodeType:
    tree = _tree(mutant.module)
    node = list(ast.walk(tree))[mutant.node]
    _Replace(node, mutant.change(node)).visit(tree)
    return compile(ast.fix_missing_locations(tree), f"<{mutant.module}>", "exec")


def _build(mutant: Mutant | None = None) -> ModuleType:
    """Run a copy of the package under another name, with the mutant's fault in it."""
    package = ModuleType(PACKAGE)
    sys.modules[PACKAGE] = package
    for name in MODULES:
        module = ModuleType(f"{PACKAGE}.{name}")
        sys.modules[module.__name__] = module
        code = _faulty(mutant) if mutant and mutant.module == name else _unchanged(name)
        exec(code, module.__dict__)  # noqa: S102 - our own source
        for public in flags.__all__:
            if public in module.__dict__:
                setattr(package, public, module.__dict__[public])
    return package


@contextmanager
def _processor_time(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in a loop that a mutant made endless; SIGALRM belongs to pytest-timeout."""

    def expire(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, expire)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _survives(mutant: Mutant | None) -> bool:
    try:
        with _processor_time(SECONDS_PER_MUTANT):
            package = _build(mutant)
            check_all(package)
            check_table(package)
    except (Exception, pytest.fail.Exception):  # noqa: BLE001 - any exception means that the fault was noticed
        return False
    return True


@pytest.fixture
def forget_the_copies() -> Iterator[None]:
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


@pytest.mark.usefixtures("forget_the_copies")
def test_an_unchanged_copy_passes_every_row() -> None:
    assert _survives(None)


@pytest.mark.no_cover
@pytest.mark.usefixtures("forget_the_copies")
def test_every_fault_is_noticed_unless_it_is_known_to_be_equivalent() -> None:
    mutants = list(_mutants())
    assert len(mutants) > 150
    survivors = {mutant.name for mutant in mutants if _survives(mutant)}
    assert survivors == set(EQUIVALENT)
