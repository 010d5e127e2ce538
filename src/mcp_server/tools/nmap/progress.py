"""The progress of an nmap run, from the tasks that it announces and the addresses that it has finished."""

from __future__ import annotations

import shlex

_GROUP = 4096
"""How many addresses nmap processes at a time: PING_GROUP_SZ in its targets.h."""


class NmapProgress:
    """The share of a run that is done, from 0.0 to 1.0. It never falls.

    nmap processes the targets in order, one group of addresses after the other. Each group goes through the stages that
    the arguments select. The last finished address shows how many groups are done, and the last announced task how far
    the current group is.
    """

    def __init__(self, planned: int) -> None:
        self._planned = max(1, planned)
        self._stages: tuple[str, ...] = ("discovery", "ports")
        self._done = 0
        self._best = 0.0
        self._started = False

    @property
    def value(self) -> float | None:
        """The share that is done, or None before nmap has reported anything."""
        return self._best if self._started else None

    def arguments(self, text: str) -> None:
        """Take the command line as nmap reports it. It shows the stages of each group."""
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
        """Note that ``percent`` of the task ``name`` is done for the current group."""
        stage = _stage(name)
        if stage not in self._stages:
            return
        share = (self._stages.index(stage) + min(max(percent, 0.0), 100.0) / 100) / len(self._stages)
        group = min(_GROUP, self._planned - self._done)
        self._raise((self._done + share * group) / self._planned)

    def passed(self, position: int) -> None:
        """Note that the address at ``position`` of the plan, counted from 0, is finished."""
        self._done = max(self._done, min(position + 1, self._planned))
        self._raise(self._done / self._planned)

    def ended(self) -> None:
        """Note that nmap wrote its closing statistics."""
        self._best, self._started = 1.0, True

    def _raise(self, share: float) -> None:
        self._started = True
        # Scripts and statistics follow after the last address, so the share never reaches 1.0.
        self._best = max(self._best, min(share, 0.99))


def _stage(task: str) -> str:
    """Return the stage of a task, whose name is from nmap's timing.cc or scan_engine.cc, as ``SYN Stealth Scan``."""
    if "Ping" in task or "DNS" in task or "ND" in task.split():
        return "discovery"
    if task == "Service scan":
        return "services"
    if task.startswith("OS ") or task == "Traceroute":
        return "os"
    if task.startswith(("NSE", "Script")):
        return "scripts"
    return "ports"
