"""``guard``: what guards are up on this host, and taking them down."""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mcp_server.cli.output import Json, print_json, print_table, reporting
from mcp_server.errors import ExitCode, NetworkToolsError, PlatformError

if TYPE_CHECKING:
    from mcp_server.netguard.state import GuardState

app = typer.Typer(no_args_is_help=True, help="The guard of the kernel tier: its state, and its end.")

Dead = Annotated[bool, typer.Option("--dead", help="Leave guards alone whose guard helper is alive.")]

_ANSWER_SEC: Final = 2.0
_GRACE_SEC: Final = 40.0
"""The longest a server may take by default to end its calls (server.shutdown_grace_period), and some."""
_KILLED_SEC: Final = 10.0
_REAPER_SEC: Final = 5.0


@app.command("status")
def status(as_json: Json = False) -> None:
    """Say which guards are up: tier, processes, ruleset and counters; exit 4 where there is none. For root."""
    from mcp_server.netguard.state import all_guards

    with reporting(as_json=as_json):
        _only_root()
        found = [_describe(state) for state in all_guards()]
        if as_json:
            print_json({"guards": found})
        elif found:
            columns = ["helper", "server", "enforcement", "state", "uplink", "passed", "dropped", "ruleset"]
            print_table(columns, [[str(item.get(column, "")) for column in columns] for item in found])
        else:
            print("no guard is up")
        if not any(item["state"] == "up" for item in found):
            raise typer.Exit(ExitCode.NOT_FOUND if not found else ExitCode.ENVIRONMENT)


@app.command("down")
def down(dead: Dead = False, as_json: Json = False) -> None:
    """End every guard with its server, and take away what is left of any; exit 0 also where there is nothing."""
    from mcp_server.netguard.cleanup import undo
    from mcp_server.netguard.state import all_guards

    with reporting(as_json=as_json):
        _only_root()
        taken, problems = [], []
        for state in all_guards():
            if dead and (state.alive or not state.here):
                continue
            if state.here:  # otherwise nothing can be undone, and `undo` says so
                _end(state)
            left = undo(state)
            problems += left
            if not left:
                taken.append(state.helper)
        if problems:
            raise PlatformError("; ".join(problems), code="guard_unavailable", hint="Mend what is named, then repeat.")
        if as_json:
            print_json({"taken_down": taken})
        else:
            print(f"taken down: {', '.join(map(str, taken))}" if taken else "no guard was up")


def _only_root() -> None:
    if os.geteuid() != 0:
        raise PlatformError(
            "the guard of the kernel tier is root's, and this process is not", hint="Put sudo before the command."
        )


def _describe(state: GuardState) -> dict[str, Any]:
    """A guard as it is now: ``state`` is up, broken (with the reason) or dead (its guard helper is gone)."""
    from dataclasses import asdict

    from mcp_server.netguard.messages import receive_reply

    known = {key: value for key, value in asdict(state).items() if key not in {"born", "host", "sysctls", "tables"}}
    if not state.alive:
        return {**known, "state": "dead", "reason": "its guard helper is gone; 'guard down' takes away what is left"}
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
            asking.settimeout(_ANSWER_SEC)
            asking.connect(str(state.control))
            reply = receive_reply(asking)
        reply.raise_for_error()
        reading = reply.reading()
    except (OSError, EOFError) as error:
        return {**known, "state": "broken", "reason": f"its guard helper does not answer: {error}"}
    except NetworkToolsError as error:
        return {**known, "state": "broken", "reason": error.message}
    return {
        **known,
        "state": "up",
        "policy": reply.body["policy"],
        "ruleset": reading.ruleset,
        "passed": reading.passed,
        "dropped": reading.dropped,
        "drops": reading.drops,
    }


def _end(state: GuardState) -> None:
    """End a guard helper: with SIGTERM, which lets calls under way end, then with SIGKILL."""
    if not state.alive:
        return
    for number, seconds in ((signal.SIGTERM, _GRACE_SEC), (signal.SIGKILL, _KILLED_SEC)):
        if not state.alive:
            break
        os.kill(state.helper, number)
        _wait(lambda: not state.alive, seconds)
    _wait(lambda: not state.path.exists(), _REAPER_SEC)


def _wait(done: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)
