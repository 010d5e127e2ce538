"""YAML of an owner's file, read from parser events: text, lists and mappings with their line numbers, nothing else.

YAML 1.1 turns 22:00 into 1320 and ``no`` into False before a program sees them; here a scalar is the text that stands
there, and what it means is the schema's affair. Anchors, aliases, tags, merge keys, repeated keys and several
documents are refused, so a file holds what a person sees in it. It also takes a fifth of the time of PyYAML's loaders.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from mcp_server.errors import ConfigError
from mcp_server.scope.reading import shown

MAX_DEPTH = 8


class Text(NamedTuple):
    """A scalar: its text and its line; ``plain`` where it is not quoted."""

    text: str
    line: int
    plain: bool = True

    @property
    def is_null(self) -> bool:
        """Whether nothing stands there, or the word for it."""
        return self.plain and self.text in {"", "~", "null", "Null", "NULL"}


class Listing(NamedTuple):
    """A list, and the line it begins in."""

    nodes: list[Node]
    line: int


class Mapping(NamedTuple):
    """A mapping from text to nodes, the lines of its keys, and the line it begins in."""

    nodes: dict[str, Node]
    lines: list[int]
    line: int


Node: TypeAlias = Text | Listing | Mapping


def parse(text: str) -> Node | None:
    """Read one document; None where the text holds none. Raises ConfigError whose message begins with the line."""
    import yaml  # only where a file is given

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        parser = loader(text)
    except yaml.YAMLError as error:
        raise ConfigError(_problem(error)) from None
    try:
        return _Composer(parser, yaml).document()
    except yaml.YAMLError as error:
        raise ConfigError(_problem(error)) from None
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
            raise ConfigError(f"line {_line(following)}: a second document begins; the file is one")
        return found

    def _node(self, event: Any, depth: int) -> Node:
        yaml = self._yaml
        kind = type(event)
        if kind is yaml.ScalarEvent:
            if event.anchor is not None or event.tag is not None:
                self._refuse_property(event)
            return Text(event.value, event.start_mark.line + 1, not event.style)
        if kind is yaml.AliasEvent or event.anchor is not None or event.tag is not None:
            self._refuse_property(event)
        line = _line(event)
        if depth >= MAX_DEPTH:
            raise ConfigError(f"line {line}: nested more than {MAX_DEPTH} deep")
        if kind is yaml.SequenceStartEvent:
            items: list[Node] = []
            end, scalar, next_event = yaml.SequenceEndEvent, yaml.ScalarEvent, self._event
            # Very many entries have to be quick, so a scalar is taken here as `_node` would.
            while (kind := type(inner := next_event())) is not end:
                if kind is scalar and inner.anchor is None and inner.tag is None:
                    items.append(Text(inner.value, inner.start_mark.line + 1, not inner.style))
                else:
                    items.append(self._node(inner, depth + 1))
            return Listing(items, line)
        return self._mapping(line, depth)

    def _mapping(self, line: int, depth: int) -> Mapping:
        items: dict[str, Node] = {}
        lines: list[int] = []
        end, scalar, next_event = self._yaml.MappingEndEvent, self._yaml.ScalarEvent, self._event
        while (kind := type(event := next_event())) is not end:
            at = event.start_mark.line + 1
            if kind is not scalar:
                raise ConfigError(f"line {at}: a key must be a word")
            if event.anchor is not None or event.tag is not None:
                self._refuse_property(event)
            key = event.value
            if key == "<<":
                raise ConfigError(f"line {at}: merge keys are not read here; write the keys out")
            if key in items:
                first = lines[list(items).index(key)]
                raise ConfigError(f"line {at}: key {shown(key)} stands twice, first in line {first}")
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
        raise ConfigError(f"line {_line(event)}: {what} is not read here; write the value out, or quote it")


def _line(event: Any) -> int:
    line: int = event.start_mark.line
    return line + 1


def _problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    # Only the parser's own words: the rest of its message quotes the file.
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
    return f"{f'line {mark.line + 1}: ' if mark else ''}not YAML: {shown(str(problem))[1:-1]}"
