"""Traces of a server inside the kernel guard: only a collector inside the scope is used."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.guarded import HOST, MACVLAN, ROOT, TARGET, UNKNOWN_CALLER, World, guarded, wait_for, world
from tests.support.processes import binary

PORT, COLLECTOR = 8111, 4318
CALL = (
    "import json, sys, urllib.request\n"
    "asked = urllib.request.Request(sys.argv[1], data=sys.argv[3].encode(), headers={"
    "'Authorization': 'Bearer ' + sys.argv[2], 'Content-Type': 'application/json'})\n"
    "opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))\n"
    "print(opener.open(asked, timeout=60).read().decode())"
)


@pytest.fixture(scope="module")
def host() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture
def received(host: World, tmp_path: Path) -> Iterator[Callable[[], list[str]]]:
    """Yield a function that returns the names of the spans that a collector outside has received."""
    enter = [binary("nsenter"), "--target", str(host.outside), "--net"]
    command = [*enter, sys.executable, "-m", "tests.support.otlp", "0.0.0.0", str(COLLECTOR)]
    log = tmp_path / "received"
    with log.open("w") as output, subprocess.Popen(command, cwd=ROOT, stdout=output) as process:
        try:
            wait_for(lambda: "ready" in log.read_text())
            yield lambda: log.read_text().splitlines()[1:]
        finally:
            process.kill()


def scan(host: World) -> dict[str, Any]:
    wait_for(lambda: "Listening on" in host.log, lambda: host.log, 30)
    token = (host.folder / "state/token").read_text().strip()
    body = json.dumps({"target": TARGET, "mode": "ports", "ports": "2222"})
    url = f"http://{HOST}:{PORT}/tools/nmap/execute"
    answer: dict[str, Any] = json.loads(host.outdoors(sys.executable, "-c", CALL, url, token, body).stdout)
    return answer


def serve(host: World, endpoint: str) -> Any:
    settings = MACVLAN | {"MCP_TRACING_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    words = ("serve", "--guard", "kernel", "--transport", "http", "--host", HOST, "--port", str(PORT))
    return guarded(host, *words, settings=settings)


def test_a_collector_in_scope_gets_the_spans(host: World, received: Callable[[], list[str]]) -> None:
    with serve(host, f"http://{TARGET}:{COLLECTOR}") as found:
        assert scan(host)["outcome"] == "completed"
        wait_for(lambda: {"plan", "execute", "record"} <= set(received()), lambda: f"{received()}\n{host.log}", 20)
        assert found.guard()["dropped"] == 0
    assert "tracing.off" not in host.log


@pytest.mark.parametrize("address", ["127.0.0.1", UNKNOWN_CALLER])
def test_a_collector_outside_the_scope_is_not_tried(
    host: World, received: Callable[[], list[str]], address: str
) -> None:
    strays = host.counted()["stray"]
    with serve(host, f"http://{address}:{COLLECTOR}") as found:
        answer = scan(host)
        assert answer["outcome"] == "completed"
        time.sleep(0.5)  # ten times the delay after which spans are sent
        assert found.guard()["dropped"] == 0, "spans were sent, which raises an alarm"
    assert host.log.count("tracing.off") == 1, host.log
    assert host.counted()["stray"] == strays
    assert not received()
