"""Reading what the owner gave: a YAML or JSON file, and the environment. Nothing is validated here but names."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_origin

from mcp_server.config.base import Source, nearest, shown
from mcp_server.config.keys import Key, keys, sections
from mcp_server.errors import ConfigError

MAX_FILE_BYTES: Final = 256 * 1024
"""The largest configuration file that is read: ten thousand networks, in a second or two. More are a policy file."""
FILE_VARIABLE: Final = "MCP_CONFIG_FILE"

CLIENT_VARIABLES: Final = frozenset(
    {
        # Claude Code, which hands its own environment to the servers it starts
        "MCP_CLIENT_SECRET",
        "MCP_CONNECTION_NONBLOCKING",
        "MCP_CONNECT_TIMEOUT_MS",
        "MCP_OAUTH_CALLBACK_PORT",
        "MCP_OAUTH_CLIENT_METADATA_URL",
        "MCP_REMOTE_SERVER_CONNECTION_BATCH_SIZE",
        "MCP_SERVER_CONNECTION_BATCH_SIZE",
        "MCP_TIMEOUT",
        "MCP_TOOL_TIMEOUT",
        "MCP_XAA_IDP_CLIENT_SECRET",
        # MCP Inspector, which does the same
        "MCP_AUTO_OPEN_ENABLED",
        "MCP_PROXY_AUTH_TOKEN",
        "MCP_PROXY_FULL_ADDRESS",
        "MCP_REQUEST_MAX_TOTAL_TIMEOUT",
        "MCP_REQUEST_TIMEOUT_RESET_ON_PROGRESS",
        "MCP_SERVER_REQUEST_TIMEOUT",
    }
)
"""Variables of well-known clients that begin with MCP_ too; they are theirs, and ignored."""

_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,40}")
_DECIMAL: Final = re.compile(r"[+-]?[0-9]{1,40}(?:\.[0-9]{1,40})?")
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,59}")
_MAX_DIGITS: Final = 1000
_NAMES: Final = "Keys are names of letters, digits and underscores; docs/configuration.md has them all."
_WRITE_OUT: Final = "Write the value out, or put it in quotes."
_TRUE: Final = frozenset({"true", "yes", "on", "1"})
_FALSE: Final = frozenset({"false", "no", "off", "0"})


@dataclass(frozen=True, slots=True)
class GivenValue:
    """One value as it was given, and where it stood (a file's path or a variable's name) for messages."""

    key: Key
    value: Any
    source: Source
    origin: str


def from_file(path: Path) -> list[GivenValue]:
    """Read a configuration file: JSON where the name ends in ``.json``, YAML otherwise.

    Raises `ConfigError` where it cannot be read or parsed, is no regular file, is over 256 KiB, or holds an unknown
    or repeated key. What it says of a file is where and what, and of its text only names: the file may be another one.
    """
    text = _read(path)
    data = _parse_json(text, path) if path.suffix.lower() == ".json" else _parse_yaml(text, path)
    if data is None:
        return []
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold sections with keys, not {_kind(data)}")
    found = []
    for name, value in data.items():
        if (known := keys().get(("", str(name)))) is not None:
            found.append(GivenValue(known, value, "file", str(path)))
        elif name in sections():
            found += _section_from_file(name, value, path)
        else:
            raise _unknown("section or key", str(name), [*sections(), *_dotted_names()], str(path))
    return found


def from_env(env: Mapping[str, str]) -> list[GivenValue]:
    """Read the environment; a variable's long name (MCP_LOGGING_LEVEL) wins over its short one (LOG_LEVEL).

    Raises `ConfigError` for a variable that begins with ``MCP_`` and is neither ours nor a known client's.
    """
    known = {name for key in keys().values() for name in key.env}
    for name in env:
        if name.startswith("MCP_") and name not in known and name not in CLIENT_VARIABLES and name != FILE_VARIABLE:
            raise _unknown("environment variable", name, [*known, FILE_VARIABLE], "")
    found = []
    for key in keys().values():
        given = next((name for name in key.env if name in env), None)
        # A folder that must exist has no empty form: empty means "not set" there, as for the XDG variables.
        if given is not None and (env[given].strip() or key.field.default_factory is None):
            found.append(GivenValue(key, from_text(key, env[given]), "env", given))
    return found


def from_text(key: Key, text: str) -> Any:
    """Turn a variable's text into the key's type; text that does not fit stays text, and validation names it.

    Lists are comma separated; an empty text is an empty list, or "not set" for a key that may be empty.
    """
    kind, text = key.field.annotation, text.strip()
    if get_origin(kind) is tuple:
        return tuple(word.strip() for word in text.split(",") if word.strip())
    if kind is bool:
        word = text.lower()
        return True if word in _TRUE else False if word in _FALSE else text
    if kind in {int, float} and _WHOLE.fullmatch(text):
        return int(text)
    if kind is float and _DECIMAL.fullmatch(text):
        return float(text)
    return None if not text and key.field.default is None else text


def _section_from_file(name: str, value: Any, path: Path) -> list[GivenValue]:
    if value is None:  # a section whose keys are all commented out
        return []
    if not isinstance(value, dict):
        raise ConfigError(f"section {name!r} in {path} must hold keys, not {_kind(value)}", keys=[name])
    found = []
    for key, inner in value.items():
        known = keys().get((name, str(key)))
        if known is None:
            own = [item.dotted for item in keys().values() if item.section == name]
            raise _unknown("key", f"{name}.{key}", own, str(path))
        found.append(GivenValue(known, inner, "file", str(path)))
    return found


def _read(path: Path) -> str:
    try:
        # Without O_NONBLOCK a pipe in its place would hold up the start, or a reload, for ever.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{path} is not a regular file", hint=f"Give a regular file in {FILE_VARIABLE}.")
            data = file.read(MAX_FILE_BYTES + 1) or b""
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
        return data.decode("utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration file {path}: {error.strerror}",
            hint=f"Give an existing file in {FILE_VARIABLE}, or unset it.",
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None


def _parse_json(text: str, path: Path) -> Any:
    import json

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_names(((name, "") for name, _ in pairs), path)
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=mapping)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error.msg}{_at(error.lineno, error.colno)}") from None
    except (RecursionError, ValueError):  # a number of thousands of digits is a ValueError
        raise ConfigError(f"{path} is nested too deeply, or has a number that is too long") from None


def _parse_yaml(text: str, path: Path) -> Any:
    import yaml  # only where a YAML file is given: it costs more to import than the rest of this package

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            # A few lines of aliases to aliases are gigabytes once they are written out.
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs lack it
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                where = _at(event.start_mark.line + 1, event.start_mark.column + 1)
                raise ConfigError(f"{path}: anchors (&) and aliases (*) are not read{where}", hint=_WRITE_OUT)
            return super().compose_node(parent, index)

        def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
            if node.tag == "tag:yaml.org,2002:int" and len(node.value) > _MAX_DIGITS:
                raise ValueError  # a number that Python would not write out again
            return super().construct_scalar(node)

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
            # "<<" merges another mapping and is no key; a list cannot be one, and SafeLoader says so itself.
            own = [name for name, _ in node.value if name.tag != "tag:yaml.org,2002:merge"]
            marks = [name.start_mark for name in own]
            wheres = [_at(mark.line + 1, mark.column + 1) for mark in marks]
            found = ((self.construct_object(name), where) for name, where in zip(own, wheres, strict=True))
            _check_names(found, path)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        # Not the error's own text: it quotes the line, which may hold a password. Nor a problem that quotes a word.
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "unreadable"
        words = "unreadable" if re.search("['\"]", problem) else problem
        raise ConfigError(f"{path} is not YAML: {words}{_at(mark.line + 1, mark.column + 1) if mark else ''}") from None
    except (RecursionError, ValueError):
        raise ConfigError(
            f"{path} is not YAML this project reads: nested too deeply, a malformed value, or a number too long"
        ) from None


def _check_names(names: Iterable[tuple[Any, str]], path: Path) -> None:
    seen = set()
    for name, where in names:
        # No key of ours looks so; what does may be the text of another file that a link leads to.
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(f"{path} has a key that is no name{where}", hint=_NAMES)
        # Both formats let the last of two equal keys win without a word.
        if name in seen:
            raise ConfigError(f"key {name!r} stands twice in {path}{where}")
        seen.add(name)


def _at(line: int, column: int) -> str:
    return f" in line {line}, column {column}"


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else "a single value"


def _dotted_names() -> list[str]:
    return [key.dotted for key in keys().values()]


def _unknown(what: str, name: str, known: Iterable[str], origin: str) -> ConfigError:
    like = nearest(name, known)
    where = f" in {origin}" if origin else ""
    return ConfigError(
        f"unknown {what} {shown('', name)}{where}; the nearest known name is {like!r}",
        hint=f"Write {like!r} if that is what you meant, or remove it.",
        unknown=name[:80],
        nearest=like,
    )
