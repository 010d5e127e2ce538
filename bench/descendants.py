"""Find the descendants of a process in the lists of the kernel (proc(5))."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path


def descendants(pid: int) -> Iterator[int]:
    """Yield every current descendant of ``pid``."""
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in listing.read_text().split()]
        except OSError:
            continue
        for child in children:
            yield child
            yield from descendants(child)


class ProcessEnd:
    """Records when a descendant that runs a program ends, on the clock of `time.perf_counter`.

    It polls in a thread, so the process should be otherwise idle.
    """

    def __init__(self, program: str, below: int) -> None:
        self._program = program
        self._below = below
        self._ended: float | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def at(self) -> float:
        """Return when the program ended; raise RuntimeError if no end was observed."""
        self._thread.join(timeout=10)
        if self._ended is None:
            raise RuntimeError(f"No end of {self._program} was observed.")
        return self._ended

    def _watch(self) -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            for pid in descendants(self._below):
                if self._is_wanted(pid):
                    self._await_end(pid)
                    return
            time.sleep(0.002)

    def _is_wanted(self, pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/comm").read_text().strip() == self._program
        except OSError:
            return False

    def _await_end(self, pid: int) -> None:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            ending = select.poll()
            ending.register(descriptor, select.POLLIN)
            if ending.poll(120_000):
                self._ended = time.perf_counter()
        finally:
            os.close(descriptor)
