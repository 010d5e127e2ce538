"""What every interface shows of a host and a run: the target's text below ``from_target`` and nowhere else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from mcp_server.model.codec import host_from_dict, run_from_dict, to_dict
from mcp_server.model.host import Host, OsMatch, Port, Script, Service
from mcp_server.model.record import host_record, run_record
from tests.support.store_facts import full_host, full_run

MARK = "EVIL"
SERVICE = Service(
    name="http",
    product=f"{MARK} product",
    version=f"{MARK} version",
    extra_info=f"{MARK} extra",
    tunnel="ssl",
    hostname=f"{MARK}.host",
    os_type=f"{MARK} os",
    method="probed",
    conf=10,
    cpe=(f"cpe:/a:{MARK}",),
)
HOST = Host(
    address="10.0.0.1",
    state="up",
    ports=(
        Port("tcp", 80, "open", "syn-ack", SERVICE, (Script("http-title", f"{MARK} title"),)),
        Port("tcp", 81, "open", "syn-ack", replace(SERVICE, name=f"{MARK} is not a name")),
    ),
    os=(OsMatch("Linux 5.0 - 5.14", 96),),
    scripts=(Script("smb-os-discovery", f"{MARK} system"),),
)


def outside(value: Any) -> list[str]:
    """Every key, and every text that does not stand below ``from_target``."""
    if isinstance(value, dict):
        below = [text for key, item in value.items() if key != "from_target" for text in outside(item)]
        return [*value, *below]
    if isinstance(value, list):
        return [text for item in value for text in outside(item)]
    return [value] if isinstance(value, str) else []


def test_the_targets_text_stands_below_from_target_by_its_source() -> None:
    record = host_record(HOST)
    assert not [text for text in outside(record) if MARK in text]
    assert json.dumps(record).count(MARK) == json.dumps(to_dict(HOST)).count(MARK) == 15
    first, second = record["ports"]
    assert first["service"]["from_target"]["version_probe"]["product"] == f"{MARK} product"
    assert first["service"]["name"] == "http"
    assert "name" not in second["service"]
    assert first["scripts"] == [{"id": "http-title", "from_target": {"script:http-title": f"{MARK} title"}}]
    assert record["os"] == [{"name": "Linux 5.0 - 5.14", "accuracy": 96}]


def test_a_record_is_read_back_without_loss() -> None:
    for host in (HOST, full_host("10.0.0.9"), Host("10.0.0.1", "down")):
        assert host_from_dict(json.loads(json.dumps(host_record(host)))) == host
    run = replace(full_run("r1"), stderr=f"{MARK}: refused\n")
    record = run_record(run)
    assert record["from_target"] == {"stderr": f"{MARK}: refused\n"}
    assert not [text for text in outside(record) if MARK in text]
    assert run_from_dict(json.loads(json.dumps(record))) == run
    assert "from_target" not in run_record(replace(run, stderr=""))
