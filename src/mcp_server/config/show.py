"""The configuration for people: each key with its value and source, and the page of documentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from mcp_server.config.base import Source, bounds, choices, extra
from mcp_server.config.keys import Key, Status, keys, sections
from mcp_server.config.model import Config
from mcp_server.config.redact import redact
from mcp_server.config.sources import CLIENT_VARIABLES, FILE_VARIABLE

EXAMPLE = """\
state_dir: /var/lib/mcp-network-tools
server:
  transport: http
  port: 8443
security:
  allowed_targets: [10.20.0.0/16, fd00:20::/48, .lab.internal]
  timeout_seconds: 600
tool:
  exclude_patterns: [masscan]
"""
"""The example on the page of documentation. A test loads it."""

_HEAD = f"""\
# Configuration

Values come from the defaults, then from a file, then from the environment. For each key, a later source takes
precedence over an earlier one.

- `{FILE_VARIABLE}` names the file. It has sections with keys, and 256 KiB at most. It is read as JSON if its name ends
  in `.json`, and as YAML otherwise. In YAML, anchors, aliases, tags and merge keys are refused, and `0x10`, `1_000` and
  `22:00` are texts.
- Every key has a variable `MCP_<SECTION>_<KEY>`. Some keys have a short name as well; if both are set, the long one
  takes precedence. Lists in variables are comma-separated, and an empty variable is an empty list.
- A number outside its range is moved to the nearest bound and logged (`config.value_clamped`).
- An unknown section, key or `MCP_` variable is an error (`config_invalid`). So is a value of the wrong type.
- If keys of several sections set the same limit, `security` takes precedence over `limits`, and `limits` over `tool`,
  also if the values came from different sources.
- A [reload](reload.md) applies every key, except the keys marked *restart*, which are read at the start.
- Passwords in URLs, and keys named token, secret, password or key, are shown as `***`.
- [Differences from the specification](differences.md) lists the keys, limits and defaults that differ from it.
"""
_CLIENTS = """
## Variables of clients

These variables begin with `MCP_` too. They belong to clients that pass their environment to the servers they start,
and they are ignored.
"""


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One key for ``config show``. ``value`` is ready for JSON and redacted; ``section`` is empty at the top level.

    ``env`` is the long name of the variable, and ``env_aliases`` its short names. ``range`` is a text such as
    ``1 to 65535`` or ``stdio, http``, or empty. ``differs`` says that the value is not the default.
    """

    section: str
    key: str
    env: str
    env_aliases: tuple[str, ...]
    type: str
    default: Any
    range: str
    value: Any
    source: Source
    status: Status
    differs: bool
    description: str


def describe(config: Config) -> list[KeyInfo]:
    """Return one `KeyInfo` for every key, in the order of the documentation."""
    dumped = config.model_dump(mode="json")
    found = []
    for key in keys().values():
        value = dumped[key.section][key.name] if key.section else dumped[key.name]
        found.append(
            KeyInfo(
                section=key.section,
                key=key.name,
                env=key.env[0],
                env_aliases=key.env[1:],
                type=_type_name(key.field),
                default=_default(key),
                range=_range(key.field),
                value=redact(key.name, value),
                source=key.holder(config).source_of(key.name),
                status=key.status,
                differs=key.of(config) != key.field.get_default(call_default_factory=True),
                description=key.field.description or "",
            )
        )
    return found


def configuration_table() -> str:
    """Return the text of ``docs/configuration.md``, generated from the sections."""
    return "\n".join(_page())


def _page() -> Iterator[str]:
    yield from (*_HEAD.splitlines(), "```yaml", *EXAMPLE.splitlines(), "```", "", "## Top level", "", *_table(""))
    for section in sections():
        kind = Config.model_fields[section].annotation
        yield from ("", f"## {section}", "", (kind.__doc__ or "").strip().replace("``", "`"), "", *_table(section))
    yield from (*_CLIENTS.splitlines(), ", ".join(f"`{name}`" for name in sorted(CLIENT_VARIABLES)), "")


def _table(section: str) -> Iterator[str]:
    yield "| key | type | default | allowed | variables | meaning |"
    yield "|---|---|---|---|---|---|"
    for key in keys().values():
        if key.section == section:
            variables = ", ".join(f"`{name}`" for name in key.env)
            meaning = (key.field.description or "") + ("" if key.status == "live" else f" *{key.status}*")
            cells = (f"`{key.name}`", _type_name(key.field), _default_text(key), _range(key.field), variables, meaning)
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(key: Key) -> Any:
    special = extra(key.field).get("default_text")
    if special:
        return special
    default = key.field.default
    return list(default) if isinstance(default, tuple) else default


def _default_text(key: Key) -> str:
    default = _default(key)
    if default is None or default == []:
        return "empty"
    if "default_text" in extra(key.field):
        return str(default)
    text = ",".join(default) if isinstance(default, list) else str(default)
    return f"`{text.lower() if isinstance(default, bool) else text}`"


def _range(field: FieldInfo) -> str:
    limits = bounds(field)
    return f"{limits[0]} to {limits[1]}" if limits else ", ".join(choices(field))


def _type_name(field: FieldInfo) -> str:
    kind = field.annotation
    if get_origin(kind) is tuple:
        return "list"
    if get_origin(kind) is Literal:
        return "choice"
    names: dict[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "text", Path: "path"}
    return next((names[part] for part in (kind, *get_args(kind)) if part in names), "text")
