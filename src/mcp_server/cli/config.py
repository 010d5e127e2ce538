"""``config``: shows the configuration, and checks a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mcp_server.cli.output import Json, print_json, print_table, reporting

if TYPE_CHECKING:
    from mcp_server.config import Config
    from mcp_server.scope.policy import ScopePolicy

app = typer.Typer(help="The configuration: show, check a file.", no_args_is_help=True)


@app.command("show")
def show(as_json: Json = False) -> None:
    """Show every key with its value, its source, and when a change takes effect, as a server would read it now.

    An asterisk marks a value that is not the default. Status live: a change takes effect at a reload. Status restart: a
    change takes effect at the next start. This command asks no running server. GET /config shows the values that a
    server uses, and the keys that wait for its restart.
    """
    from mcp_server.config import get_config
    from mcp_server.config.show import describe

    with reporting(as_json=as_json):
        config = get_config()
        keys = describe(config)
        if as_json:
            print_json({"config": config.redacted(), "keys": [asdict(key) for key in keys]})
            return
        print_table(
            ("KEY", "VALUE", "SOURCE", "STATUS", "ENVIRONMENT"),
            [
                (
                    f"{key.section}.{key.key}".lstrip("."),
                    f"{key.value} *" if key.differs else str(key.value),
                    key.source,
                    key.status,
                    key.env,
                )
                for key in keys
            ],
        )
        for clamped in config.clamped:
            print(clamped)


def _actors_outside(config: Config, policy: ScopePolicy) -> list[tuple[str, str]]:
    """The networks in the actors file that are not inside the policy. Raises ConfigError for an invalid file."""
    if config.auth.actors_file is None:
        return []
    from mcp_server.identity.actors_file import read_actors_file

    return list(read_actors_file(config.auth.actors_file).outside(policy))


@app.command("check")
def check(
    path: Annotated[Path | None, typer.Argument(help="A YAML or JSON file. Default: MCP_CONFIG_FILE.")] = None,
    as_json: Json = False,
) -> None:
    """Check a configuration file together with the environment, and print what in it has no effect."""
    import logging

    from mcp_server.config import load_config

    # The command prints what loading would log.
    logging.getLogger("mcp_server.config").setLevel(logging.ERROR)
    with reporting(as_json=as_json):
        config = load_config(path)
        policy = config.scope_policy()
        clamped = [str(item) for item in config.clamped]
        without_effect = list(policy.without_effect)
        outside = _actors_outside(config, policy)
        if as_json:
            print_json(
                {
                    "ok": True,
                    "file": str(config.file) if config.file else None,
                    "policy_file": str(config.security.policy_file) if config.security.policy_file else None,
                    "scope": list(policy.entries),
                    "scope_hash": policy.hash,
                    "clamped": clamped,
                    "without_effect": without_effect,
                    "actors_file": str(config.auth.actors_file) if config.auth.actors_file else None,
                    "outside_policy": [{"actor": name, "entry": entry} for name, entry in outside],
                }
            )
            return
        print(
            "\n".join(
                [
                    *clamped,
                    *(
                        f"{policy.source}: {entry} has no effect, because all of it is refused or excluded"
                        for entry in without_effect
                    ),
                    *(
                        f"actor {name}: {entry} is not inside the policy, and allows nothing more"
                        for name, entry in outside
                    ),
                    "The configuration is valid.",
                ]
            )
        )
