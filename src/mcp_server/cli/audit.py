"""``audit``: the decision log, verified, shown and handed on; none of it needs a running server."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mcp_server.cli.output import Json, print_json, print_table, reporting
from mcp_server.errors import ArgumentError, NetworkToolsError, NotFoundError, PlatformError

if TYPE_CHECKING:
    from mcp_server.audit.notes import Note, VerifierKey
    from mcp_server.audit.select import RecordFilter
    from mcp_server.audit.verify import Verification

app = typer.Typer(help="The decision log: verify, show, export, seal.", no_args_is_help=True)


class Decision(StrEnum):
    """What was decided on a call."""

    ACCEPT = "accept"
    DENY = "deny"


class Format(StrEnum):
    """The forms records are exported in."""

    OCSF = "ocsf"
    ECS = "ecs"


Since = Annotated[str | None, typer.Option(help="From this time on: 90m, 2h, 1d, or an ISO 8601 time.")]
OfActor = Annotated[str | None, typer.Option("--actor", help="Only what this actor did.")]
OfDecision = Annotated[Decision | None, typer.Option("--decision", help="Only these decisions.")]
OfRun = Annotated[str | None, typer.Option("--run", help="Only the records of this run.")]


@contextmanager
def _reading() -> Iterator[Path]:
    """The folder the log is in; a file that cannot be read becomes an error of ours."""
    from mcp_server.config import get_config

    folder = get_config().state_dir
    try:
        yield folder
    except BrokenPipeError:
        raise
    except OSError as error:
        raise PlatformError(
            f"the decision log in {folder} cannot be read: {error.filename or ''} {error.strerror or error}",
            hint="Run this as the user the server runs as, with its MCP_STATE_DIR.",
        ) from error


@app.command("verify")
def verify(
    checkpoint: Annotated[
        Path | None, typer.Option(help="A copy of the checkpoints kept elsewhere: notes, or a system log with them.")
    ] = None,
    public_key: Annotated[
        str | None, typer.Option(help="The log's public key as 'audit show-key' prints it, or a file that holds it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify the whole log: chain, files and checkpoints; exit 5 where it is broken, and say where first."""
    from mcp_server.audit.verify import verify as verify_log

    with reporting(as_json=as_json), _reading() as folder:
        notes, copies = _notes(folder), _copies(checkpoint)
        key = _key(folder, public_key) if notes or copies else None
        # A system log may hold those of other servers. Only a key that was kept tells them from a forger's.
        others = [note for note in copies if key and public_key is not None and note.origin != key.name]
        if len(others) == len(copies):
            others = []
        report = verify_log(folder, [*notes, *(note for note in copies if note not in others)], key)
        if not report.size and report.broken is None:
            raise NotFoundError(
                f"there is no record in {folder}", hint="Name the server's state folder in MCP_STATE_DIR."
            )
        if report.broken is not None:
            where = f"{report.broken.file} line {report.broken.line}, " if report.broken.file else ""
            raise NetworkToolsError(
                f"{report.broken.kind.value}: {where}record {report.broken.seq}: {report.broken.detail}",
                code="audit_broken",
                **_facts(report),
            )
        if as_json:
            copy = str(checkpoint) if checkpoint else None
            print_json({"ok": True, **_facts(report), "checkpoint": copy, "passed_over": len(others)})
            return
        print(f"ok: {report.size} records in {report.files} files, the last of {report.last_time or 'no time'}")
        print(f"root {report.root}")
        if report.repairs:
            print(f"{report.repairs} lines that a crash had cut off were repaired")
        if report.backwards:
            print(f"{report.backwards} times the clock stood before the record before")
        print(f"{report.checked} checkpoints agree; they cover {report.sealed} of {report.size} records")
        if others:
            print(f"{len(others)} checkpoints of other logs were passed over")
        if checkpoint is None:
            print("Only checkpoints kept elsewhere show a log that was cut off or written again: --checkpoint FILE.")


def _facts(report: Verification) -> dict[str, Any]:
    facts = asdict(report)
    broken = facts.pop("broken")
    return facts if broken is None else {**facts, **broken}


def _notes(folder: Path) -> list[Note]:
    """The checkpoints in the state folder."""
    from mcp_server.audit.checkpoint import CHECKPOINTS
    from mcp_server.audit.files import open_regular
    from mcp_server.audit.notes import find_notes

    try:
        with os.fdopen(open_regular(folder / CHECKPOINTS, os.O_RDONLY), "rb") as file:
            return find_notes(file.read().decode("utf-8", "replace"))
    except FileNotFoundError:
        return []


def _copies(checkpoint: Path | None) -> list[Note]:
    """The checkpoints in a copy of them; ArgumentError where there are none."""
    from mcp_server.audit.notes import find_notes

    if checkpoint is None:
        return []
    try:
        found = find_notes(checkpoint.read_text("utf-8", "replace"))
    except OSError as error:
        raise ArgumentError(f"{checkpoint} cannot be read: {error.strerror}", hint="Name a readable file.") from error
    if not found:
        raise ArgumentError(f"there is no checkpoint in {checkpoint}", hint="Give a file of signed notes.")
    return found


def _key(folder: Path, given: str | None) -> VerifierKey:
    from mcp_server.audit.keys import public_key
    from mcp_server.audit.notes import VerifierKey

    if given is None:
        try:
            return public_key(folder)
        except NotFoundError as error:
            raise NotFoundError(error.message, hint="Give --public-key, as 'audit show-key' once printed it.") from None
    if "+" not in given:
        try:
            given = Path(given).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentError(
                "--public-key is neither a key nor a readable file",
                hint="Give the line that 'mcp-network-tools audit show-key' prints, or a file that holds it.",
            ) from error
    return VerifierKey.parse(given)


def _filter(since: str | None, actor: str | None, decision: Decision | None, run: str | None) -> RecordFilter:
    from mcp_server.audit.select import RecordFilter, read_since

    return RecordFilter(
        since=read_since(since) if since is not None else None,
        actor=actor,
        decision=decision.value if decision else None,
        run=run,
    )


@app.command("show")
def show(
    since: Since = None,
    actor: OfActor = None,
    decision: OfDecision = None,
    run: OfRun = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many of the last records to show.")] = 50,
    as_json: Json = False,
) -> None:
    """Show the last records, oldest first; with --json, whole."""
    from mcp_server.audit.select import newest

    with reporting(as_json=as_json), _reading() as folder:
        found = newest(folder, _filter(since, actor, decision, run), limit)
        if as_json:
            print(json.dumps({"records": found}, indent=2))  # ASCII: what somebody put on the log stays an escape
            return
        print_table(("SEQ", "TIME", "EVENT", "ACTOR", "TOOL", "WHAT", "RUN"), [_row(record) for record in found])


_TOLD = ("decision", "outcome", "alarm", "action", "result", "name", "code", "reason")
"""The fields that say what happened, in the order they are shown."""


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    if "unreadable" in record:
        return ("?", "", "unreadable", "", "", record["unreadable"], "")
    targets = record.get("targets")
    pinned = [
        str(address)
        for item in (targets if isinstance(targets, list) else [])
        if isinstance(item, dict)
        for address in item.get("pinned") or ()
    ]
    details = [record.get(name) for name in _TOLD]
    if isinstance(dropped := record.get("dropped"), dict):
        details += [f"{rule} {packets}" for rule, packets in dropped.items()]
    if record.get("event") == "policy":
        details += [record.get("scope_hash"), record.get("actors_hash")]
    if record.get("event") == "authentication":  # nobody is known: where from, and whose key it is not
        details += [record.get("client"), record.get("id")]
    details += [" ".join(pinned[:4]), "…" if len(pinned) > 4 else ""]
    what = " ".join(str(part) for part in details if part)
    cells = (record["seq"], str(record.get("time", ""))[:19], record.get("event"), record.get("actor"))
    return tuple(_cell(part) for part in (*cells, record.get("tool"), what, record.get("run_id")))


def _cell(value: object) -> str:
    """One line that can do nothing to a terminal: the log may have been written by somebody else."""
    from mcp_server.model.untrusted import escape

    text = str("" if value is None else value)
    return escape(text[:300]).replace("\n", "\\x0a") + ("…" if len(text) > 300 else "")


@app.command("export")
def export(
    form: Annotated[Format, typer.Option("--format", help="ocsf (API Activity) or ecs.")],
    since: Since = None,
    actor: OfActor = None,
    decision: OfDecision = None,
    run: OfRun = None,
    as_json: Json = False,
) -> None:
    """Write records as JSON lines in a form that collectors read."""
    from mcp_server.audit.export import FORMATS
    from mcp_server.audit.select import records

    with reporting(as_json=as_json), _reading() as folder:
        make = FORMATS[form.value]
        unreadable = 0
        for record in records(folder, _filter(since, actor, decision, run)):
            if "unreadable" in record:
                unreadable += 1
                continue
            sys.stdout.write(json.dumps(make(record), separators=(",", ":")) + "\n")
        if unreadable:
            raise NetworkToolsError(f"{unreadable} lines are no records and were left out", code="audit_broken")


@app.command("checkpoint")
def checkpoint(as_json: Json = False) -> None:
    """Seal the log now: sign a checkpoint of all records, ship it, and print the newest one."""
    from mcp_server.audit.checkpoint import Sealer
    from mcp_server.config import get_config
    from mcp_server.server.startup import prepare_state_dir

    with reporting(as_json=as_json), _reading() as folder:
        prepare_state_dir(get_config())  # key and checkpoints of somebody else would stop the server's own sealing
        Sealer(folder).seal(get_config().audit.ship_to)
        notes = _notes(folder)
        if not notes:
            raise NotFoundError("there is no record to seal yet", hint="Every call that is made leaves one.")
        if as_json:
            print_json({"checkpoint": notes[-1].whole, "size": notes[-1].size, "root": notes[-1].root.hex()})
        else:
            print(notes[-1].whole, end="")


@app.command("show-key")
def show_key(as_json: Json = False) -> None:
    """Print the public key that the log's checkpoints verify with; keep it elsewhere."""
    from mcp_server.audit.keys import public_key

    with reporting(as_json=as_json), _reading() as folder:
        key = public_key(folder)
        if as_json:
            print_json({"public_key": str(key), "name": key.name})
        else:
            print(key)
