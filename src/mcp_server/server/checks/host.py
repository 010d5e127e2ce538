"""What the host and this process have left: processors, memory, descriptors, the event loop."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mcp_server.health import Finding, HealthStatus, Threaded

if TYPE_CHECKING:
    from mcp_server.health import LoopLag

SMOOTHING_SEC: Final = 60.0
"""Seconds of processor time that are judged together, or half of them at the start: a busy second is no news."""
DESCRIPTORS_SHARE: Final = 0.8
LAG_SEC: Final = 0.25
"""Share of this process's descriptors, and mean lateness of its event loop over a minute, that degrade it."""
MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds all processors together have worked, and could have, since the host was started."""

    busy: float
    total: float


def read_cpu() -> CpuTimes:
    """The host's processor times now."""
    import psutil

    times = psutil.cpu_times()
    # Linux counts the time of guests in that of the user as well.
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return CpuTimes(total - times.idle - getattr(times, "iowait", 0.0), total)


class CpuCheck:
    """Processor use between looks, over `SMOOTHING_SEC` or the time between two looks, whichever is longer.

    No look waits for a sample. It takes half of `SMOOTHING_SEC` from the first one on until there is a verdict.
    """

    def __init__(self, read: Callable[[], CpuTimes] = read_cpu, clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._looks: deque[tuple[float, CpuTimes]] = deque()

    def __call__(self, threshold: float) -> Finding:
        """The use in per cent of all processors; over ``threshold`` is degraded."""
        now, times = self._clock(), self._read()
        looks = self._looks
        looks.append((now, times))
        while len(looks) > 2 and now - looks[1][0] >= SMOOTHING_SEC:
            looks.popleft()
        since, first = looks[0]
        seconds, total = now - since, times.total - first.total
        load = f"load {os.getloadavg()[0]:.2f} on {os.cpu_count() or 1} processors"
        if seconds < SMOOTHING_SEC / 2 or total <= 0:
            return Finding(HealthStatus.HEALTHY, f"{load}; use is judged over {SMOOTHING_SEC / 2:.0f} s at least")
        percent = 100 * max(0.0, times.busy - first.busy) / total
        detail = f"{percent:.0f} % in use over {seconds:.0f} s, {load}"
        if percent > threshold:
            detail += f"; health.cpu_threshold is {threshold:g} %"
            return Finding(HealthStatus.DEGRADED, detail, "everything, more slowly", "see what else runs on this host")
        return Finding(HealthStatus.HEALTHY, detail)


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes in use that cannot be had back at once, and bytes there are; ``of`` says whose."""

    used: int
    total: int
    of: str = "host"


def read_memory() -> MemoryUse:
    """The host's memory, or that of the control group where its limit leaves less."""
    import psutil

    found = psutil.virtual_memory()
    host = MemoryUse(found.total - found.available, found.total)
    group = read_cgroup(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return group if group is not None and group.used * host.total > host.used * group.total else host


def read_cgroup(membership: Path, root: Path) -> MemoryUse | None:
    """The fullest limited control group this process is in (cgroup v2), or None where none has a limit.

    Page cache that the kernel can drop is not counted (``inactive_file``), as container platforms do.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    path = next((line[3:] for line in lines if line.startswith("0::/")), None)
    if path is None:
        return None
    group = root / path.lstrip("/")
    found = [_limit_of(each) for each in (group, *group.parents) if each.is_relative_to(root)]
    limited = [each for each in found if each is not None]
    return max(limited, key=lambda each: each.used / each.total, default=None)


def _limit_of(group: Path) -> MemoryUse | None:
    try:
        limit = int((group / "memory.max").read_text())  # "max" is none
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return MemoryUse(max(0, used - int(stat.get("inactive_file", 0))), max(1, limit), "control group")


def check_memory(threshold: float, read: Callable[[], MemoryUse] = read_memory) -> Finding:
    """The share of memory in use; over ``threshold`` per cent is degraded."""
    use = read()
    percent = 100 * use.used / max(1, use.total)
    detail = f"{percent:.0f} % of {use.total // MIB} MiB in use ({use.of})"
    if percent > threshold:
        detail += f"; health.memory_threshold is {threshold:g} %"
        return Finding(HealthStatus.DEGRADED, detail, "everything, until it runs out", "see what else runs here")
    return Finding(HealthStatus.HEALTHY, detail)


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """What this process holds: resident bytes, open descriptors, how many it may, and threads."""

    resident: int
    descriptors: int
    most_descriptors: int
    threads: int


def read_process() -> ProcessUse:
    """What this process holds now."""
    import psutil

    process = psutil.Process()
    with process.oneshot():
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return ProcessUse(process.memory_info().rss, process.num_fds(), most, process.num_threads())


class ProcessCheck:
    """This process itself, and its event loop; a coroutine function, because tasks are counted on the loop."""

    def __init__(self, lag: LoopLag, read: Callable[[], ProcessUse] = read_process) -> None:
        self._lag = lag
        self._read = Threaded(read)

    async def __call__(self) -> Finding:
        """Memory, descriptors, tasks, and how late the loop is."""
        tasks = len(asyncio.all_tasks())
        use = await self._read()
        most = "any number" if use.most_descriptors == resource.RLIM_INFINITY else use.most_descriptors
        detail = (
            f"{use.resident // MIB} MiB, {use.descriptors} of {most} descriptors, {use.threads} threads, {tasks} tasks"
            f"; loop late by {1000 * self._lag.mean:.0f} ms on average, {1000 * self._lag.longest:.0f} ms at most"
        )
        limited = use.most_descriptors != resource.RLIM_INFINITY  # which is -1
        if limited and use.descriptors > DESCRIPTORS_SHARE * use.most_descriptors:
            works = "what is under way; new connections and runs may fail"
            return Finding(HealthStatus.DEGRADED, detail, works, "close idle clients, or raise the limit (ulimit -n)")
        if self._lag.mean > LAG_SEC:
            works = "everything, late"
            return Finding(HealthStatus.DEGRADED, detail, works, "see the processors; ask for fewer runs at a time")
        return Finding(HealthStatus.HEALTHY, detail)
