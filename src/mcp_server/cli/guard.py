"""``guard``: shows and ends the packet guards of this host. Also runs other commands inside a guard."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mcp_server.cli.output import Json, print_json, print_table, reporting
from mcp_server.errors import ExitCode, NetworkToolsError, PlatformError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mcp_server.config import Config
    from mcp_server.netguard.choice import GuardChoice
    from mcp_server.netguard.state import GuardState

app = typer.Typer(no_args_is_help=True, help="The packet guards of the kernel tier: status, down.")

Dead = Annotated[bool, typer.Option("--dead", help="Only guards whose guard helper has died.")]

_ANSWER_SEC: Final = 2.0
_GRACE_SEC: Final = 40.0
"""Longer than a server takes by default to end its calls (``server.shutdown_grace_period``)."""
_KILLED_SEC: Final = 10.0
_REAPER_SEC: Final = 5.0


@app.command("status")
def status(as_json: Json = False) -> None:
    """Show each guard: tier, processes, ruleset and counters. Exit 4 if there is none. Only root can run this."""
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
            print("There is no guard.")
        if not any(item["state"] == "up" for item in found):
            raise typer.Exit(ExitCode.NOT_FOUND if not found else ExitCode.ENVIRONMENT)


@app.command("down")
def down(dead: Dead = False, as_json: Json = False) -> None:
    """End every guard and its server, and remove the network setup of dead guards. Exit 0 even if there is no guard."""
    from mcp_server.netguard.cleanup import undo
    from mcp_server.netguard.state import all_guards

    with reporting(as_json=as_json):
        _only_root()
        taken, problems = [], []
        for state in all_guards():
            if dead and (state.alive or not state.here):
                continue
            if state.here:  # a different network namespace cannot be changed, and `undo` reports that
                _end(state)
            left = undo(state)
            problems += left
            if not left:
                taken.append(state.helper)
        if problems:
            raise PlatformError(
                "; ".join(problems), code="guard_unavailable", hint="Fix these problems, then run the command again."
            )
        if as_json:
            print_json({"taken_down": taken})
        else:
            print(f"Ended: {', '.join(map(str, taken))}" if taken else "There was no guard.")


def _only_root() -> None:
    if os.geteuid() != 0:
        raise PlatformError("Only root can manage the guard of the kernel tier.", hint="Run the command with sudo.")


def _describe(state: GuardState) -> dict[str, Any]:
    """A guard as it is now. ``state`` is up, broken (with the reason) or dead (its guard helper has ended)."""
    from dataclasses import asdict

    from mcp_server.netguard.messages import receive_reply

    known = {key: value for key, value in asdict(state).items() if key not in {"born", "host", "sysctls", "tables"}}
    if not state.alive:
        return {**known, "state": "dead", "reason": "its guard helper has ended; 'guard down' cleans up"}
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
    """End a guard helper with SIGTERM, wait for its running calls to end, then use SIGKILL."""
    if not state.alive:
        return
    for number, seconds in ((signal.SIGTERM, _GRACE_SEC), (signal.SIGKILL, _KILLED_SEC)):
        if not state.alive:
            break
        os.kill(state.helper, number)
        _wait(lambda: not state.alive, seconds)
    _wait(lambda: not state.path.exists(), _REAPER_SEC)


def _wait(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)


def run_guarded(
    config: Config,
    choice: GuardChoice,
    words: Sequence[str],
    *,
    bind: Callable[[], socket.socket] | None = None,
    quiet: bool = False,
) -> int:
    """Set up the guard of ``choice``, run the command ``words`` inside it, and return its exit code.

    This process becomes the guard helper, and a child runs the command, with ``--inside FD`` added. ``bind`` makes a
    listening socket for the child. With ``quiet`` only warnings are logged.
    """
    from mcp_server.config import load_config
    from mcp_server.netguard import Enforcement
    from mcp_server.netguard.helper import GuardHelper
    from mcp_server.observability.logs import configure_logging

    # The log file belongs to the server, which runs as another user.
    settings = config.logging.model_copy(update={"file_path": None} | ({"level": "WARNING"} if quiet else {}))
    configure_logging(settings)
    if choice.reason:
        choice.log()

    helper: type[GuardHelper]
    if choice.enforcement is Enforcement.ROOTLESS:
        from mcp_server.netguard.rootless import RootlessGuardHelper

        helper = RootlessGuardHelper
    else:
        from mcp_server.netguard.kernel import KernelGuardHelper

        helper = KernelGuardHelper
    command = [sys.executable, "-P", "-m", "mcp_server", *words]
    return helper(config, command, load_config=lambda: load_config(notify=False), bind=bind).run()
