"""Read the values of a YAML or JSON file and of the environment. Only names are checked here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, get_origin

from mcp_server.config.base import Source, nearest, shown
from mcp_server.config.keys import Key, keys, sections
from mcp_server.errors import ConfigError
from mcp_server.operator_files import strict_yaml
from mcp_server.operator_files.reading import FileRules
from mcp_server.operator_files.strict_yaml import LineError, Listing, Node, Text, read_document, read_yaml_file

MAX_FILE_BYTES: Final = 256 * 1024
"""The largest configuration file. Ten thousand networks fit in it; more of them belong in a policy file."""
FILE_VARIABLE: Final = "MCP_CONFIG_FILE"

CLIENT_VARIABLES: Final = frozenset(
    {
        # Claude Code, which passes its own environment to the servers it starts
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
"""Variables of well-known clients that begin with MCP_ too. They are ignored."""

_RULES: Final = FileRules(
    "configuration file",
    MAX_FILE_BYTES,
    setting=FILE_VARIABLE,
    hint="docs/configuration.md describes the file.",
    too_large_hint="Put the networks into a policy file (security.policy_file).",
)
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,40}")
_DECIMAL: Final = re.compile(r"[+-]?[0-9]{1,40}\.[0-9]{1,40}")
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,59}")
_BOOLEANS: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class GivenValue:
    """One value as the operator gave it. ``origin`` is the file and line, or the variable, for messages."""

    key: Key
    value: Any
    source: Source
    origin: str


def from_file(path: Path) -> list[GivenValue]:
    """Read a configuration file: JSON if its name ends in ``.json``, or else YAML.

    Raises ConfigError if the file cannot be read or parsed, is not a regular file, is larger than 256 KiB, or has an
    unknown or repeated key. Messages name positions and keys but no other text of the file, because the path may lead
    to a file of another kind by mistake.
    """
    if path.suffix.lower() == ".json":
        return read_document(path, _RULES, lambda text: _given_values(_parse_json(text), path))
    return read_yaml_file(path, _RULES, lambda root: _given_values(root, path))


def from_env(env: Mapping[str, str]) -> list[GivenValue]:
    """Read the environment. The long name of a variable (MCP_LOGGING_LEVEL) takes precedence over its short one.

    Raises ConfigError for a variable that begins with ``MCP_`` and belongs neither to this server nor to a client.
    """
    known = {name for key in keys().values() for name in key.env}
    for name in env:
        if name.startswith("MCP_") and name not in known and name not in CLIENT_VARIABLES and name != FILE_VARIABLE:
            _refuse_unknown("environment variable", name, [*known, FILE_VARIABLE])
    found = []
    for key in keys().values():
        given = next((name for name in key.env if name in env), None)
        # A folder that must exist cannot be empty, so an empty variable means "not set", as for the XDG variables.
        if given is not None and (env[given].strip() or key.field.default_factory is None):
            found.append(GivenValue(key, _from_text(key, env[given]), "env", given))
    return found


def _from_text(key: Key, text: str) -> Any:
    """Return the text of a variable as the type of the key. If it does not fit, it stays text, and validation fails.

    Lists are comma-separated. An empty text is an empty list, or "not set" for a key that may be empty.
    """
    kind, text = key.field.annotation, text.strip()
    if get_origin(kind) is tuple:
        return tuple(word.strip() for word in text.split(",") if word.strip())
    if kind is bool:
        return (_BOOLEANS | {"1": True, "0": False}).get(text.lower(), text)
    if kind in {int, float}:
        return _number(text)
    return None if not text and key.field.default is None else text


def _number(text: str) -> int | float | str:
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _DECIMAL.fullmatch(text) else text


def _given_values(root: Node | None, path: Path) -> list[GivenValue]:
    if root is None or (isinstance(root, Text) and root.is_null):
        return []
    if not isinstance(root, strict_yaml.Mapping):
        raise LineError(root.line, "the file must hold sections with keys.")
    found = []
    for (name, node), line in zip(root.nodes.items(), root.lines, strict=True):
        origin = _origin(path, line)
        if (key := keys().get(("", name))) is not None:
            found.append(GivenValue(key, _plain(node), "file", origin))
        elif name in sections():
            found += _section_values(name, node, path)
        else:
            _refuse_unknown("section or key", name, [*sections(), *_dotted_names()], origin)
    return found


def _section_values(section: str, node: Node, path: Path) -> list[GivenValue]:
    if isinstance(node, Text) and node.is_null:  # all keys of the section are commented out
        return []
    if not isinstance(node, strict_yaml.Mapping):
        raise LineError(node.line, f"the section {section!r} must hold keys.")
    found = []
    for (name, inner), line in zip(node.nodes.items(), node.lines, strict=True):
        key = keys().get((section, name))
        if key is None:
            _refuse_unknown("key", f"{section}.{name}", _dotted_names(section), _origin(path, line))
        found.append(GivenValue(key, _plain(inner), "file", _origin(path, line)))
    return found


def _plain(node: Node) -> Any:
    """Return the Python value of a node. A text in quotes stays text."""
    if isinstance(node, Listing):
        return [_plain(item) for item in node.nodes]
    if isinstance(node, strict_yaml.Mapping):
        return {name: _plain(inner) for name, inner in node.nodes.items()}
    if not node.plain:
        return node.text
    if node.is_null:
        return None
    boolean = _BOOLEANS.get(node.text.lower())
    return _number(node.text) if boolean is None else boolean


def _parse_json(text: str) -> Node:
    """Return the nodes of a JSON document, with line 0, because the lines are unknown."""
    import json

    def mapping(pairs: list[tuple[str, Any]]) -> strict_yaml.Mapping:
        items: dict[str, Node] = {}
        for name, value in pairs:
            if name in items:
                raise LineError(
                    0, f"the key {name!r} occurs twice." if _NAME.fullmatch(name) else "a key occurs twice."
                )
            items[name] = node(value)
        return strict_yaml.Mapping(items, [0] * len(items), 0)

    def node(value: Any) -> Node:
        if isinstance(value, strict_yaml.Mapping):
            return value
        if isinstance(value, list):
            return Listing([node(item) for item in value], 0)
        return Text(value, 0, plain=False) if isinstance(value, str) else Text(json.dumps(value), 0)

    try:
        return node(json.loads(text, object_pairs_hook=mapping))
    except json.JSONDecodeError as error:
        raise LineError(error.lineno, f"this is not JSON: {error.msg}.") from None
    except (RecursionError, ValueError):  # ValueError: a number of thousands of digits
        raise LineError(0, "values are nested too deeply, or a number is too long.") from None


def _dotted_names(section: str | None = None) -> list[str]:
    return [key.dotted for key in keys().values() if section is None or key.section == section]


def _origin(path: Path, line: int) -> str:
    return f"{path}, line {line}" if line else str(path)


def _refuse_unknown(what: str, name: str, known: Iterable[str], origin: str = "") -> NoReturn:
    if origin and not _NAME.fullmatch(name):
        raise ConfigError(f"{origin}: a key is not a name.", hint=_RULES.hint)
    like = nearest(name, known)
    where = f" in {origin}" if origin else ""
    raise ConfigError(
        f"There is no {what} {shown('', name)}{where}; the nearest known name is {like!r}.",
        hint=f"Write {like!r} if that is what you meant, or remove it.",
        unknown=name[:80],
        nearest=like,
    )
