"""Flags, tables of flags, and the notation in which a simple tool declares its flags as strings.

A declaration is a flag, or a flag and the type of its value::

    "-n"                         a switch
    "-c INT"  "-c INT 1-100"     a whole number, with bounds
    "-i FLOAT 0.2-60"            a number with at most three decimals
    "-W DURATION 100ms-5m"       a time with its unit
    "--mode WORD"                1 to 64 of the characters A-Z a-z 0-9 _ -
    "--type CHOICE a|b|c"        one of a closed list of words
    "--rate=INT 1-100"           the value is in the same word, after "="

Do not add a type for a path, a host, a URL or free text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mcp_server.errors import ConfigError
from mcp_server.model.run import Risk
from mcp_server.tools.flags.values import ChoiceValue, DurationValue, FloatValue, IntValue, Value, WordValue

_NAME = re.compile(r"--?[A-Za-z0-9][A-Za-z0-9-]{0,38}=?\Z")
_DECLARATION = re.compile(r"(?P<name>-[^ =]*=?) ?(?:(?<=[ =])(?P<type>[A-Z]+)(?: (?P<bounds>[^ ]+))?)?\Z")
_NOTATION = 'Write "-n", "-c INT 1-100", "-i FLOAT", "-W DURATION 1s-5m", "--mode WORD" or "--type CHOICE a|b".'


@dataclass(frozen=True, slots=True)
class Flag:
    """One allowed flag. ``value`` is None for a switch. A ``joined`` flag has its value in the same word (``-T4``).

    ``field`` names the field of the tool's own model that the flag sets: to its value, or to ``const`` for a switch. An
    ``intrusive`` flag is ``locked`` unless the operator allows intrusive calls. The reader refuses a locked flag.
    """

    name: str
    help: str = ""
    value: Value | None = None
    joined: bool = False
    risk: Risk = Risk.PASSIVE
    intrusive: bool = False
    field: str | None = None
    const: Any = True
    locked: bool = False

    @property
    def usage(self) -> str:
        """The flag as the documentation shows it: ``-n``, ``-c INT 1-100``, ``-TINT 0-4``."""
        if self.value is None:
            return self.name
        return f"{self.name}{'' if self.joined else ' '}{self.value.label}"


@dataclass(frozen=True, slots=True)
class Setting:
    """A flag with its typed value (None for a switch)."""

    flag: Flag
    value: Any = None

    @property
    def given(self) -> Any:
        """The value that this setting gives to the field of its flag."""
        return self.flag.const if self.flag.value is None else self.value

    def words(self) -> list[str]:
        """Return the canonical argv words of this setting."""
        if self.flag.value is None:
            return [self.flag.name]
        text = self.flag.value.emit(self.value)
        return [self.flag.name + text] if self.flag.joined else [self.flag.name, text]


def emit(settings: Iterable[Setting]) -> list[str]:
    """Return the canonical argv words of the settings, in their order."""
    return [word for setting in settings for word in setting.words()]


def table(allowed: Sequence[str | Flag], *, allow_intrusive: bool = False) -> dict[str, Flag]:
    """Return a new table of the declared flags, from exact flag to `Flag`.

    Intrusive flags get the risk `Risk.INTRUSIVE`, and are locked unless ``allow_intrusive`` is set. Raises ConfigError
    for a declaration that is not in the notation of this module, and for a flag that is declared twice.
    """
    flags: dict[str, Flag] = {}
    for declaration in allowed:
        flag = _parse(declaration) if isinstance(declaration, str) else declaration
        if not isinstance(flag, Flag) or not _NAME.match(flag.name):
            raise ConfigError(f"allowed_flags: {declaration!r} is not a flag.", hint=_NOTATION)
        if flag.name in flags:
            raise ConfigError(f"allowed_flags: {flag.name} is declared twice.", hint="Remove one of the two.")
        if flag.intrusive:
            flag = replace(flag, risk=Risk.INTRUSIVE, locked=not allow_intrusive)
        flags[flag.name] = flag
    return flags


def _parse(declaration: str) -> Flag:
    match = _DECLARATION.match(declaration)
    if match is None or (match["type"] is None and declaration != match["name"]):
        raise ConfigError(f"allowed_flags: {declaration!r} cannot be read.", hint=_NOTATION)
    name, kind, bounds = match["name"], match["type"], match["bounds"]
    if kind is None:
        if name.endswith("="):
            raise ConfigError(f"allowed_flags: {declaration!r} names no value type.", hint=_NOTATION)
        return Flag(name)
    if kind not in _TYPES:
        raise ConfigError(
            f"allowed_flags: {declaration!r} has the unknown value type {kind!r}.",
            hint=f"Value types: {', '.join(_TYPES)}.",
        )
    try:
        value = _TYPES[kind](bounds)
    except ValueError as error:
        raise ConfigError(f"allowed_flags: the bounds of {declaration!r} are wrong: {error}.", hint=_NOTATION) from None
    return Flag(name, value=value, joined=name.endswith("="))


def _pair(bounds: str, parse: Callable[[str], Any]) -> tuple[Any, Any]:
    low, dash, high = bounds.partition("-")
    if not dash:
        raise ValueError("two bounds with '-' between them are needed")
    pair = parse(low), parse(high)
    if pair[0] > pair[1]:
        raise ValueError(f"{low} is more than {high}")
    return pair


def _int(bounds: str | None) -> Value:
    return IntValue(*_pair(bounds, IntValue().parse)) if bounds else IntValue()


def _float(bounds: str | None) -> Value:
    return FloatValue(*_pair(bounds, FloatValue().parse)) if bounds else FloatValue()


def _duration(bounds: str | None) -> Value:
    return DurationValue(*_pair(bounds, DurationValue().parse)) if bounds else DurationValue()


def _word(bounds: str | None) -> Value:
    if bounds:
        raise ValueError("WORD has no bounds")
    return WordValue()


def _choice(bounds: str | None) -> Value:
    if not bounds:
        raise ValueError("CHOICE needs its words, as in a|b|c")
    return ChoiceValue(tuple(WordValue().parse(choice) for choice in bounds.split("|")))


_TYPES: dict[str, Callable[[str | None], Value]] = {
    "INT": _int,
    "FLOAT": _float,
    "DURATION": _duration,
    "WORD": _word,
    "CHOICE": _choice,
}
