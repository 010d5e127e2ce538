"""The ``audit`` commands: a log that calls wrote is verified, shown, exported and tampered with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest

from mcp_server.audit.checkpoint import CHECKPOINTS, Sealer
from mcp_server.audit.keys import KEY, public_key
from mcp_server.audit.writer import AuditWriter
from mcp_server.config.sections import AuditConfig
from mcp_server.errors import ExitCode
from tests.support.audit import change, rechain, records_of
from tests.support.cli import Done, batch, run
from tests.support.interfaces import environment

Audit = Callable[..., Awaitable[Done]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a state folder with the records of a scan and of a denied scan, and a checkpoint."""
    state = tmp_path_factory.mktemp("audit") / "state"
    env = environment(state)
    scan = ("call", "nmap", "mode=ports", "ports=1-3")
    assert run(*scan, "target=127.0.0.1", env=env).returncode == 0
    assert run(*scan, "target=8.8.8.8", env=env).returncode == ExitCode.REFUSED
    assert run("audit", "checkpoint", env=env).returncode == 0
    return state


@pytest.fixture
def state(written: Path, tmp_path: Path) -> Path:
    """Return a copy to tamper with."""
    return Path(shutil.copytree(written, tmp_path / "state"))


@pytest.fixture
def audit(state: Path) -> Audit:
    """Run an ``audit`` command on the copy."""

    async def command(*words: str) -> Done:
        (done,) = await batch(environment(state), ["audit", *words])
        return done

    return command


async def body(audit: Audit, *words: str) -> tuple[int, dict[str, Any]]:
    status, out, err = await audit(*words, "--json")
    assert err == ""
    return status, json.loads(out)


def test_records_of_calls_are_valid_against_the_schema(written: Path) -> None:
    schema = json.loads(files("mcp_server.audit").joinpath("record.schema.json").read_text())
    records = records_of(written)
    kinds = [(record["event"], record.get("decision") or record.get("outcome")) for record in records]
    calls = [kind for kind in kinds if kind[0] in {"decision", "end"}]
    assert calls == [("decision", "accept"), ("end", "completed"), ("decision", "deny")]
    for record in records:
        jsonschema.Draft202012Validator(schema).validate(record)


async def test_an_untouched_log_verifies(audit: Audit, written: Path, tmp_path: Path) -> None:
    status, report = await body(audit, "verify")
    size = len(records_of(written))
    assert (status, report["ok"], report["size"], report["sealed"]) == (0, True, size, size)
    assert report["last_time"] == records_of(written)[-1]["time"]
    key = (await audit("show-key"))[1]
    assert key == f"{public_key(written)}\n"
    (tmp_path / "key").write_text(key)
    shutil.copy(written / CHECKPOINTS, tmp_path / "kept")
    for given in (key.strip(), str(tmp_path / "key")):
        status, out, err = await audit("verify", "--checkpoint", str(tmp_path / "kept"), "--public-key", given)
        assert (status, err) == (0, "")
        assert out.startswith(f"ok: {size} records in 1 files, the last from 20")
        assert f"cover {size} of {size} records" in out


async def test_an_edited_log_fails_with_file_line_and_record(audit: Audit, state: Path) -> None:
    change(state / "audit.jsonl", 0, actor="somebody else")
    status, out, err = await audit("verify")
    assert (status, out) == (ExitCode.TOOL_FAILED, "")
    assert err.startswith("audit_broken: edited: audit.jsonl line 1, record 0: ")
    status, reply = await body(audit, "verify")
    assert status == ExitCode.TOOL_FAILED
    details = reply["error"]["details"]
    assert (details["kind"], details["file"], details["line"], details["seq"]) == ("edited", "audit.jsonl", 1, 0)


async def test_a_log_written_again_with_a_new_key_fails_against_kept_checkpoints(
    audit: Audit, state: Path, tmp_path: Path
) -> None:
    key = str(public_key(state))
    shutil.copy(state / CHECKPOINTS, tmp_path / "kept")
    change(state / "audit.jsonl", 0, actor="somebody else")
    rechain(state)
    for name in (KEY, CHECKPOINTS, "audit.tree"):
        (state / name).unlink()
    assert (await audit("checkpoint"))[0] == 0
    assert (await audit("verify"))[0] == 0, "nothing in the folder itself shows this"
    kept = ("--checkpoint", str(tmp_path / "kept"))
    status, reply = await body(audit, "verify", *kept, "--public-key", key)
    assert (status, reply["error"]["details"]["kind"]) == (ExitCode.TOOL_FAILED, "rechained")
    assert (await body(audit, "verify", "--public-key", key))[1]["error"]["details"]["kind"] == "forged"


async def test_unusable_options_of_verify_are_refused_with_a_hint(audit: Audit, state: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for words, code in (
        (("--checkpoint", str(tmp_path / "missing")), "invalid_arguments"),
        (("--checkpoint", str(tmp_path / "empty")), "invalid_arguments"),
        (("--public-key", str(tmp_path / "missing")), "invalid_arguments"),
        (("--public-key", "a+b+c"), "invalid_arguments"),
    ):
        status, reply = await body(audit, "verify", *words)
        assert (status, reply["error"]["code"]) == (ExitCode.USAGE, code), words
        assert reply["error"]["hint"]
    (state / KEY).unlink()
    status, reply = await body(audit, "verify")
    assert (status, reply["error"]["code"]) == (ExitCode.NOT_FOUND, "not_found")
    assert "--public-key" in reply["error"]["hint"]


async def test_an_unreadable_log_is_an_error_of_the_host(audit: Audit, state: Path) -> None:
    (state / "audit.jsonl").unlink()
    (state / "audit.jsonl").mkdir()
    for command in (["verify"], ["show"], ["export", "--format", "ecs"], ["checkpoint"]):
        status, reply = await body(audit, *command)
        assert (status, reply["error"]["code"]) == (ExitCode.ENVIRONMENT, "permission_denied"), command


async def test_records_are_shown_and_selected(audit: Audit, written: Path) -> None:
    status, out, _ = await audit("show")
    lines = out.splitlines()
    assert status == 0
    assert lines[0].split() == ["SEQ", "TIME", "EVENT", "ACTOR", "TOOL", "WHAT", "RUN"]
    assert len(lines) == 1 + len(records_of(written))
    assert "target_out_of_scope" in out
    for words, decisions in (
        (["--decision", "deny"], ["deny"]),
        (["--decision", "accept", "--since", "1h"], ["accept"]),
        (["--since", "2100-01-01"], []),
        (["--actor", "nobody"], []),
        (["--run", "r_none"], []),
    ):
        found = (await body(audit, "show", *words))[1]["records"]
        assert [record.get("decision") for record in found] == decisions, words
    assert len((await body(audit, "show", "--limit", "1"))[1]["records"]) == 1
    assert (await body(audit, "show", "--since", "x"))[0] == ExitCode.USAGE


@pytest.mark.parametrize(
    ("event", "fields", "shown"),
    [
        ("alarm", {"alarm": "guard_drops", "dropped": {"source4": 1, "target4": 3}}, "guard_drops source4 1 target4 3"),
        ("alarm", {"alarm": "guard_lost", "reason": "it is gone"}, "guard_lost it is gone"),
        ("admin", {"action": "reload", "result": "kept", "code": "config_invalid"}, "reload kept config_invalid"),
        ("lookup", {"name": "a.lab.internal"}, "a.lab.internal"),
        ("policy", {"scope_hash": "a1b2"}, "a1b2"),
        ("policy", {"scope_hash": "a1b2", "actors_hash": "c3d4"}, "a1b2 c3d4"),
        (
            "authentication",
            {
                "decision": "deny",
                "code": "unauthorized",
                "reason": "key wrong",
                "client": "127.0.0.9",
                "id": "0a1b2c3d4e5f",
            },
            "deny unauthorized key wrong 127.0.0.9 0a1b2c3d4e5f",
        ),
        ("end", {"outcome": "failed", "code": "timeout", "scope_hash": "a1b2"}, "failed timeout"),
    ],
)
async def test_a_row_shows_what_happened_for_every_kind_of_record(
    audit: Audit, state: Path, event: str, fields: dict[str, Any], shown: str
) -> None:
    AuditWriter(state).append(
        event, {"actor": "joe", "tool": "nmap", "run_id": "r_9"} | fields, AuditConfig().max_file_size
    )
    _, out, _ = await audit("show", "--limit", "1")
    assert out.splitlines()[1].split(None, 3)[3].split() == ["joe", "nmap", *shown.split(), "r_9"]


async def test_hostile_records_do_not_act_on_a_terminal(audit: Audit, state: Path) -> None:
    hostile = "\x1b]0;owned\x07\u202e\n\U000e0041\ud800"
    fields = {"actor": hostile, "tool": hostile, "reason": hostile, "client": hostile, "decision": "deny"}
    AuditWriter(state).append("decision", fields, AuditConfig().max_file_size)
    with (state / "audit.jsonl").open("ab") as file:
        file.write(b"\x1b[2J\xff junk\n")
    for words in (["show"], ["show", "--json"], ["export", "--format", "ecs"], ["export", "--format", "ocsf"]):
        _, out, err = await audit(*words)
        assert out
        text = (out + err).replace("\n", "").replace("…", "")
        assert text.isprintable(), words
        assert not {"\u202e", "\U000e0041"} & set(text)
    _, out, _ = await audit("show")
    assert "unreadable" in out
    assert "\\x1b]0;owned\\x07\\u202e\\x0a" in out


async def test_an_export_is_json_lines(audit: Audit, written: Path, state: Path) -> None:
    for form, key in (("ocsf", "class_uid"), ("ecs", "ecs")):
        status, out, err = await audit("export", "--format", form)
        events = [json.loads(line) for line in out.splitlines()]
        assert (status, err, len(events)) == (0, "", len(records_of(written)))
        assert all(key in event for event in events)
    _, out, _ = await audit("export", "--format", "ecs", "--decision", "deny")
    assert len(out.splitlines()) == 1
    assert (await audit("export", "--format", "xml"))[0] == ExitCode.USAGE
    with (state / "audit.jsonl").open("ab") as file:
        file.write(b"junk\n")
    status, out, err = await audit("export", "--format", "ecs")
    assert status == ExitCode.TOOL_FAILED, "a skipped line must be reported"
    assert len(out.splitlines()) == len(records_of(written))
    assert err.startswith("audit_broken: 1 lines are not records")


async def test_commands_on_an_empty_state_folder(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o700)
    commands = (["verify"], ["show"], ["export", "--format", "ecs"], ["checkpoint"], ["show-key"])
    done = await batch(environment(empty), *(["audit", *words] for words in commands))
    assert [status for status, _, _ in done] == [ExitCode.NOT_FOUND, 0, 0, ExitCode.NOT_FOUND, ExitCode.NOT_FOUND]
    assert done[0][2].startswith("not_found: There is no record in "), "an empty log must fail verification"


async def test_a_kept_key_distinguishes_checkpoints_of_other_logs(
    audit: Audit, state: Path, written: Path, tmp_path: Path
) -> None:
    """Two servers may ship to one system log. Only a key that was kept says which checkpoints belong to which log."""
    other, kept = tmp_path / "other", tmp_path / "kept"
    other.mkdir(mode=0o700)
    AuditWriter(other).append("policy", {"scope_hash": "a1"}, AuditConfig().max_file_size)
    theirs = Sealer(other).seal("")
    assert theirs is not None
    kept.write_text((state / CHECKPOINTS).read_text() + theirs)
    given = ("--checkpoint", str(kept), "--public-key", str(public_key(written)))
    status, report = await body(audit, "verify", *given)
    assert (status, report["ok"], report["ignored"]) == (0, True, 1)
    assert "1 checkpoints of other logs were ignored" in (await audit("verify", *given))[1]
    details = (await body(audit, "verify", *given[:2]))[1]["error"]["details"]
    assert details["kind"] == "forged", "a forger could leave the true checkpoints beside the forged ones"
    kept.write_text(theirs)
    assert (await body(audit, "verify", *given))[1]["error"]["details"]["kind"] == "forged", (
        "no checkpoint of this log is left"
    )
    kept.write_text((written / CHECKPOINTS).read_text() + theirs)
    change(state / "audit.jsonl", 0, actor="somebody else")
    rechain(state)
    assert (await body(audit, "verify", *given))[1]["error"]["details"]["kind"] == "rechained"


async def test_a_pipe_instead_of_the_checkpoints_file_is_refused_at_once(audit: Audit, state: Path) -> None:
    (state / CHECKPOINTS).unlink()
    os.mkfifo(state / CHECKPOINTS)
    status, _, err = await audit("verify")
    assert status == ExitCode.ENVIRONMENT
    assert "it is not a regular file" in err


async def test_only_the_user_of_the_server_may_sign_a_checkpoint(audit: Audit, state: Path) -> None:
    """The server could not read files that root created, and would sign no more checkpoints."""
    before = {path.name: path.read_bytes() for path in state.glob("audit*")}
    os.chown(state, 61400, 61400)
    status, _, err = await audit("checkpoint")
    assert status == ExitCode.ENVIRONMENT
    assert "belongs to another user" in err
    assert {path.name: path.read_bytes() for path in state.glob("audit*")} == before


async def test_checkpoints_are_shipped_and_verified_from_a_system_log(state: Path, tmp_path: Path) -> None:
    """The copy elsewhere shows that the end was cut off; tests/unit/test_audit_checkpoint.py tests the system log."""
    kept = tmp_path / "kept"
    env = {**environment(state), "MCP_AUDIT_SHIP_TO": str(kept)}
    AuditWriter(state).append("policy", {"scope_hash": "a1"}, AuditConfig().max_file_size)
    ((status, _, _),) = await batch(env, ["audit", "checkpoint"])
    assert status == 0
    lines = (state / "audit.jsonl").read_bytes().splitlines(keepends=True)
    (state / "audit.jsonl").write_bytes(b"".join(lines[:-1]))
    (state / CHECKPOINTS).unlink()
    verify = ["audit", "verify", "--json"]
    cut, found = await batch(env, verify, [*verify, "--checkpoint", str(kept)])
    assert cut[0] == 0, "without the copy nothing shows that the end is missing"
    assert json.loads(found[1])["error"]["details"]["kind"] == "truncated"
