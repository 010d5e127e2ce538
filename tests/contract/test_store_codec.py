"""Records to JSON and back, without loss."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.errors import ArgumentError
from mcp_server.model.codec import host_from_dict, run_from_dict, to_dict
from mcp_server.model.host import ExtraPorts, Host, OsMatch, Port, Script, Service
from mcp_server.model.run import Risk
from tests.support.store_facts import ended, full_host, full_run, make_run

_TEXT = st.text(max_size=8)
_NUMBER = st.integers(0, 1 << 40)
_SCRIPTS = st.lists(st.builds(Script, _TEXT, _TEXT), max_size=2).map(tuple)
_TEXTS = st.lists(_TEXT, max_size=2).map(tuple)
_SERVICE = st.builds(Service, _TEXT, _TEXT, _TEXT, _TEXT, _TEXT, _TEXT, _TEXT, _TEXT, st.integers(0, 10), _TEXTS)
_PORT = st.builds(Port, _TEXT, st.integers(0, 65535), _TEXT, _TEXT, st.none() | _SERVICE, _SCRIPTS)
_HOST = st.builds(
    Host,
    address=_TEXT,
    state=_TEXT,
    reason=_TEXT,
    names=_TEXTS,
    mac=_TEXT,
    vendor=_TEXT,
    ports=st.lists(_PORT, max_size=3).map(tuple),
    extra_ports=st.lists(st.builds(ExtraPorts, _TEXT, _NUMBER, _TEXT), max_size=2).map(tuple),
    os=st.lists(st.builds(OsMatch, _TEXT, st.integers(0, 100), _TEXTS), max_size=2).map(tuple),
    scripts=_SCRIPTS,
    timed_out=st.booleans(),
    distance=st.none() | st.integers(0, 255),
    rtt_ms=st.none() | st.floats(0, 1e6),
)


@given(_HOST)
def test_any_host_survives_json(host: Host) -> None:
    assert host_from_dict(json.loads(json.dumps(to_dict(host)))) == host


@pytest.mark.parametrize("run", [full_run("r1"), make_run("r2"), make_run("r3", coverage=None, correlation_id="")])
def test_a_run_survives_json(run: object) -> None:
    assert run_from_dict(json.loads(json.dumps(to_dict(run)))) == run


@pytest.mark.parametrize("risk", list(Risk))
def test_a_risk_is_its_name(risk: Risk) -> None:
    encoded = to_dict(make_run("r1", risk=risk))
    assert encoded["risk"] == str(risk)
    assert run_from_dict(encoded).risk is risk


def test_what_is_empty_is_left_out_and_what_is_zero_is_not() -> None:
    assert to_dict(Host("10.0.0.1", "up")) == {"address": "10.0.0.1", "state": "up"}
    encoded = to_dict(make_run("r1"))
    assert encoded["outcome"] == "running"
    assert "counts" not in encoded
    assert encoded["coverage"]["complete"] is False
    assert encoded["coverage"]["looked_at"] == 0
    assert "ended" not in encoded
    assert "stderr" not in encoded
    assert to_dict(ended(make_run("r1")))["returncode"] == 0


def test_times_are_utc_text_that_sorts() -> None:
    zone = timezone(timedelta(hours=2))
    run = make_run("r1", started=datetime(2025, 1, 31, 1, 30, tzinfo=zone))
    assert to_dict(run)["started"] == "2025-01-30T23:30:00.000000Z"
    assert run_from_dict(to_dict(run)).started == run.started
    with pytest.raises(ArgumentError, match="time zone"):
        to_dict(replace(run, started=datetime(2025, 1, 1)))  # noqa: DTZ001 - the point of the test


@pytest.mark.parametrize("change", ["address", "state"])
def test_a_host_without_a_field_it_needs_is_refused(change: str) -> None:
    encoded = to_dict(full_host("10.0.0.1"))
    del encoded[change]
    with pytest.raises(ArgumentError, match=change):
        host_from_dict(encoded)


@pytest.mark.parametrize(
    ("field", "value"),
    [("outcome", "won"), ("risk", "huge"), ("started", "yesterday"), ("actor", {}), ("unknown", 1), ("raw", 5)],
)
def test_a_run_with_a_wrong_field_is_refused(field: str, value: object) -> None:
    with pytest.raises(ArgumentError, match="not a run"):
        run_from_dict({**to_dict(full_run("r1")), field: value})


def test_only_records_of_the_model_are_encoded() -> None:
    with pytest.raises(TypeError, match="object"):
        to_dict(object())
