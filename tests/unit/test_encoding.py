"""The JSON form of runs and hosts: nothing is lost, empty fields are left out, and text of targets is set apart."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mcp_server.api.runs import run_record
from mcp_server.model.access import FULL_ACCESS
from mcp_server.model.encoding import decode, encode, encode_json
from mcp_server.model.host import ExtraPorts, Host, OsMatch, Port, Script, Service, ServiceText, VersionProbe
from mcp_server.model.run import Actor, Risk, Run
from tests.support.services import make_service
from tests.support.store_facts import ended, full_host, full_run, make_run

_TEXT = st.text(max_size=8)
_NUMBER = st.integers(0, 1 << 40)
_SCRIPTS = st.lists(st.builds(Script.of, _TEXT, _TEXT), max_size=2).map(tuple)
_TEXTS = st.lists(_TEXT, max_size=2).map(tuple)
_PROBE = st.builds(VersionProbe, _TEXT, _TEXT, _TEXT, _TEXT, _TEXT, _TEXT, _TEXTS)
_SERVICE = st.builds(Service, _TEXT, _TEXT, _TEXT, st.integers(0, 10), st.builds(ServiceText, _PROBE))
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
EVIL = "EVIL"


@given(_HOST)
def test_any_host_is_read_back_as_it_was(host: Host) -> None:
    assert decode(Host, encode_json(host)) == host
    assert json.loads(encode_json(host)) == encode(host)


@pytest.mark.parametrize("run", [full_run("r1"), make_run("r2"), make_run("r3", coverage=None, correlation_id="")])
def test_a_run_is_read_back_as_it_was(run: Run) -> None:
    assert decode(Run, encode_json(run)) == run


@pytest.mark.parametrize("risk", list(Risk))
def test_a_risk_is_written_as_its_name(risk: Risk) -> None:
    run = make_run("r1", risk=risk)
    assert encode(run)["risk"] == str(risk)
    assert decode(Run, encode_json(run)).risk is risk


def test_empty_fields_are_left_out() -> None:
    assert encode(Host("10.0.0.1", "up")) == {"address": "10.0.0.1", "state": "up"}
    encoded = encode(make_run("r1"))
    assert not {"ended", "returncode", "counts", "from_target", "raw", "error_code"} & encoded.keys()


def test_counts_and_verdicts_are_written_when_they_are_zero() -> None:
    encoded = encode(make_run("r1"))
    assert encoded["outcome"] == "running"
    assert encoded["coverage"]["complete"] is False
    assert encoded["coverage"]["looked_at"] == 0
    assert encode(ended(make_run("r1")))["returncode"] == 0


def test_the_permissions_of_an_actor_are_not_written() -> None:
    assert encode(make_run("r1", actor=Actor("alice", "cli", access=FULL_ACCESS)))["actor"] == {
        "name": "alice",
        "interface": "cli",
    }


def test_a_lone_surrogate_is_written_as_its_escape() -> None:
    run = make_run("r1", parameters={"target": "\ud800\0é"})
    assert decode(Run, encode_json(run)).parameters == {"target": "\\ud800\0é"}


@pytest.mark.parametrize("field", ["address", "state"])
def test_a_host_without_a_required_field_is_refused(field: str) -> None:
    encoded = encode(full_host("10.0.0.1"))
    del encoded[field]
    with pytest.raises(ValidationError, match=field):
        decode(Host, json.dumps(encoded))


@pytest.mark.parametrize(
    ("field", "value"),
    [("outcome", "won"), ("risk", "huge"), ("started", "yesterday"), ("actor", {}), ("raw", 5), ("returncode", "0")],
)
def test_a_run_with_a_wrong_value_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        decode(Run, json.dumps({**encode(full_run("r1")), field: value}))


def outside_from_target(value: Any) -> list[str]:
    """Every key, and every text that is not below a key ``from_target``."""
    if isinstance(value, dict):
        below = [text for key, item in value.items() if key != "from_target" for text in outside_from_target(item)]
        return [*value, *below]
    if isinstance(value, list):
        return [text for item in value for text in outside_from_target(item)]
    return [value] if isinstance(value, str) else []


def test_text_of_the_target_is_below_from_target_by_its_source() -> None:
    service = make_service(
        "http",
        f"{EVIL} product",
        f"{EVIL} version",
        extra_info=f"{EVIL} extra",
        hostname=f"{EVIL}.host",
        os_type=f"{EVIL} os",
        cpe=(f"cpe:/a:{EVIL}",),
        odd_name=f"{EVIL} name",
    )
    host = Host(
        "10.0.0.1",
        "up",
        ports=(Port("tcp", 80, "open", "syn-ack", service, (Script.of("http-title", f"{EVIL} title"),)),),
        scripts=(Script.of("smb-os-discovery", f"{EVIL} system"),),
    )
    record = encode(host)
    assert not [text for text in outside_from_target(record) if EVIL in text]
    assert json.dumps(record).count(EVIL) == 9
    (port,) = record["ports"]
    assert port["service"]["from_target"]["version_probe"]["product"] == f"{EVIL} product"
    assert port["service"]["name"] == "http"
    assert port["scripts"] == [{"id": "http-title", "from_target": {"script:http-title": f"{EVIL} title"}}]


def test_a_run_is_shown_with_its_counts_and_its_standard_error_set_apart() -> None:
    record = run_record(make_run("r1", from_target={"stderr": f"{EVIL}: refused\n"}, counts={"hosts_up": 2}))
    assert record["from_target"] == {"stderr": f"{EVIL}: refused\n"}
    assert not [text for text in outside_from_target(record) if EVIL in text]
    assert (record["hosts_up"], record["open_ports"]) == (2, 0)
    assert "counts" not in record
