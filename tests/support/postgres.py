"""A real PostgreSQL server for a test: a new cluster in a temporary folder, on a free loopback port.

Needs Debian's package ``postgresql`` (the programs of the server under /usr/lib/postgresql). PostgreSQL refuses to run
as root, so root starts it as the user ``postgres`` that the package creates.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_SECONDS = 60
# Not synchronous_commit=off: a commit must survive an immediate stop of the server.
_FAST = ("fsync=off", "full_page_writes=off", "shared_buffers=32MB", "autovacuum=off")


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    if on_path is None:
        raise FileNotFoundError("PostgreSQL is not installed: apt-get install postgresql")
    return Path(on_path).resolve().parent


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class PostgresServer:
    """One cluster; `start` and `stop` may be called repeatedly, with the same port and data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bin = _programs()
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self.port = _free_port()
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def create(self) -> None:
        """Create the cluster."""
        options = ("-U", "tester", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions")
        self._run("initdb", "-D", str(self._folder / "data"), *options)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        argv: list[str | Path] = [self._bin / "postgres", "-D", self._folder / "data", "-k", self._folder]
        argv += ["-h", "127.0.0.1", "-p", str(self.port)]
        for setting in _FAST:
            argv += ["-c", setting]
        with (self._folder.parent / f"{self._folder.name}.log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=self._folder, **self._as)
        until = time.monotonic() + START_SECONDS
        while self._run("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port), check=False) != 0:
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"PostgreSQL did not start: {self.log()}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT ends all sessions at once, SIGQUIT does so without a clean shutdown."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=START_SECONDS)
            self._process = None

    def log(self) -> str:
        """Return the end of the server's log."""
        return (self._folder.parent / f"{self._folder.name}.log").read_text()[-2000:]

    def new_database(self) -> str:
        """Create an empty database and return its URL."""
        self._databases += 1
        name = f"test{self._databases}"
        self._run(
            "psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "tester", "-c", f"CREATE DATABASE {name}", "postgres"
        )
        return self.url(name)

    def url(self, name: str) -> str:
        """Return the URL of a database of this server."""
        return f"postgresql://tester@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *arguments: str, check: bool = True) -> int:
        argv = [str(self._bin / program), *arguments]
        ended = subprocess.run(
            argv, check=check, capture_output=True, timeout=START_SECONDS, cwd=self._folder, **self._as
        )
        return int(ended.returncode)


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Run a server for the duration of a ``with`` block, and remove its folder afterwards."""
    # Not in pytest's folder, which the user of the server may not enter.
    folder = Path(tempfile.mkdtemp(prefix="mcp-postgres-"))
    server = PostgresServer(folder)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
        (folder.parent / f"{folder.name}.log").unlink(missing_ok=True)
