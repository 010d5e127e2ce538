"""Export: OCSF events that are valid against the published schema, ECS documents, and the selection of records."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest

from mcp_server.audit.export import to_ecs, to_ocsf
from mcp_server.audit.select import RecordFilter, newest, read_since, records
from mcp_server.errors import ArgumentError
from tests.support.audit import write_log
from tests.unit.test_audit import DECISION, DENIAL, END

DATA = Path(__file__).resolve().parents[1] / "data" / "ocsf"
TIME = "2026-05-05T12:00:00.123456+00:00"


def record(event: str, **fields: Any) -> dict[str, Any]:
    return {"seq": 7, "prev": "0" * 64, "time": TIME, "event": event, **fields}


RECORDS = {
    "accept": record("decision", **DECISION),
    "deny": record("decision", **DENIAL),
    "end": record("end", **END),
    "failed": record("end", run_id="r_1", outcome="failed", code="timeout"),
    "alarm": record("alarm", alarm="guard_drops", run_id="r_1", dropped={"egress": 2}),
    "policy": record("policy", scope_hash="a1"),
    "repair": record("repair", torn="", torn_bytes=1, torn_sha256="0" * 64),
    "bare": record("decision"),
    "odd": record("decision", targets="x", argv=7, binary=[], decision=3, arguments=None, code=4, pid="x"),
    "no time": {"seq": 1, "prev": "0" * 64, "event": None},
}


@pytest.fixture(scope="module")
def ocsf() -> jsonschema.Draft202012Validator:
    """The schema of API Activity in OCSF 1.5.0 with the profiles security_control and trace."""
    return jsonschema.Draft202012Validator(
        json.loads(gzip.decompress((DATA / "api_activity-1.5.0.json.gz").read_bytes()))
    )


@pytest.mark.parametrize("name", RECORDS)
def test_an_event_is_valid_against_the_published_schema(ocsf: jsonschema.Draft202012Validator, name: str) -> None:
    event = to_ocsf(RECORDS[name])
    ocsf.validate(event)
    assert event["type_uid"] == 600399
    assert json.loads(json.dumps(event["unmapped"])) == RECORDS[name], "the event must hold the whole record"


def test_the_published_schema_refuses_an_invalid_event(ocsf: jsonschema.Draft202012Validator) -> None:
    event = to_ocsf(RECORDS["accept"])
    assert not ocsf.is_valid({**event, "surprise": 1})
    for name in ("time", "actor", "api", "metadata", "src_endpoint"):
        assert not ocsf.is_valid({key: value for key, value in event.items() if key != name}), name


def test_an_ocsf_event_has_the_actor_the_operation_and_the_decision() -> None:
    accept, deny, alarm = (to_ocsf(RECORDS[name]) for name in ("accept", "deny", "alarm"))
    assert accept["actor"]["user"]["name"] == "agent"
    assert accept["api"]["operation"] == "nmap"
    assert accept["resources"] == [{"name": "10.1.2.3", "type": "network"}]
    assert accept["time"] == 1777982400123
    assert [each["action_id"] for each in (accept, deny, alarm)] == [1, 2, 3]
    assert [each["disposition_id"] for each in (accept, deny, alarm)] == [1, 2, 19]
    assert [each["severity_id"] for each in (accept, deny, alarm)] == [1, 3, 4]
    assert (deny["status_id"], deny["status_code"]) == (2, "target_out_of_scope")
    assert to_ocsf(RECORDS["end"])["actor"]["process"]["pid"] == 77


@pytest.mark.parametrize("name", RECORDS)
def test_an_ecs_document_of_any_record_is_json_with_the_fields_of_every_document(name: str) -> None:
    document = json.loads(json.dumps(to_ecs(RECORDS[name]), allow_nan=False))
    assert document["ecs"]["version"] == "8.17.0"
    assert document["mcp_network_tools"]["audit"] == RECORDS[name]
    assert document["event"]["kind"] in {"event", "alert"}
    assert document["event"]["outcome"] in {"success", "failure", "unknown"}
    assert set(document["event"]["type"]) <= {"allowed", "denied", "info"}


def test_an_ecs_document_has_the_actor_the_operation_and_the_decision() -> None:
    document = to_ecs(RECORDS["accept"])
    assert document["@timestamp"] == "2026-05-05T12:00:00.123456Z"
    assert document["user"] == {"name": "agent"}
    assert document["destination"] == {"address": "10.1.2.3", "ip": "10.1.2.3"}
    assert document["related"] == {"ip": ["10.1.2.3"]}
    assert document["process"]["args"] == DECISION["argv"]
    assert document["event"]["category"] == ["network", "process"]
    assert (document["event"]["type"], document["event"]["outcome"]) == (["allowed"], "success")
    denied = to_ecs(RECORDS["deny"])
    assert (denied["event"]["type"], denied["event"]["outcome"]) == (["denied"], "failure")
    network = {**RECORDS["accept"], "targets": [{"given": "x", "pinned": ["10.0.0.0/24"]}]}
    assert to_ecs(network)["destination"] == {"address": "10.0.0.0/24"}
    assert "related" not in to_ecs(network)


NOW = datetime(2026, 5, 5, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("30s", NOW - timedelta(seconds=30)),
        ("90m", NOW - timedelta(minutes=90)),
        ("2h", NOW - timedelta(hours=2)),
        ("1d", NOW - timedelta(days=1)),
        ("2w", NOW - timedelta(weeks=2)),
        ("2026-05-05T12:00", NOW),
        ("2026-05-05T14:00+02:00", NOW),
        ("2026-05-05", NOW - timedelta(hours=12)),
    ],
)
def test_a_time_or_an_age_is_parsed(text: str, time: datetime) -> None:
    assert read_since(text, NOW) == time


@pytest.mark.parametrize("text", ["", "yesterday", "-1h", "1y", "9999999d", "2026-13-01", "\u0661h", "999999w"])
def test_text_that_is_not_a_time_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(ArgumentError, match="not a time") as caught:
        read_since(text, NOW)
    assert "ISO 8601" in caught.value.hint


def test_records_are_selected_and_an_unreadable_line_is_reported(tmp_path: Path) -> None:
    write_log(tmp_path, 100, pad=1450)
    assert len(list(records(tmp_path, RecordFilter()))) == 100
    assert [each["number"] for each in newest(tmp_path, RecordFilter(), 3)] == [97, 98, 99]
    assert list(records(tmp_path, RecordFilter(since=datetime.now(UTC) + timedelta(hours=1)))) == []
    assert len(list(records(tmp_path, RecordFilter(since=datetime.now(UTC) - timedelta(hours=1))))) == 100
    for wanted in (RecordFilter(actor="x"), RecordFilter(decision="deny"), RecordFilter(run="r_1")):
        assert list(records(tmp_path, wanted)) == []
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b"a line\n")
    assert list(records(tmp_path, RecordFilter(actor="x"))) == [{"unreadable": "audit.jsonl line 21"}]


def test_a_filter_takes_records_that_meet_all_conditions() -> None:
    accept, deny = RECORDS["accept"], RECORDS["deny"]
    assert RecordFilter(actor="agent", decision="accept", run="r_1").takes(accept)
    assert not RecordFilter(decision="accept").takes(deny)
    assert RecordFilter(since=NOW).takes(accept)
    assert not RecordFilter(since=NOW + timedelta(seconds=1)).takes(accept)
    assert RecordFilter(since=NOW).takes(RECORDS["no time"]), "a record with an unreadable time must be selected"
