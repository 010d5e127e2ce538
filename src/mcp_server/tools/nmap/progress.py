"""How far an nmap run is, from the tasks it announces and the addresses it has finished."""

from __future__ import annotations

import shlex

_GROUP = 4096
"""Addresses nmap takes at a time: PING_GROUP_SZ in its targets.h."""


class NmapProgress:
    """Share of a run that is done, 0.0 to 1.0, never falling.

    nmap works through the plan in order, one group of addresses after the other, and each group passes the
    stages that its arguments ask for. The last finished address says how many groups are behind it, the last
    announced task how far the present group is.
    """

    def __init__(self, planned: int) -> None:
        self._planned = max(1, planned)
        self._stages: tuple[str, ...] = ("discovery", "ports")
        self._done = 0
        self._best = 0.0
        self._told = False

    @property
    def value(self) -> float | None:
        """The share done, or None before nmap has said anything about it."""
        return self._best if self._told else None

    def arguments(self, text: str) -> None:
        """Take nmap's own record of its command line, which says what stages each group passes."""
        try:
            words = set(shlex.split(text))
        except ValueError:
            return
        everything = "-A" in words
        stages = [] if "-Pn" in words else ["discovery"]
        if not words & {"-sn", "-sL"}:
            stages.append("ports")
        if everything or "-sV" in words:
            stages.append("services")
        if everything or "-O" in words:
            stages.append("os")
        if everything or words & {"-sC", "--script"}:
            stages.append("scripts")
        self._stages = tuple(stages) or ("discovery",)

    def task(self, name: str, percent: float) -> None:
        """Note that the present group is ``percent`` through the task called ``name``."""
        stage = _stage(name)
        if stage not in self._stages:
            return
        share = (self._stages.index(stage) + min(max(percent, 0.0), 100.0) / 100) / len(self._stages)
        group = min(_GROUP, self._planned - self._done)
        self._raise((self._done + share * group) / self._planned)

    def passed(self, position: int) -> None:
        """Note that the address with ``position`` others before it in the plan is finished."""
        self._done = max(self._done, min(position + 1, self._planned))
        self._raise(self._done / self._planned)

    def ended(self) -> None:
        """Note that nmap wrote its closing statistics."""
        self._best, self._told = 1.0, True

    def _raise(self, share: float) -> None:
        self._told = True
        # What is left after the last address (scripts, statistics) keeps the bar from claiming the end.
        self._best = max(self._best, min(share, 0.99))


def _stage(task: str) -> str:
    """Return the stage of a task name from nmap's timing.cc and scan_engine.cc, e.g. ``SYN Stealth Scan``."""
    if "Ping" in task or "DNS" in task or "ND" in task.split():
        return "discovery"
    if task == "Service scan":
        return "services"
    if task.startswith("OS ") or task == "Traceroute":
        return "os"
    if task.startswith(("NSE", "Script")):
        return "scripts"
    return "ports"
