"""``audit``: verifies, shows, exports and seals the audit log. No command needs a running server."""

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

app = typer.Typer(help="The audit log: verify, show, export, seal.", no_args_is_help=True)


class Decision(StrEnum):
    """The decision on a call."""

    ACCEPT = "accept"
    DENY = "deny"


class Format(StrEnum):
    """The formats of exported records."""

    OCSF = "ocsf"
    ECS = "ecs"


Since = Annotated[str | None, typer.Option(help="Only records since: 90m, 2h, 1d ago, or an ISO 8601 time.")]
OfActor = Annotated[str | None, typer.Option("--actor", help="Only records of this actor.")]
OfDecision = Annotated[Decision | None, typer.Option("--decision", help="Only records with this decision.")]
OfRun = Annotated[str | None, typer.Option("--run", help="Only records of this run.")]


@contextmanager
def _reading() -> Iterator[Path]:
    """Yield the folder of the log. Raises PlatformError for a file that cannot be read."""
    from mcp_server.config import get_config

    folder = get_config().state_dir
    try:
        yield folder
    except BrokenPipeError:
        raise
    except OSError as error:
        raise PlatformError(
            f"The audit log in {folder} cannot be read: {error.filename or ''} {error.strerror or error}.",
            hint="Run this command as the user that runs the server, with the same MCP_STATE_DIR.",
        ) from error


@app.command("verify")
def verify(
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="A copy of the checkpoints that is kept elsewhere: signed notes, or a system log that contains them."
        ),
    ] = None,
    public_key: Annotated[
        str | None, typer.Option(help="The public key of the log as 'audit show-key' prints it, or a file with it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify the whole log: chain, files and checkpoints. Exit 5 if it is broken, and print the first broken record."""
    from mcp_server.audit.verify import verify as verify_log

    with reporting(as_json=as_json), _reading() as folder:
        notes, copies = _notes(folder), _copies(checkpoint)
        key = _key(folder, public_key) if notes or copies else None
        # A system log may hold checkpoints of other servers. Only a key from elsewhere separates them from forged ones.
        others = [note for note in copies if key and public_key is not None and note.origin != key.name]
        if len(others) == len(copies):
            others = []
        report = verify_log(folder, [*notes, *(note for note in copies if note not in others)], key)
        if not report.size and report.broken is None:
            raise NotFoundError(
                f"There is no record in {folder}.", hint="Set MCP_STATE_DIR to the state folder of the server."
            )
        if report.broken is not None:
            where = f"{report.broken.file} line {report.broken.line}, " if report.broken.file else ""
            raise NetworkToolsError(
                f"{report.broken.kind.value}: {where}record {report.broken.seq}: {report.broken.detail}.",
                code="audit_broken",
                **_facts(report),
            )
        if as_json:
            copy = str(checkpoint) if checkpoint else None
            print_json({"ok": True, **_facts(report), "checkpoint": copy, "ignored": len(others)})
            return
        print(
            f"ok: {report.size} records in {report.files} files, the last from {report.last_time or 'an unknown time'}"
        )
        print(f"root {report.root}")
        if report.repairs:
            print(f"{report.repairs} lines that a crash had truncated were repaired")
        if report.backwards:
            print(f"{report.backwards} records are older than the record before them (the clock was set back)")
        print(f"{report.checked} checkpoints match; they cover {report.sealed} of {report.size} records")
        if others:
            print(f"{len(others)} checkpoints of other logs were ignored")
        if checkpoint is None:
            print("Only checkpoints kept elsewhere reveal a log that was truncated or rewritten: --checkpoint FILE.")


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
    """The checkpoints in a copy. Raises ArgumentError if it has none."""
    from mcp_server.audit.notes import find_notes

    if checkpoint is None:
        return []
    try:
        found = find_notes(checkpoint.read_text("utf-8", "replace"))
    except OSError as error:
        raise ArgumentError(
            f"{checkpoint} cannot be read: {error.strerror}.", hint="Use a file that this user can read."
        ) from error
    if not found:
        raise ArgumentError(f"There is no checkpoint in {checkpoint}.", hint="Use a file with signed notes.")
    return found


def _key(folder: Path, given: str | None) -> VerifierKey:
    from mcp_server.audit.keys import public_key
    from mcp_server.audit.notes import VerifierKey

    if given is None:
        try:
            return public_key(folder)
        except NotFoundError as error:
            raise NotFoundError(
                error.message, hint="Use --public-key with the key that 'audit show-key' printed earlier."
            ) from None
    if "+" not in given:
        try:
            given = Path(given).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentError(
                "--public-key is neither a key nor a readable file.",
                hint="Use the line that 'mcp-network-tools audit show-key' prints, or a file with it.",
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
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="The most records to show.")] = 50,
    as_json: Json = False,
) -> None:
    """Show the last records, oldest first. With --json, all fields are shown."""
    from mcp_server.audit.select import newest

    with reporting(as_json=as_json), _reading() as folder:
        found = newest(folder, _filter(since, actor, decision, run), limit)
        if as_json:
            print(
                json.dumps({"records": found}, indent=2)
            )  # ASCII only, so that control characters in a record stay escaped
            return
        print_table(("SEQ", "TIME", "EVENT", "ACTOR", "TOOL", "WHAT", "RUN"), [_row(record) for record in found])


_EVENT_FIELDS = ("decision", "outcome", "alarm", "action", "result", "name", "code", "reason")
"""The fields that say what happened, in the order in which they are shown."""


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
    details = [record.get(name) for name in _EVENT_FIELDS]
    if isinstance(dropped := record.get("dropped"), dict):
        details += [f"{rule} {packets}" for rule, packets in dropped.items()]
    if record.get("event") == "policy":
        details += [record.get("scope_hash"), record.get("actors_hash")]
    if (
        record.get("event") == "authentication"
    ):  # there is no actor: show the address, and the id of the key if one was named
        details += [record.get("client"), record.get("id")]
    details += [" ".join(pinned[:4]), "…" if len(pinned) > 4 else ""]
    what = " ".join(str(part) for part in details if part)
    cells = (record["seq"], str(record.get("time", ""))[:19], record.get("event"), record.get("actor"))
    return tuple(_cell(part) for part in (*cells, record.get("tool"), what, record.get("run_id")))


def _cell(value: object) -> str:
    """The value on one line, safe for a terminal. A record may hold text of an attacker."""
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
    """Print records as JSON lines in a format that log collectors read."""
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
            raise NetworkToolsError(f"{unreadable} lines are not records and were left out.", code="audit_broken")


@app.command("checkpoint")
def checkpoint(as_json: Json = False) -> None:
    """Seal the log now: sign a checkpoint of all records, send it to audit.ship_to, and print it."""
    from mcp_server.audit.checkpoint import Sealer
    from mcp_server.config import get_config
    from mcp_server.server.startup import prepare_state_dir

    with reporting(as_json=as_json), _reading() as folder:
        prepare_state_dir(get_config())  # a file that belongs to another user would prevent the server from sealing
        Sealer(folder).seal(get_config().audit.ship_to)
        notes = _notes(folder)
        if not notes:
            raise NotFoundError("There is no record to seal yet.", hint="Make a call first. Every call adds records.")
        if as_json:
            print_json({"checkpoint": notes[-1].whole, "size": notes[-1].size, "root": notes[-1].root.hex()})
        else:
            print(notes[-1].whole, end="")


@app.command("show-key")
def show_key(as_json: Json = False) -> None:
    """Print the public key that verifies the checkpoints of the log. Keep a copy on another machine."""
    from mcp_server.audit.keys import public_key

    with reporting(as_json=as_json), _reading() as folder:
        key = public_key(folder)
        if as_json:
            print_json({"public_key": str(key), "name": key.name})
        else:
            print(key)
