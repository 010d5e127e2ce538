"""A real Prometheus of a test's own on a free loopback port, with the shipped rules at a faster clock.

Needs Debian's package ``prometheus``, which `scripts/system-packages.sh test` installs.
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
    """The rules at a clock a test can wait for: ``for`` is 1 s, each window and offset ``window_sec``."""
    rules = re.sub(rf"(?m)^(\s+for: ){_DURATION}$", r"\g<1>1s", rules)
    return re.sub(rf"(?<=\[){_DURATION}(?=\])|(?<=\boffset ){_DURATION}\b", f"{window_sec}s", rules)


def stage(folder: Path, target: str, token: str, *, window_sec: int = 6) -> Path:
    """Copy the shipped configuration to ``folder`` as its owner would, once a second instead of four times a minute."""
    folder.mkdir()
    settings = (FOLDER / "prometheus.yml").read_text()
    for shipped, here in (("127.0.0.1:8080", target), ("_interval: 15s", "_interval: 1s")):
        assert shipped in settings
        settings = settings.replace(shipped, here)
    (folder / "prometheus.yml").write_text(settings)
    (folder / "alerts.yml").write_text(faster((FOLDER / "alerts.yml").read_text(), window_sec))
    (folder / "mcp-network-tools.token").write_text(token)
    return folder / "prometheus.yml"


def promtool(*words: str | Path) -> str:
    """Run promtool; gives what it said, and fails the test where it found something."""
    done = subprocess.run([program("promtool"), *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def program(name: str) -> str:
    """The path of one of the package's programs."""
    found = shutil.which(name)
    assert found, f"{name} is not installed: scripts/system-packages.sh test"
    return found


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running one, by its base address."""

    base: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series an instant query gives now; fails the test where Prometheus cannot read it."""
        answer = httpx2.post(f"{self.base}/api/v1/query", data={"query": expression}, timeout=10).json()
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        return list(answer["data"]["result"])

    def firing(self) -> dict[str, list[dict[str, str]]]:
        """The labels of the alerts that fire, by name."""
        alerts = httpx2.get(f"{self.base}/api/v1/alerts", timeout=10).json()["data"]["alerts"]
        found: dict[str, list[dict[str, str]]] = {}
        for alert in alerts:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert["labels"])
        return found

    def until_fire(self, *alerts: str, seconds: float = 25, **labels: str) -> None:
        """Wait until each of the alerts has fired, with these labels; not all at the same moment."""
        deadline = time.monotonic() + seconds
        left = set(alerts)
        while left:
            firing = self.firing()
            left -= {name for name, found in firing.items() if any(labels.items() <= each.items() for each in found)}
            assert not left or time.monotonic() < deadline, f"{left} {labels} should fire: {firing}"
            time.sleep(0.2)

    @contextmanager
    def firing_meanwhile(self, *alerts: str, seconds: float = 45) -> Iterator[None]:
        """Do a block, in which or soon after which each of the alerts fires; one may have cleared before the last."""
        with ThreadPoolExecutor(1) as looking:
            seen = looking.submit(self.until_fire, *alerts, seconds=seconds)
            yield
            seen.result()

    def until_clear(self, *alerts: str, seconds: float = 25) -> None:
        """Wait until none of the alerts fires."""
        deadline = time.monotonic() + seconds
        while left := self.firing().keys() & set(alerts):
            assert time.monotonic() < deadline, f"{left} should not fire: {self.firing()}"
            time.sleep(0.2)

    def until_some(self, expression: str, seconds: float = 10) -> list[dict[str, Any]]:
        """Wait until a query gives a series, and give what it gave last, which may be nothing."""
        deadline = time.monotonic() + seconds
        while not (found := self.query(expression)) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found


@contextmanager
def prometheus(settings: Path) -> Iterator[Prometheus]:
    """Start one with these settings; what it says goes to ``prometheus.log`` beside them."""
    port = free_port()
    log = settings.with_name("prometheus.log")
    command = [
        program("prometheus"),
        f"--config.file={settings}",
        f"--storage.tsdb.path={settings.with_name('data')}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with log.open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
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
