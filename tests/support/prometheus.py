"""Runs a real Prometheus on a free port of loopback, with the shipped rules at a faster clock.

It needs Debian's package ``prometheus``, which `scripts/system-packages.sh test` installs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2

from tests.support.interfaces import free_port

FOLDER: Final = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
JOB: Final = "mcp-network-tools"
_DURATION: Final = r"\d+[smhd]"


def faster(rules: str, window_sec: int) -> str:
    """Return the rules with a faster clock: every ``for`` is 1 s, and every window and offset is ``window_sec``."""
    rules = re.sub(rf"(?m)^(\s+for: ){_DURATION}$", r"\g<1>1s", rules)
    return re.sub(rf"(?<=\[){_DURATION}(?=\])|(?<=\boffset ){_DURATION}\b", f"{window_sec}s", rules)


def stage(folder: Path, target: str, token: str, *, window_sec: int = 6) -> Path:
    """Copy the shipped configuration to ``folder``, with an interval of one second instead of 15."""
    folder.mkdir()
    settings = (FOLDER / "prometheus.yml").read_text()
    for shipped, here in (("127.0.0.1:8080", target), ("_interval: 15s", "_interval: 1s")):
        assert shipped in settings, f"the shipped prometheus.yml has no {shipped}"
        settings = settings.replace(shipped, here)
    (folder / "prometheus.yml").write_text(settings)
    (folder / "alerts.yml").write_text(faster((FOLDER / "alerts.yml").read_text(), window_sec))
    (folder / "mcp-network-tools.token").write_text(token)
    return folder / "prometheus.yml"


def promtool(*words: str | Path) -> str:
    """Run promtool and return its output. Fails the test if promtool reports an error."""
    done = subprocess.run([program("promtool"), *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def program(name: str) -> str:
    """Return the path of a program of the package."""
    found = shutil.which(name)
    assert found, f"{name} is not installed. Run scripts/system-packages.sh test"
    return found


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus. ``base`` is its address."""

    base: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an instant query. Fails the test if Prometheus refuses the query."""
        answer = httpx2.post(f"{self.base}/api/v1/query", data={"query": expression}, timeout=10).json()
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        return list(answer["data"]["result"])

    def firing(self) -> dict[str, list[dict[str, str]]]:
        """Return the labels of the firing alerts, by name."""
        alerts = httpx2.get(f"{self.base}/api/v1/alerts", timeout=10).json()["data"]["alerts"]
        found: dict[str, list[dict[str, str]]] = {}
        for alert in alerts:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert["labels"])
        return found

    def until_fire(self, *alerts: str, seconds: float = 25, **labels: str) -> None:
        """Wait until each of the alerts has fired with these labels. They need not fire at the same time."""
        deadline = time.monotonic() + seconds
        left = set(alerts)
        while left:
            firing = self.firing()
            left -= {name for name, found in firing.items() if any(labels.items() <= each.items() for each in found)}
            assert not left or time.monotonic() < deadline, f"expected {left} {labels} to fire, found {firing}"
            time.sleep(0.2)

    @contextmanager
    def firing_meanwhile(self, *alerts: str, seconds: float = 45) -> Iterator[None]:
        """Expect each of the alerts to fire during the block or soon after it. Some may clear before others fire."""
        with ThreadPoolExecutor(1) as watcher:
            seen = watcher.submit(self.until_fire, *alerts, seconds=seconds)
            yield
            seen.result()

    def until_clear(self, *alerts: str, seconds: float = 25) -> None:
        """Wait until none of the alerts fires."""
        deadline = time.monotonic() + seconds
        while left := self.firing().keys() & set(alerts):
            assert time.monotonic() < deadline, f"expected {left} to clear, found {self.firing()}"
            time.sleep(0.2)

    def until_some(self, expression: str, seconds: float = 10) -> list[dict[str, Any]]:
        """Wait until a query returns a series. Returns its last result, which may be empty."""
        deadline = time.monotonic() + seconds
        while not (found := self.query(expression)) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found


@contextmanager
def prometheus(settings: Path) -> Iterator[Prometheus]:
    """Start Prometheus with these settings. Its output goes to ``prometheus.log`` in the same folder."""
    port = free_port()
    log = settings.with_name("prometheus.log")
    command = [
        program("prometheus"),
        f"--config.file={settings}",
        f"--storage.tsdb.path={settings.with_name('data')}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 20
        while not _ready(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        try:
            process.wait(15)
        finally:
            process.kill()


def _ready(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/-/ready", timeout=2).status_code == 200
    except httpx2.TransportError:
        return False
