"""Checks of the resources of the host and of this process: processors, memory, descriptors, the event loop."""

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

from mcp_server.health import CheckOutcome, HealthStatus, Threaded

if TYPE_CHECKING:
    from mcp_server.health import LoopLag

SMOOTHING_SEC: Final = 60.0
"""Seconds over which processor use is averaged, half of it at the start. One busy second must not cause a warning."""
DESCRIPTORS_SHARE: Final = 0.8
"""The check is degraded if this process uses more than this share of its descriptors."""
LAG_SEC: Final = 0.25
"""The check is degraded if the mean lag of the event loop over a minute, in seconds, exceeds this."""
MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds since the host was started, summed over all processors: in use, and in total."""

    busy: float
    total: float


def read_cpu() -> CpuTimes:
    """Return the processor times of the host."""
    import psutil

    times = psutil.cpu_times()
    # Linux also counts guest time as user time.
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return CpuTimes(total - times.idle - getattr(times, "iowait", 0.0), total)


class CpuCheck:
    """Checks processor use over `SMOOTHING_SEC`, or over the time between two checks if that is longer.

    No check waits for a sample. In the first half of `SMOOTHING_SEC` the outcome is healthy.
    """

    def __init__(self, read: Callable[[], CpuTimes] = read_cpu, clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._samples: deque[tuple[float, CpuTimes]] = deque()

    def __call__(self, threshold: float) -> CheckOutcome:
        """Check the use of all processors. Degraded above ``threshold`` per cent."""
        now, times = self._clock(), self._read()
        samples = self._samples
        samples.append((now, times))
        while len(samples) > 2 and now - samples[1][0] >= SMOOTHING_SEC:
            samples.popleft()
        since, first = samples[0]
        seconds, total = now - since, times.total - first.total
        load = f"load {os.getloadavg()[0]:.2f} on {os.cpu_count() or 1} processors"
        if seconds < SMOOTHING_SEC / 2 or total <= 0:
            return CheckOutcome(
                HealthStatus.HEALTHY, f"{load}; use is measured over at least {SMOOTHING_SEC / 2:.0f} s"
            )
        percent = 100 * max(0.0, times.busy - first.busy) / total
        detail = f"{percent:.0f} % in use over {seconds:.0f} s, {load}"
        if percent > threshold:
            detail += f"; health.cpu_threshold is {threshold:g} %"
            return CheckOutcome(
                HealthStatus.DEGRADED, detail, "everything, more slowly", "find out what else runs on this host"
            )
        return CheckOutcome(HealthStatus.HEALTHY, detail)


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes in use that cannot be freed at once, and in total, of the host or of a control group (``of``)."""

    used: int
    total: int
    of: str = "host"


def read_memory() -> MemoryUse:
    """Return the memory of the host, or of the control group if the group uses a larger share of its limit."""
    import psutil

    found = psutil.virtual_memory()
    host = MemoryUse(found.total - found.available, found.total)
    group = read_cgroup(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return group if group is not None and group.used * host.total > host.used * group.total else host


def read_cgroup(membership: Path, root: Path) -> MemoryUse | None:
    """Return the fullest control group of this process that has a limit (cgroup v2). None if there is no limit.

    Page cache that the kernel can drop (``inactive_file``) is not counted. Container platforms do the same.
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
        limit = int((group / "memory.max").read_text())  # "max" means no limit
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return MemoryUse(max(0, used - int(stat.get("inactive_file", 0))), max(1, limit), "control group")


def check_memory(threshold: float, read: Callable[[], MemoryUse] = read_memory) -> CheckOutcome:
    """Check the share of memory in use. Degraded above ``threshold`` per cent."""
    use = read()
    percent = 100 * use.used / max(1, use.total)
    detail = f"{percent:.0f} % of {use.total // MIB} MiB in use ({use.of})"
    if percent > threshold:
        detail += f"; health.memory_threshold is {threshold:g} %"
        return CheckOutcome(
            HealthStatus.DEGRADED, detail, "everything, until it runs out", "find out what else runs on this host"
        )
    return CheckOutcome(HealthStatus.HEALTHY, detail)


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """The resources of this process: resident bytes, open descriptors and their limit, and threads."""

    resident: int
    descriptors: int
    most_descriptors: int
    threads: int


def read_process() -> ProcessUse:
    """Return the resources of this process."""
    import psutil

    process = psutil.Process()
    with process.oneshot():
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return ProcessUse(process.memory_info().rss, process.num_fds(), most, process.num_threads())


class ProcessCheck:
    """Checks this process and its event loop. The check is a coroutine, because tasks are counted on the loop."""

    def __init__(self, lag: LoopLag, read: Callable[[], ProcessUse] = read_process) -> None:
        self._lag = lag
        self._read = Threaded(read)

    async def __call__(self) -> CheckOutcome:
        """Check memory, descriptors, tasks and the lag of the event loop."""
        tasks = len(asyncio.all_tasks())
        use = await self._read()
        most = "any number" if use.most_descriptors == resource.RLIM_INFINITY else use.most_descriptors
        detail = (
            f"{use.resident // MIB} MiB, {use.descriptors} of {most} descriptors, {use.threads} threads, {tasks} tasks"
            f"; event loop delay {1000 * self._lag.mean:.0f} ms on average, {1000 * self._lag.longest:.0f} ms at most"
        )
        limited = use.most_descriptors != resource.RLIM_INFINITY  # which is -1
        if limited and use.descriptors > DESCRIPTORS_SHARE * use.most_descriptors:
            works = "calls that are running; new connections and runs may fail"
            return CheckOutcome(
                HealthStatus.DEGRADED, detail, works, "disconnect idle clients, or raise the limit (ulimit -n)"
            )
        if self._lag.mean > LAG_SEC:
            works = "everything, with delays"
            return CheckOutcome(
                HealthStatus.DEGRADED, detail, works, "check the processors, or run fewer calls at a time"
            )
        return CheckOutcome(HealthStatus.HEALTHY, detail)
