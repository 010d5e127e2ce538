"""Finds the tools: the built-in modules, the packages that the operator names, and entry points of distributions.

The tools of a module are the subclasses of `MCPBaseTool` and `ServerTool` that it defines. A class is left out, with a
logged reason, if its name marks it as scaffolding, if it names no command, or if the operator's patterns exclude it. If
a module cannot be imported, only its own tools are missing.
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

from mcp_server.errors import ConflictError, NotFoundError
from mcp_server.logger import get_logger
from mcp_server.model.untrusted import sanitize
from mcp_server.tools.base import MCPBaseTool, ServerTool, ToolPolicy

logger = get_logger(__name__)

BUILT_IN = "mcp_server.tools"
ENTRY_POINT_GROUP = "mcp_server.tools"

RegisteredTool = MCPBaseTool | ServerTool

_SCAFFOLD_PREFIX = re.compile(r"^(_|(Test|Mock|Abstract|Example)(?=[A-Z0-9]|$)(?!Free))")
"""Matches whole words only. ``TestamentTool`` and ``ExampleFreeTool`` are ordinary names."""
_SCAFFOLD_SUFFIX = re.compile(r"(?:^|(?<=[a-z0-9]))(Base|Mixin|Interface)$")
"""Matches whole words only. ``Database`` does not end in the word ``Base``."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A class or module that is not offered as a tool, and the reason. ``broken`` is true if the reason is a defect."""

    name: str
    reason: str
    broken: bool = False


@dataclass(frozen=True, slots=True)
class ToolRegistry:
    """The tools of one configuration by name, in alphabetical order, and the classes that were left out.

    ``offered`` are the tools that the operator's patterns select. ``disabled`` are the names of tools that an operator
    disabled while the server runs.
    """

    offered: dict[str, RegisteredTool]
    left_out: tuple[LeftOut, ...] = ()
    disabled: frozenset[str] = frozenset()

    @property
    def tools(self) -> dict[str, RegisteredTool]:
        """The tools that may be called now."""
        return {name: tool for name, tool in self.offered.items() if name not in self.disabled}

    @property
    def programs(self) -> dict[str, MCPBaseTool]:
        """The tools that may be called now and run a program."""
        return {name: tool for name, tool in self.tools.items() if isinstance(tool, MCPBaseTool)}

    def get(self, name: str) -> RegisteredTool:
        """Return a tool that may be called, by its name or its class name.

        Raises NotFoundError ``unknown_tool`` or ConflictError ``tool_disabled``.
        """
        tool = self.find(name)
        if (own := tool.tool_name()) in self.disabled:
            raise ConflictError(f"{own} is disabled on this server.", code="tool_disabled", tool=own)
        return tool

    def find(self, name: str) -> RegisteredTool:
        """Return a tool by its name or its class name, even if it is disabled. Raises NotFoundError."""
        if name in self.offered:
            return self.offered[name]
        for tool in self.offered.values():
            if type(tool).__name__ == name:
                return tool
        raise NotFoundError(
            f"There is no tool {sanitize(name, 64)!r}.",
            code="unknown_tool",
            hint=f"Tools: {', '.join(self.tools) or 'none'}.",
        )

    def is_server_tool(self, name: str) -> bool:
        """Whether ``name`` is the name or the class name of a tool that runs no program."""
        return any(isinstance(tool, ServerTool) and name in _names(type(tool)) for tool in self.offered.values())

    def seen_by(self, patterns: tuple[str, ...]) -> ToolRegistry:
        """Return the tools of an actor whose tools are limited to these shell patterns.

        For the actor, other tools do not exist. Tools that run no program are always included.
        """
        if "*" in patterns:
            return self
        seen = {
            name: tool
            for name, tool in self.offered.items()
            if isinstance(tool, ServerTool) or any(fnmatchcase(name, each) for each in patterns)
        }
        return replace(self, offered=seen, left_out=())

    def with_disabled(self, names: Iterable[str]) -> ToolRegistry:
        """Return these tools with exactly ``names`` disabled. A later reload may offer a tool of ``names``."""
        return replace(self, disabled=frozenset(names))


def discover(
    policy: ToolPolicy, *, packages: Iterable[str] = (), include: Iterable[str] = ("*",), exclude: Iterable[str] = ()
) -> ToolRegistry:
    """Find every tool and build it for ``policy``. If two tools have the same name, the first (or built-in) is used.

    ``include`` and ``exclude`` are shell patterns of names. They select among the tools that run a program.
    """
    include, exclude = tuple(include), tuple(exclude)
    found: dict[str, RegisteredTool] = {}
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
            if isinstance(tool, str):
                left_out.append(LeftOut(full_name, tool, broken=True))
            else:
                found[name] = tool
        elif type(found[name]) is not candidate:
            left_out.append(LeftOut(full_name, f"another tool is already called {name!r}", broken=True))
    for item in left_out:
        logger.info("tool.left_out", name=item.name, reason=item.reason)
    return ToolRegistry({name: found[name] for name in sorted(found)}, tuple(left_out))


def _build(candidate: type[RegisteredTool], policy: ToolPolicy) -> RegisteredTool | str:
    """Build a tool, or return the reason if it cannot be built. A class of an operator may raise any exception."""
    try:
        tool = candidate(policy)
        if isinstance(tool, MCPBaseTool):
            tool.flags()
        if not candidate.__module__.startswith(f"{BUILT_IN}."):  # built-in tools are tested, and a schema takes time
            tool.parameters.model_json_schema()
    except Exception as error:  # noqa: BLE001 - as for modules
        logger.warning("tool.build_failed", name=candidate.__qualname__, error=error)
        return f"it cannot be built: {error}"
    return tool


def why_left_out(candidate: type[RegisteredTool], include: Iterable[str], exclude: Iterable[str]) -> str | None:
    """Return the reason why a class is not a tool, or None if it is a tool."""
    name, own = candidate.__name__, candidate.tool_name()
    is_program = issubclass(candidate, MCPBaseTool)

    def matches(patterns: Iterable[str]) -> bool:
        return any(fnmatchcase(each, pattern) for pattern in patterns for each in _names(candidate))

    reasons = (
        (_SCAFFOLD_PREFIX.search(name) is not None, "its name starts like scaffolding"),
        (_SCAFFOLD_SUFFIX.search(name) is not None, "its name ends like scaffolding"),
        (inspect.isabstract(candidate), "it is abstract"),
        (issubclass(candidate, MCPBaseTool) and not candidate.command_name, "it names no command"),
        (not own, "its name is only 'Tool'"),
        (is_program and not matches(include), "no include pattern matches its name"),
        (is_program and matches(exclude), "an exclude pattern matches its name"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def _names(candidate: type[RegisteredTool]) -> tuple[str, str]:
    return candidate.tool_name(), candidate.__name__


def _candidates(packages: Iterable[str]) -> Iterator[type[RegisteredTool] | LeftOut]:
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
        # The built-in package has other modules too. Only its modules with the suffix ``_tool`` are imported.
        if package_name != BUILT_IN or info.name.endswith("_tool"):
            yield _import(f"{package_name}.{info.name}")


def _import(name: str) -> ModuleType | LeftOut:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a module may raise any exception
        logger.warning("tool.import_failed", module=name, error=error)
        return LeftOut(name, f"it cannot be imported: {error}", broken=True)


def _classes(module: ModuleType) -> Iterator[type[RegisteredTool]]:
    for _, value in sorted(vars(module).items()):
        if (
            isinstance(value, type)
            and issubclass(value, RegisteredTool)
            and value not in {MCPBaseTool, ServerTool}
            and value.__module__ == module.__name__
        ):
            yield value


def _entry_points() -> Iterator[type[RegisteredTool] | LeftOut]:
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
        elif isinstance(loaded, type) and issubclass(loaded, RegisteredTool):
            yield loaded
        else:
            yield LeftOut(point.value, "it is neither a module nor a tool class", broken=True)
