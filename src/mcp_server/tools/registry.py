"""How tools are found: built-in modules, the packages the owner names, and entry points of installed packages.

A module's own subclasses of `MCPBaseTool` are its tools. A class is left out, with a logged reason, when its
name marks it as scaffolding, when it has no command, or when the owner's patterns exclude it. A module that
cannot be imported costs its own tools only.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Final

from mcp_server.errors import ConflictError, NotFoundError
from mcp_server.logger import get_logger
from mcp_server.model.untrusted import sanitize
from mcp_server.tools.base import MCPBaseTool, ToolPolicy

logger = get_logger(__name__)

BUILT_IN = "mcp_server.tools"
ENTRY_POINT_GROUP = "mcp_server.tools"

_SCAFFOLD_PREFIX = re.compile(r"^(_|(Test|Mock|Abstract|Example)(?=[A-Z0-9]|$)(?!Free))")
"""Whole words only: ``Testament`` is a name, and an ``ExampleFree`` tool says that it is not an example."""
_SCAFFOLD_SUFFIX = re.compile(r"(?:^|(?<=[a-z0-9]))(Base|Mixin|Interface)$")
"""Whole words only: ``Database`` does not end in ``Base``."""


RESERVED: Final = frozenset({"scope"})
"""Names of tools that start no process and belong to the interfaces."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A class or module that gave no tool, and why; ``broken`` where its author will have meant it to."""

    name: str
    reason: str
    broken: bool = False


@dataclass(frozen=True, slots=True)
class ToolRegistry:
    """The tools of one configuration, by name in alphabetical order, and what was left out.

    ``offered`` are those the owner's patterns offer. ``disabled`` are names an operator took away while the server
    runs: taking one of them back gives no more than was offered.
    """

    offered: dict[str, MCPBaseTool]
    left_out: tuple[LeftOut, ...] = ()
    disabled: frozenset[str] = frozenset()

    @property
    def tools(self) -> dict[str, MCPBaseTool]:
        """The tools that may be called now."""
        return {name: tool for name, tool in self.offered.items() if name not in self.disabled}

    def get(self, name: str) -> MCPBaseTool:
        """Return a tool that may be called, by its name or its class name.

        Raises NotFoundError ``unknown_tool``, ConflictError ``tool_disabled``.
        """
        tool = self.find(name)
        if (own := tool.tool_name()) in self.disabled:
            raise ConflictError(f"{own} is switched off on this server", code="tool_disabled", tool=own)
        return tool

    def find(self, name: str) -> MCPBaseTool:
        """Return a tool by its name or its class name, also one that is disabled; raises NotFoundError."""
        if name in self.offered:
            return self.offered[name]
        for tool in self.offered.values():
            if type(tool).__name__ == name:
                return tool
        raise NotFoundError(
            f"there is no tool {sanitize(name, 64)!r}",
            code="unknown_tool",
            hint=f"Tools: {', '.join(self.tools) or 'none'}.",
        )

    def seen_by(self, patterns: tuple[str, ...]) -> ToolRegistry:
        """The tools whose names these shell patterns match: to whom only they are offered, there is no other."""
        if "*" in patterns:
            return self
        seen = {name: tool for name, tool in self.offered.items() if any(fnmatchcase(name, each) for each in patterns)}
        return replace(self, offered=seen, left_out=())

    def with_disabled(self, names: Iterable[str]) -> ToolRegistry:
        """These tools with just ``names`` disabled; a name may be of a tool that only a later reload offers again."""
        return replace(self, disabled=frozenset(names))


def discover(
    policy: ToolPolicy, *, packages: Iterable[str] = (), include: Iterable[str] = ("*",), exclude: Iterable[str] = ()
) -> ToolRegistry:
    """Find every tool and build it for ``policy``; the first of two with one name wins, built-in ones first."""
    include, exclude = tuple(include), tuple(exclude)
    found: dict[str, MCPBaseTool] = {}
    left_out: list[LeftOut] = []
    for candidate in _candidates((BUILT_IN, *packages)):
        if isinstance(candidate, LeftOut):
            left_out.append(candidate)
            continue
        full_name, name = f"{candidate.__module__}.{candidate.__qualname__}", candidate.tool_name()
        if reason := why_left_out(candidate, include, exclude):
            left_out.append(LeftOut(full_name, reason))
        elif name not in found:
            tool = _build(candidate, policy)
            if isinstance(tool, MCPBaseTool):
                found[name] = tool
            else:
                left_out.append(LeftOut(full_name, tool, broken=True))
        elif type(found[name]) is not candidate:
            left_out.append(LeftOut(full_name, f"another tool is already called {name!r}", broken=True))
    for item in left_out:
        logger.info("tool.left_out", name=item.name, reason=item.reason)
    return ToolRegistry({name: found[name] for name in sorted(found)}, tuple(left_out))


def _build(candidate: type[MCPBaseTool], policy: ToolPolicy) -> MCPBaseTool | str:
    """Build a tool, or say why that is not possible: a foreign class may be wrong in any way."""
    try:
        tool = candidate(policy)
        tool.flags()
        if not candidate.__module__.startswith(f"{BUILT_IN}."):  # those are tested, and the start path is hot
            tool.parameters.model_json_schema()
    except Exception as error:  # noqa: BLE001 - as for modules
        logger.warning("tool.build_failed", name=candidate.__qualname__, error=error)
        return f"it cannot be built: {error}"
    return tool


def why_left_out(candidate: type[MCPBaseTool], include: Iterable[str], exclude: Iterable[str]) -> str | None:
    """Return the reason a class is no tool, or None when it is one."""
    name = candidate.__name__
    names = (candidate.tool_name(), name)

    def matches(patterns: Iterable[str]) -> bool:
        return any(fnmatchcase(each, pattern) for pattern in patterns for each in names)

    reasons = (
        (_SCAFFOLD_PREFIX.search(name) is not None, "its name starts like scaffolding"),
        (_SCAFFOLD_SUFFIX.search(name) is not None, "its name ends like scaffolding"),
        (inspect.isabstract(candidate), "it is abstract"),
        (not candidate.command_name, "it names no command"),
        (not candidate.tool_name(), "nothing of its name is left without 'Tool'"),
        (candidate.tool_name() in RESERVED, "its name is that of a tool the server answers itself"),
        (not matches(include), "no include pattern names it"),
        (matches(exclude), "an exclude pattern names it"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def _candidates(packages: Iterable[str]) -> Iterator[type[MCPBaseTool] | LeftOut]:
    for package in packages:
        for module in _modules(package):
            yield from [module] if isinstance(module, LeftOut) else _classes(module)
    yield from _entry_points()


def _modules(package_name: str) -> Iterator[ModuleType | LeftOut]:
    package = _import(package_name)
    yield package
    if isinstance(package, LeftOut) or not hasattr(package, "__path__"):
        return
    for info in pkgutil.iter_modules(package.__path__):
        # Built-in helpers stand beside the tools; only the files named for a tool are imported at start.
        if package_name != BUILT_IN or info.name.endswith("_tool"):
            yield _import(f"{package_name}.{info.name}")


def _import(name: str) -> ModuleType | LeftOut:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a foreign module may raise anything, and costs only its own tools
        logger.warning("tool.import_failed", module=name, error=error)
        return LeftOut(name, f"it cannot be imported: {error}", broken=True)


def _classes(module: ModuleType) -> Iterator[type[MCPBaseTool]]:
    for _, value in sorted(vars(module).items()):
        if (
            isinstance(value, type)
            and issubclass(value, MCPBaseTool)
            and value is not MCPBaseTool
            and value.__module__ == module.__name__
        ):
            yield value


def _entry_points() -> Iterator[type[MCPBaseTool] | LeftOut]:
    from importlib.metadata import entry_points

    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda each: (each.name, each.value)):
        try:
            loaded = point.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - as for modules
            logger.warning("tool.import_failed", entry_point=point.value, error=error)
            yield LeftOut(point.value, f"it cannot be loaded: {error}", broken=True)
            continue
        if isinstance(loaded, ModuleType):
            yield from _classes(loaded)
        elif isinstance(loaded, type) and issubclass(loaded, MCPBaseTool):
            yield loaded
        else:
            yield LeftOut(point.value, "it is neither a module nor a subclass of MCPBaseTool", broken=True)
