"""Process 1 of the lab: builds everything in the namespaces it was started in, reports once, and then waits.

The owner of the lab ends it by killing this process. The kernel then removes every process, mount, file and link of the
lab. Arguments: FLEET 0|1 (databases).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.lab.network import topology
from tests.lab.network.daemons import WORK, Running, copy_programs
from tests.lab.network.namespaces import NAMESPACES
from tests.lab.network.programs import LabError, find, run
from tests.lab.network.services import SERVICES
from tests.lab.network.truth import RESOLVER, Behavior, Truth, make_truth

_START_SECONDS = 40.0
_OWN_FOLDERS = ("/run", "/dev/shm", "/var/log", "/var/spool", "/var/lib/snmp", "/var/lib/samba")


def mount_empty_folders() -> None:
    """Mount empty memory file systems over every folder in which a daemon might leave a file."""
    mount = find("mount")
    run([mount, "-t", "proc", "proc", "/proc"])
    for path in _OWN_FOLDERS:
        if Path(path).is_dir():
            run([mount, "-t", "tmpfs", "-o", "mode=755,size=1g", "tmpfs", path])
    NAMESPACES.mkdir()
    WORK.mkdir()
    resolver = Path(os.path.realpath("/etc/resolv.conf"))
    resolver.parent.mkdir(parents=True, exist_ok=True)
    own = WORK / "resolv.conf"
    own.write_text(f"nameserver {RESOLVER}\noptions timeout:1 attempts:1\n")
    if not resolver.exists():
        resolver.touch()
    run([mount, "--bind", str(own), str(resolver)])
    socket.sethostname("lab")


def build(truth: Truth, steps: dict[str, float]) -> dict[str, str]:
    """Build the lab; return the daemons that did not start, with their logs. ``steps`` receives the seconds by step."""

    def timed(name: str, step: Callable[..., Any], *arguments: Any) -> Any:
        start = time.monotonic()
        value = step(*arguments)
        steps[name] = round(time.monotonic() - start, 3)
        return value

    timed("folders", mount_empty_folders)
    timed("programs", copy_programs)
    running = Running()
    with ThreadPoolExecutor(4) as pool:
        timed("links", topology.lay_links, truth)
        for host in truth.hosts.values():
            if host.behavior is Behavior.SLOW:
                running.start(topology.slow_link(host))
                topology.give_slow_addresses(host)
        started = [pool.submit(_start_all, running, service, truth) for service in SERVICES]
        timed("firewalls", topology.raise_firewalls, truth)
        timed("fleet", topology.populate_fleet, truth.fleet)
        timed("services", lambda: [future.result() for future in started])
    failed: dict[str, str] = timed("listening", running.wait_until_ready, _START_SECONDS)
    return failed


def _start_all(running: Running, service: Callable[[Truth], Any], truth: Truth) -> None:
    for daemon in service(truth):
        running.start(daemon)


def main() -> None:
    """Build the lab, print one line of JSON with the result, and wait for the end."""
    # This must come first, while the machine's /proc is still mounted: it gives the process id as the machine counts.
    pid = int(Path("/proc/self").readlink().name)
    fleet, databases = sys.argv[1:]
    begin = time.monotonic()
    steps: dict[str, float] = {}
    report: dict[str, Any] = {"pid": pid, "error": None, "failed": {}}
    try:
        report["failed"] = build(make_truth(fleet=int(fleet), databases=databases == "1"), steps)
    except (LabError, OSError, LookupError) as error:
        report["error"] = f"{type(error).__name__}: {error}"
    report |= {"seconds": round(time.monotonic() - begin, 3), "steps": steps}
    print(json.dumps(report), flush=True)  # noqa: T201 - the pipe to the process that started the lab
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # from here on the kernel reaps processes that end
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
