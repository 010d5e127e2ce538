"""``keys``: creates, lists and revokes API keys, for callers that have no issuer of access tokens."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mcp_server.cli.output import Json, print_json, print_table, reporting, run_async, say
from mcp_server.errors import ArgumentError, ConfigError, NetworkToolsError, PlatformError
from mcp_server.model.access import Role

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mcp_server.config import Config
    from mcp_server.identity.key_file import ApiKey

app = typer.Typer(no_args_is_help=True, help="API keys of the HTTP interfaces: create, list, revoke.")

_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LONGEST: Final = timedelta(days=3660)

RoleOption = Annotated[
    Role, typer.Option("--role", help="viewer reads, operator also runs tools, admin may do everything.")
]
Expires = Annotated[
    str | None, typer.Option("--expires", help="Valid for 12h, 30d or 8w, for example. Default: until it is revoked.")
]


@app.command("create")
def create(name: str, role: RoleOption, expires: Expires = None, as_json: Json = False) -> None:
    """Create a key and print it once, because only its hash is stored. A running server accepts it at once."""
    from mcp_server.identity.key_file import add_key, new_key

    with reporting(as_json=as_json):
        config = _config()
        made = new_key(name, role, _end(expires))
        _logged(config, "keys.create", made.kept, lambda: add_key(config.state_dir, made.kept))
        if as_json:
            print_json({**_shown(made.kept), "key": made.key})
            return
        until = f"until {made.kept.expires:%Y-%m-%d %H:%M}Z" if made.kept.expires else "until it is revoked"
        say(f"Key {made.kept.id} of key:{name}, {role.value}, valid {until}. It is shown only now:\n{made.key}")


@app.command("list")
def list_keys(as_json: Json = False) -> None:
    """List the keys: id, name, role, state and times. The keys themselves are not stored."""
    from mcp_server.identity.key_file import read_keys

    with reporting(as_json=as_json):
        shown = [_shown(key) for key in read_keys(_config().state_dir)]
        if as_json:
            print_json({"keys": shown})
            return
        columns = ("id", "name", "role", "state", "created", "expires", "revoked")
        print_table(
            [column.upper() for column in columns], [[each[column] or "" for column in columns] for each in shown]
        )


@app.command("revoke")
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID")], as_json: Json = False) -> None:
    """Revoke a key. A running server refuses it from its next request on."""
    from mcp_server.identity.key_file import find_key, revoke_key

    with reporting(as_json=as_json):
        config = _config()
        key = find_key(config.state_dir, key_id)
        if key.revoked is None:
            _logged(config, "keys.revoke", key, lambda: revoke_key(config.state_dir, key_id))
            key = find_key(config.state_dir, key_id)
        if as_json:
            print_json(_shown(key))
            return
        say(f"Key {key.id} of key:{key.name} is revoked.")


def _config() -> Config:
    from mcp_server.config import get_config
    from mcp_server.server.startup import prepare_state_dir

    config = get_config()
    if os.geteuid() == 0 and config.source_of("state_dir") == "default" and (folder := _guarded_folder()) is not None:
        raise PlatformError(
            f"A server in the kernel tier keeps its keys in {folder}, but this command would use {config.state_dir}.",
            hint=f"Run sudo -u '#{folder.stat().st_uid}' env MCP_STATE_DIR={folder} mcp-network-tools keys ….",
        )
    prepare_state_dir(config)  # its error says who must run this command if the folder belongs to another user
    return config


def _guarded_folder() -> Path | None:
    """Return the state folder of servers that root starts in the kernel tier, if it belongs to a different user."""
    from mcp_server.netguard.kernel import DEFAULT_STATE_DIR

    return DEFAULT_STATE_DIR if DEFAULT_STATE_DIR.is_dir() and DEFAULT_STATE_DIR.stat().st_uid else None


def _logged(config: Config, action: str, key: ApiKey, change: Callable[[], Any]) -> None:
    """Write the change to the audit log, then make the change. If it fails, write the failure too."""
    from mcp_server.audit import AuditLog
    from mcp_server.pipeline.validate import user_name

    facts = {"id": key.id, "name": key.name, "role": key.role.value}
    facts |= {"expires": key.expires.isoformat()} if key.expires else {}
    who = {"actor": user_name(), "interface": "cli", "action": action, "arguments": facts, **_terms(config)}

    async def make() -> None:
        audit = AuditLog(config.state_dir, lambda: config.audit)
        try:
            await audit.append("admin", result="accepted", **who)
            try:
                change()
            except NetworkToolsError as error:
                await audit.append("admin", result="failed", **who, code=error.code, reason=error.message)
                raise
        finally:
            await audit.close()

    run_async(make())


def _terms(config: Config) -> dict[str, str]:
    """Return the hash of the policy. A policy that cannot be read must not prevent the revocation of a key."""
    try:
        scope_hash = config.scope_policy().hash
    except ConfigError:
        scope_hash = "unreadable"
    return {"scope_hash": scope_hash, "enforcement": "argument"}


def _end(text: str | None) -> datetime | None:
    if text is None:
        return None
    found = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", text)
    length = timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else None
    if length is None or length > _LONGEST:
        raise ArgumentError(
            f"--expires {text[:40]!r} is not a time of at most ten years.", hint="Use for example 12h, 30d or 8w."
        )
    return datetime.now(UTC).replace(microsecond=0) + length


def _shown(key: ApiKey) -> dict[str, Any]:
    body = key.model_dump(mode="json", exclude={"sha256"})
    return {**body, "state": key.state(datetime.now(UTC))}
