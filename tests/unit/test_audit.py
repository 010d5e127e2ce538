"""Records of the audit log: synced lines in canonical form, bounded, without secrets, valid against their schema."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from datetime import datetime, timedelta
from enum import IntEnum
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_server.audit import AuditLog, writer
from mcp_server.audit.records import FIRST_PREV, RECORD_LIMIT, canonical, cleaned, escape_values
from mcp_server.audit.verify import verify
from tests.support.audit import records_of

DECISION = {
    "decision": "accept",
    "run_id": "r_1",
    "correlation_id": "c_1",
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "actor": "agent",
    "interface": "stdio",
    "client": "a client 1.0",
    "tool": "nmap",
    "arguments": {"target": "a.lab.internal", "ports": ["22"]},
    "targets": [
        {
            "given": "a.lab.internal",
            "pinned": ["10.1.2.3"],
            "resolution": {
                "name": "a.lab.internal",
                "addresses": ["10.1.2.3"],
                "aliases": ["b.lab.internal."],
                "ttl": 60,
                "source": "10.1.0.1",
            },
        }
    ],
    "argv": ["/usr/bin/nmap", "-n", "10.1.2.3"],
    "binary": {"path": "/usr/bin/nmap", "realpath": "/usr/lib/nmap", "sha256": "0" * 64},
    "risk": "scan",
    "addresses": 1,
    "estimate": {"probes": 1, "seconds": 0.1},
    "reason": "allowed by 10.0.0.0/8",
    "scope_hash": "a1b2",
    "enforcement": "kernel",
    "executor": "here",
    "sandbox": {"tier": "pid-namespace", "files_confined": True},
    "ruleset": "0" * 64,
}
TERMS = {"scope_hash": "a1b2", "enforcement": "kernel"}
WHO = {"actor": "agent", "interface": "stdio", "client": "a client 1.0"}
END = {
    **TERMS,
    **WHO,
    "run_id": "r_1",
    "correlation_id": "c_1",
    "tool": "nmap",
    "outcome": "completed",
    "pid": 77,
    "returncode": 0,
    "code": None,
    "bytes": 1234,
    "raw": "f" * 64,
    "guard": {"ruleset": "0" * 64, "passed": 4, "dropped": {}},
}
DENIAL = {
    **{
        key: DECISION[key] for key in ("actor", "interface", "client", "tool", "arguments", "scope_hash", "enforcement")
    },
    "decision": "deny",
    "code": "target_out_of_scope",
    "reason": "8.8.8.8 is not in the scope",
}


def schema() -> jsonschema.Draft202012Validator:
    text = files("mcp_server.audit").joinpath("record.schema.json").read_text()
    jsonschema.Draft202012Validator.check_schema(json.loads(text))
    return jsonschema.Draft202012Validator(json.loads(text))


async def test_records_are_complete_json_lines_in_a_file_with_mode_0600(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    await asyncio.gather(*(log.append("decision", number=number) for number in range(50)))
    records = records_of(tmp_path)
    assert sorted(record["number"] for record in records) == list(range(50))
    assert [record["time"] for record in records if not record["time"].endswith("+00:00")] == []
    assert log.path.stat().st_mode & 0o777 == 0o600


async def test_each_record_holds_the_hash_of_the_previous_one_and_has_a_receipt(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    receipts = [await log.append("decision", number=number) for number in range(3)]
    lines = log.path.read_bytes().splitlines()
    assert [receipt.seq for receipt in receipts] == [0, 1, 2]
    assert [receipt.hash for receipt in receipts] == [hashlib.sha256(line).hexdigest() for line in lines]
    assert [json.loads(line)["prev"] for line in lines] == [FIRST_PREV, receipts[0].hash, receipts[1].hash]
    assert lines[0] == canonical(json.loads(lines[0]))
    # A later process continues the chain.
    assert (await AuditLog(tmp_path).append("end")).seq == 3
    assert verify(tmp_path).size == 4


async def test_the_schema_describes_every_field_and_no_other(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.path.write_bytes(b'{"event":"decision","an":"earlier version"}\n')
    await log.append("decision", **DECISION)
    with log.path.open("ab") as file:
        file.write(b'{"torn')
    await log.append("end", **END)
    await log.append("decision", **DENIAL)
    await log.append("alarm", alarm="guard_drops", run_id="r_1", tool="nmap", dropped={"egress": 2}, **WHO, **TERMS)
    await log.append("policy", actors_hash="0" * 64, **TERMS)
    await log.append("lookup", name="a.lab.internal", **WHO, **TERMS)
    await log.append("admin", action="tool.disable", tool="nmap", result="done", **WHO, **TERMS)
    await log.append("decision", **DENIAL | {"code": "rate_limited", "repeats": 12})
    who = {"interface": "http", "client": "192.0.2.1", "code": "unauthorized", "reason": "key wrong", "id": "0" * 12}
    await log.append("authentication", decision="deny", **who, **TERMS)
    records = records_of(tmp_path)
    events = ["genesis", "decision", "repair", "end", "decision", "alarm", "policy", "lookup"]
    events += ["admin", "decision", "authentication"]
    assert [record["event"] for record in records] == events
    validator = schema()
    for record in records:
        validator.validate(record)
    used = {name for record in records for name in record}
    assert used == set(validator.schema["properties"]), (
        "the schema has a field that no record has, or a record has a field that it lacks"
    )
    for name in ("decision", "run_id", "argv"):
        broken = {key: value for key, value in records[1].items() if key != name}
        assert not validator.is_valid(broken), name
    assert not validator.is_valid({**records[1], "surprise": 1})
    assert not validator.is_valid({**records[1], "prev": "00"})


def test_arguments_are_bounded_and_escaped() -> None:
    shown = escape_values({"target": "a\x1b[31m\n" * 5000, "ports": ["1"] * 500, "n\x00": object(), "ok": True})
    assert len(shown["target"]) < 4200
    assert "\x1b" not in shown["target"]
    assert len(shown["ports"]) == 65
    assert shown["ports"][-1] == "…[+436]"
    assert "n\\x00" in shown
    assert escape_values(dict.fromkeys(map(str, range(70)), 1))["…"] == "[+6]"
    json.dumps(shown)


class Color(IntEnum):
    RED = 1


HOSTILE: dict[str, Any] = {
    "control": "a\x00\x1b]0;title\x07\r\n\u202e\U000e0041\udcff",
    "newline": "\n",
    "json": '"},{"event":"decision","decision":"accept"',
    "nan": math.nan,
    "infinity": -math.inf,
    "big": 10**5000,
    "bytes": b"\xff\x00",
    "an object": object(),
    "set": {1},
    "color": Color.RED,
    "time": 1,
    "deep": None,
    "": "",
    "\ud800": 1,
}


async def test_hostile_values_stay_inside_one_line(tmp_path: Path) -> None:
    deep: Any = "end"
    for _ in range(5000):
        deep = [deep]
    log = AuditLog(tmp_path)
    await log.append("decision", arguments={**HOSTILE, "deep": deep}, **{"a name": "x\ny", "\x1b": 1})
    data = log.path.read_bytes()
    assert data.count(b"\n") == 1
    assert data.isascii()
    assert data[:-1].decode().isprintable()
    (record,) = records_of(tmp_path)
    assert record["event"] == "decision"
    assert "decision" not in record
    assert record["arguments"]["control"] == HOSTILE["control"], "a value must be recorded unchanged"
    assert (record["arguments"]["nan"], record["arguments"]["infinity"]) == ("nan", "-inf")
    assert record["arguments"]["big"] == f"an integer of {(10**5000).bit_length()} bits"
    assert verify(tmp_path).broken is None


any_text = st.text(st.characters(exclude_categories=()) | st.sampled_from("\ud800\udcff\ue000"), max_size=8)
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=20,
)


@given(json_like)
@settings(max_examples=300)
def test_every_value_has_exactly_one_canonical_form(value: object) -> None:
    line = canonical({"value": cleaned(value)})
    assert canonical(json.loads(line)) == line


async def test_a_huge_record_is_cut_with_its_size_and_hash(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    argv = [f"{number:08d}" for number in range(200_000)]
    text = "t" * 10_000_000
    await log.append("decision", argv=argv, reason=text, run_id="r_1")
    (line,) = log.path.read_bytes().splitlines()
    assert len(line) <= RECORD_LIMIT
    record = json.loads(line)
    whole = json.dumps(argv, separators=(",", ":")).encode()
    assert record["argv"] == {"omitted_bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
    assert record["reason"].endswith("…[+9934464]")
    assert record["run_id"] == "r_1"


SECRET = "hunter2-correct-horse"


@pytest.mark.parametrize(
    "value",
    [
        {"password": SECRET},
        {"deep": [{"apiKey": SECRET}]},
        {"headers": {"Authorization": f"Basic {SECRET}", "Cookie": SECRET, "X-Auth-Token": [SECRET]}},
        {"api_key": {"nested": SECRET}},
        {"argv": ["tool", "--password", SECRET, "10.0.0.1"]},
        {"argv": ["tool", f"--token={SECRET}"]},
        {"extra_args": f"-sV --api-key {SECRET}"},
        {"extra_args": f"--script-args http.password={SECRET},x=1"},
        {"header": f"Authorization: Bearer {SECRET}"},
        {"text": f"Bearer {SECRET}"},
        {"target": f"https://user:{SECRET}@10.0.0.1/"},
        {"target": f"https://user:a@b{SECRET}@10.0.0.1/"},
        {"target": f"https://10.0.0.1/?key={SECRET}&x=1"},
        {"json": f'{{"client_secret": "{SECRET}"}}'},
        {"community": SECRET},
        *(
            {name: SECRET}
            for name in ("smbpass", "mysqlpass", "dbPass", "pass", "wpa_psk", "jwt", "privkey", "otp", "totp")
        ),
        {"extra_args": f"--script-args smbuser=a,smbpass={SECRET},mysqlpass={SECRET}"},
        {"extra_args": f"--privkey {SECRET} --psk={SECRET}"},
        {"argv": ["tool", "--smb-pass", SECRET]},
        {"json": f'{{"jwt": "{SECRET}", "otp": "{SECRET}"}}'},
    ],
    ids=str,
)
async def test_a_record_holds_no_secret(tmp_path: Path, value: dict[str, Any]) -> None:
    log = AuditLog(tmp_path)
    await log.append("decision", arguments=value, **value)
    text = log.path.read_text()
    assert SECRET not in text
    assert text.count("***") >= 2


def test_values_that_are_not_secrets_are_kept() -> None:
    plain = {
        "scripts": ["ssl-cert", "ssh-hostkey", "http-title"],
        "argv": ["/usr/bin/nmap", "-n", "-p", "22", "10.0.0.1"],
        "url": "http://10.0.0.1:8080/keys?page=1",
        "risk": "scan",
        "password": "",
        "bypass": "bypass=yes compass: north",
        "compass": "--passive 10.0.0.1 --bypass 10.0.0.2",
        "cotp": "cotp=1",
    }
    assert cleaned(plain) == plain


@pytest.mark.parametrize(
    "text", ["://x:", "-token", "authorization ", 'password="', "cookie:", "token" + " " * 99, "--key"]
)
def test_hiding_secrets_takes_time_in_proportion_to_the_text(text: str) -> None:
    started = time.perf_counter()
    cleaned(text * (1_000_000 // len(text)))
    assert time.perf_counter() - started < 2


async def test_a_field_with_a_reserved_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seq"):
        await AuditLog(tmp_path).append("decision", seq=5)
    assert not (tmp_path / "audit.jsonl").exists()


async def test_a_clock_that_goes_back_is_counted_and_is_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        hours = 0

        def now(self, zone: Any) -> datetime:
            self.hours -= 1
            return datetime(2026, 5, 5, tzinfo=zone) + timedelta(hours=self.hours)

    monkeypatch.setattr(writer, "datetime", Clock())
    log = AuditLog(tmp_path)
    for _ in range(4):
        await log.append("decision")
    report = verify(tmp_path)
    assert (report.broken, report.size, report.backwards) == (None, 4, 3)
    assert report.last_time == "2026-05-04T20:00:00.000000+00:00"
