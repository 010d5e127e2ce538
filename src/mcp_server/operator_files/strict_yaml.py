"""Read YAML files of the operator strictly: text, lists and mappings with their line numbers, and nothing else.

YAML 1.1 turns 22:00 into 1320 and ``no`` into False before a program sees them. Here a scalar stays the text of the
file, and the schema decides what it means. Anchors, aliases, tags, merge keys, repeated keys and several documents are
refused. Reading the parser's events takes a fifth of the time of PyYAML's loaders.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from mcp_server.errors import ConfigError
from mcp_server.operator_files.reading import FileRules, read_text_file

MAX_DEPTH: Final = 8
"""Levels to which lists and mappings may be nested."""

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,59}")

T = TypeVar("T")


class LineError(Exception):
    """A line of a file is wrong; line 0 means that the line is unknown. `read_document` adds the name of the file."""

    def __init__(self, line: int, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.line = line
        self.message = message
        self.hint = hint


class Text(NamedTuple):
    """A scalar: its text and its line. ``plain`` says that it is not in quotes."""

    text: str
    line: int
    plain: bool = True

    @property
    def is_null(self) -> bool:
        """Whether the value is missing, or is a word for null."""
        return self.plain and self.text in {"", "~", "null", "Null", "NULL"}


class Listing(NamedTuple):
    """A list, and the line where it begins."""

    nodes: list[Node]
    line: int


class Mapping(NamedTuple):
    """A mapping from text to nodes, the lines of its keys, and the line where it begins."""

    nodes: dict[str, Node]
    lines: list[int]
    line: int


Node: TypeAlias = Text | Listing | Mapping


def read_document(path: Path, rules: FileRules, read: Callable[[str], T]) -> T:
    """Read the text file ``path`` under ``rules``, and return the result of ``read`` for its text.

    Raises ConfigError for a file that breaks the rules, and for a LineError of ``read``.
    """
    text = read_text_file(path, rules)
    try:
        return read(text)
    except LineError as error:
        where = f"{path}, line {error.line}" if error.line else str(path)
        raise ConfigError(f"{where}: {error.message}", hint=error.hint or rules.hint) from None


def read_yaml_file(path: Path, rules: FileRules, read: Callable[[Node | None], T]) -> T:
    """Like `read_document`, for a YAML file: ``read`` gets its document, or None if the file is empty."""
    return read_document(path, rules, lambda text: read(parse(text)))


def parse(text: str) -> Node | None:
    """Return the document in ``text``, or None if there is none; raises LineError."""
    import yaml  # takes long to import, and most servers read no YAML file

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        parser = loader(text)
    except yaml.YAMLError as error:
        raise _syntax_error(error) from None
    try:
        return _Composer(parser, yaml).document()
    except yaml.YAMLError as error:
        raise _syntax_error(error) from None
    finally:
        parser.dispose()


class _Composer:
    def __init__(self, parser: Any, yaml: Any) -> None:
        self._event = parser.get_event
        self._yaml = yaml

    def document(self) -> Node | None:
        yaml = self._yaml
        self._event()  # the start of the stream
        if isinstance(self._event(), yaml.StreamEndEvent):
            return None
        found = self._node(self._event(), 0)
        self._event()  # the end of the document
        following = self._event()
        if not isinstance(following, yaml.StreamEndEvent):
            raise LineError(_line(following), "a second document begins.", "Keep one document in the file.")
        return found

    def _node(self, event: Any, depth: int) -> Node:
        yaml = self._yaml
        kind = type(event)
        if kind is yaml.AliasEvent or event.anchor is not None or event.tag is not None:
            self._refuse_property(event)
        if kind is yaml.ScalarEvent:
            return Text(event.value, event.start_mark.line + 1, not event.style)
        line = _line(event)
        if depth >= MAX_DEPTH:
            raise LineError(line, f"lists and mappings are nested more than {MAX_DEPTH} levels deep.")
        if kind is yaml.SequenceStartEvent:
            return self._listing(line, depth)
        return self._mapping(line, depth)

    def _listing(self, line: int, depth: int) -> Listing:
        items: list[Node] = []
        end, scalar, next_event = self._yaml.SequenceEndEvent, self._yaml.ScalarEvent, self._event
        # A list may have 100,000 entries, so a scalar is read here, without the call of `_node`.
        while (kind := type(inner := next_event())) is not end:
            if kind is scalar and inner.anchor is None and inner.tag is None:
                items.append(Text(inner.value, inner.start_mark.line + 1, not inner.style))
            else:
                items.append(self._node(inner, depth + 1))
        return Listing(items, line)

    def _mapping(self, line: int, depth: int) -> Mapping:
        items: dict[str, Node] = {}
        lines: list[int] = []
        end, scalar, next_event = self._yaml.MappingEndEvent, self._yaml.ScalarEvent, self._event
        while (kind := type(event := next_event())) is not end:
            at = event.start_mark.line + 1
            if kind is not scalar:
                raise LineError(at, "a key must be a single word.")
            if event.anchor is not None or event.tag is not None:
                self._refuse_property(event)
            key = event.value
            if key == "<<":
                raise LineError(at, "merge keys (<<) are not supported.", "Write the keys out.")
            if key in items:
                first = lines[list(items).index(key)]
                raise LineError(at, f"{_named(key)} occurs twice, first in line {first}.", "Remove one of them.")
            lines.append(at)
            inner = next_event()
            if type(inner) is scalar and inner.anchor is None and inner.tag is None:
                items[key] = Text(inner.value, inner.start_mark.line + 1, not inner.style)
            else:
                items[key] = self._node(inner, depth + 1)
        return Mapping(items, lines, line)

    def _refuse_property(self, event: Any) -> None:
        if isinstance(event, self._yaml.AliasEvent):
            what = "an alias (*)"
        else:
            what = "an anchor (&)" if event.anchor is not None else "a tag (!)"
        raise LineError(_line(event), f"{what} is not supported.", "Write the value out, or put it in quotes.")


def _line(event: Any) -> int:
    line: int = event.start_mark.line
    return line + 1


def _named(key: str) -> str:
    # The path may lead to a file of another kind by mistake: repeat nothing of it that is not a plain name.
    return f"the key {key!r}" if _NAME.fullmatch(key) else "a key"


def _syntax_error(error: Exception) -> LineError:
    mark = getattr(error, "problem_mark", None)
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "")
    # The parser puts text of the file in quotation marks, so keep only messages without them.
    reason = "" if re.search("['\"]", problem) or not problem.isprintable() else problem
    return LineError(mark.line + 1 if mark else 1, f"this is not YAML{f': {reason}' if reason else ''}.")
