"""The base class of configuration sections: strict types, validated assignment, and the source of each value."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from reprlib import Repr
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic.fields import FieldInfo

from mcp_server.config.redact import REDACTED, redact
from mcp_server.errors import ConfigError

Source = Literal["default", "file", "env", "code"]

RESTART: Final[dict[str, Any]] = {"status": "restart"}
"""Marks a key that is read once, when the server starts. A reload applies every other key."""

_bounded = Repr()  # a value may be a tree whose repr() is very long
_bounded.maxstring = _bounded.maxother = _bounded.maxlong = 80
_bounded.maxlevel = 2
_MAX_PROBLEMS = 10
_MAX_ITEMS = 10
_MAX_CHARS: Final = 1000
"""Characters of a text that are searched for secrets, and of one problem that are kept: the patterns are slow."""
_MAX_MESSAGE: Final = 4000


def _as_path(value: Any) -> Any:
    # Make it absolute now, so that a later change of the working directory does not move the file.
    if isinstance(value, str):
        return Path(value).expanduser().absolute() if value else None
    return value


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


FilePath = Annotated[Path, BeforeValidator(_as_path)]
OptionalPath = Annotated[Path | None, BeforeValidator(_as_path)]
# Tuples, because an append to a list would bypass the validation of assignments.
Strings = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_tuple)]


def each(check: Callable[[str], str]) -> AfterValidator:
    """Apply ``check``, which returns the canonical spelling, to every item of a list."""
    return AfterValidator(lambda values: tuple(check(value) for value in values))


def any_case(*words: str) -> BeforeValidator:
    """Accept each of ``words`` in upper or lower case."""
    by_lower_case = {word.lower(): word for word in words}
    return BeforeValidator(lambda value: by_lower_case.get(value.lower(), value) if isinstance(value, str) else value)


class Section(BaseModel):
    """One section of the configuration. An assignment is validated, and raises ConfigError if the value is wrong."""

    model_config = ConfigDict(
        extra="forbid", strict=True, validate_assignment=True, allow_inf_nan=False, defer_build=True
    )
    section: ClassVar[str] = ""

    _sources: dict[str, Source] = PrivateAttr(default_factory=dict)

    def source_of(self, key: str) -> Source:
        """Return the source of the value of ``key``; ``code`` is an assignment."""
        return self._sources.get(key, "default")

    def is_set(self, key: str) -> bool:
        """Return whether ``key`` has a value that is not its default."""
        return key in self.model_fields_set

    def adopt(self, key: str, other: Section) -> None:
        """Take the value of ``key``, which is already validated, and its source from a section of the same class."""
        self.__dict__[key] = getattr(other, key)
        (self.model_fields_set.add if other.is_set(key) else self.model_fields_set.discard)(key)
        self._sources[key] = other.source_of(key)

    def set_source(self, key: str, source: Source) -> None:
        """Record the source of the value of ``key``. The loader calls this."""
        self._sources[key] = source

    if not TYPE_CHECKING:  # a type checker that sees __setattr__ would not report misspelled keys

        def __setattr__(self, name: str, value: Any) -> None:
            self._assign(name, value)

    def _assign(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
            return
        fields = type(self).model_fields
        if name not in fields:
            raise ConfigError(
                f"There is no key {dotted(self.section, name)!r}; the nearest known key is "
                f"{dotted(self.section, nearest(name, fields))!r}."
            )
        # pydantic stores the value before it runs a check across keys, so validate a copy of the section first.
        present = {field: getattr(self, field) for field in fields}
        try:
            type(self).model_validate(present | {name: value})
        except ValidationError as error:
            raise config_error(error, section=self.section) from None
        super().__setattr__(name, value)
        self._sources[name] = "code"

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, redact(name or "", value)


def dotted(section: str, key: str) -> str:
    """Return the full name of a key, e.g. ``server.port``."""
    return f"{section}.{key}" if section else key


def bounds(field: FieldInfo) -> tuple[float, float] | None:
    """Return the closed range of a numeric field, or None if it has none."""
    low = next((m.ge for m in field.metadata if getattr(m, "ge", None) is not None), None)
    high = next((m.le for m in field.metadata if getattr(m, "le", None) is not None), None)
    return None if low is None or high is None else (low, high)


def extra(field: FieldInfo) -> dict[str, Any]:
    """Return the extra facts about a key: ``status``, ``env`` (short names), ``default_text``."""
    found = field.json_schema_extra
    return found if isinstance(found, dict) else {}


def choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the words that a key may have, or () if it may have any value of its type."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the name in ``known`` (not empty) that is most similar to ``name``."""
    from difflib import get_close_matches  # only needed for an error

    return get_close_matches(name[:80], list(known), n=1, cutoff=0.0)[0]


def shown(name: str, value: Any) -> str:
    """``value`` for a message: shortened, and without secrets."""
    return shortened(_bounded.repr(redact(name, _part_of(value))))


def shortened(text: str, limit: int = _MAX_CHARS) -> str:
    """Return the first ``limit`` characters of a text."""
    return text if len(text) <= limit else f"{text[:limit]}…"


def _part_of(value: Any, depth: int = 0) -> Any:
    if isinstance(value, list | tuple):
        return "…" if depth > _bounded.maxlevel else [_part_of(item, depth + 1) for item in value[:_MAX_ITEMS]]
    if isinstance(value, dict):  # its keys are not names of ours, so it is unknown which values are secrets
        return "{…}"
    if isinstance(value, str) and len(value) > _MAX_CHARS:
        # A shortened URL may lose the "@" after its password, by which the password is recognized.
        return REDACTED if "://" in value else value[: _MAX_CHARS // 2] + value[-_MAX_CHARS // 2 :]
    return value


def config_error(error: ValidationError, *, section: str = "", origins: dict[str, str] | None = None) -> ConfigError:
    """Translate pydantic's errors into one ConfigError that names every key, its value and the origin of the value.

    ``origins`` maps the full name of a key to a file or an environment variable.
    """
    problems, keys = [], []
    for item in error.errors(include_url=False)[:_MAX_PROBLEMS]:
        path = [part for part in (section, *item["loc"]) if part != ""]
        name = ".".join(str(part) for part in path if isinstance(part, str))
        message = shortened(item["msg"]).removeprefix("Value error, ").replace("valid tuple", "valid list")
        where = f" from {origins[name]}" if origins and name in origins else ""
        is_whole_section = isinstance(item["input"], (dict, BaseModel))
        got = "" if is_whole_section else f" (got {shown(str(path[-1]), item['input'])}{where})"
        problems.append(f"{name}: {message.removesuffix('.')}{got}.")
        keys.append(name)
    text = shortened(" ".join(problems), _MAX_MESSAGE)
    if error.error_count() > _MAX_PROBLEMS:
        text += f" There are {error.error_count() - _MAX_PROBLEMS} more problems."
    return ConfigError(text, keys=keys)
