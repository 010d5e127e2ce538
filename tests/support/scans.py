"""Helpers for tests of scans: targets that no other test scans at the same time, long scans, and finding nmap."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from pathlib import Path
from typing import Any

_numbers = itertools.count(1)


def own_network() -> str:
    """Return a /28 of loopback for this call only, so that a process can be found by its target."""
    number = (os.getpid() * 16 + next(_numbers)) % (1 << 19)
    return f"127.{64 + (number >> 12) % 128}.{number >> 4 & 255}.{(number & 15) << 4}/28"


def slow_scan(target: str) -> dict[str, Any]:
    """Return the arguments of a scan of a /28 that takes a second or two per host, and half a minute in total."""
    return {
        "target": target,
        "mode": "ports",
        "ports": "1-4",
        "extra_args": "--scan-delay 300ms --max-hostgroup 1",
    }


def scanners(target: str) -> list[int]:
    """Return the processes whose command line has ``target`` and nmap, without zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it ended in the meantime
                continue
            if target.encode() in words and any(word.endswith(b"nmap") for word in words):
                found.append(int(entry.name))
    return found


async def started(target: str, seconds: float = 20) -> None:
    """Wait until nmap scans ``target``."""
    end = time.monotonic() + seconds
    while not scanners(target):
        assert time.monotonic() < end, f"nmap was not started on {target}"
        await asyncio.sleep(0.02)


async def gone(target: str, seconds: float = 5) -> bool:
    """Wait until no nmap scans ``target``; return whether that happened in time."""
    end = time.monotonic() + seconds
    while scanners(target):
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.02)
    return True
