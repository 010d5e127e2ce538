"""What one process may see and do, besides its limits: the contract between a run and the runner that starts it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The files a process may read and execute, and whether it keeps CAP_NET_RAW; it may write its own folder only.

    ``reads`` are absolute paths of files and folders (a folder with all below it) besides the program itself, its
    interpreter and the system's libraries. Every other capability is given up, and no new privilege can be gained.
    Raises ValueError for a path that is not absolute.
    """

    reads: tuple[str, ...] = ()
    raw_sockets: bool = False

    def __post_init__(self) -> None:
        """Check the paths: a relative one would mean the runner's folder."""
        for path in self.reads:
            if not path.startswith("/") or "\0" in path:
                raise ValueError(f"{path!r} is not an absolute path")
