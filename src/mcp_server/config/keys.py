"""The list of all keys, read from the sections: their names, their variables and when they take effect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias

from pydantic.fields import FieldInfo

from mcp_server.config.base import Section, dotted, extra
from mcp_server.config.model import Config

Status: TypeAlias = Literal["live", "restart"]
"""``live``: a reload applies the key. ``restart``: the key is read when the server starts."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key; ``section`` is empty at the top level."""

    section: str
    name: str
    field: FieldInfo

    @property
    def dotted(self) -> str:
        """The full name, e.g. ``server.port``."""
        return dotted(self.section, self.name)

    @property
    def env(self) -> tuple[str, ...]:
        """The environment variables that set the key: ``MCP_<SECTION>_<KEY>``, then its short names."""
        words = ("MCP", self.section, self.name) if self.section else ("MCP", self.name)
        return ("_".join(words).upper(), *extra(self.field).get("env", ()))

    @property
    def status(self) -> Status:
        """Whether a new value takes effect at a reload or at a restart."""
        found: Status = extra(self.field).get("status", "live")
        return found

    def holder(self, config: Config) -> Section:
        """Return the section of ``config`` that has the key."""
        found: Section = getattr(config, self.section) if self.section else config
        return found

    def of(self, config: Config) -> Any:
        """Return the value of the key in ``config``."""
        return getattr(self.holder(config), self.name)


@cache
def keys() -> dict[tuple[str, str], Key]:
    """Return every key, by section and name, in the order of the documentation."""
    return {(key.section, key.name): key for key in _walk()}


def sections() -> tuple[str, ...]:
    """Return the names of the sections."""
    return tuple(dict.fromkeys(section for section, _ in keys() if section))


def _walk() -> Iterator[Key]:
    for name, field in Config.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from (Key(name, key, inner) for key, inner in kind.model_fields.items())
        else:
            yield Key("", name, field)
