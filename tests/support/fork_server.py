"""Starts `python -m mcp_server` in tests as a fork of a process that has already imported it.

Importing takes 0.4 s of processor time, and the tests start the program about a thousand times. `fork_server` replaces
the function with which `subprocess` starts programs. The replacement recognizes this one command and asks a helper
process, the fork server, for a fork. Everything else, and every start with unusual options, is executed as usual.

The fork is a direct child of the test process, so signals, exit codes and ``wait`` work as usual. It has the
descriptors, environment, working folder and arguments that the caller asked for, and then runs the module as
``python -m`` does. It skips execve(2), the start of the interpreter, and the imports. Tests that start the program
under a prefix (in a namespace, as another user, in a container, through its script) still cover these, and
``COLD_STARTS=1`` makes all tests start it with execve(2).

If this module is run as a program, it is the fork server. Its arguments are the descriptor of its socket and the
command to run first.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import io
import json
import os
import pkgutil
import platform
import resource
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Final, NoReturn

MODULES: Final = ("mcp_server", "mcp_server.server", "tests.support.audit", "tests.support.store_child")
"""The modules that ``python -m`` may run."""
_LAZY: Final = ("anyio._backends._asyncio", "pydantic.v1", "uvicorn.lifespan.on", "uvicorn.protocols.http.h11_impl")
"""Modules of other packages that the program imports only when it first uses them."""
_FIXED_AT_START: Final = ("PYTHON", "LANG", "LC_", "LD_", "MALLOC_", "GLIBC_", "OPENSSL_")
"""Beginnings of the names of variables that a process reads when it starts."""
_NAMESPACES: Final = ("mnt", "net", "pid_for_children", "user")
_CLONE_PARENT: Final = 0x8000
_CLONE: Final = {"x86_64": 56, "aarch64": 220}.get(platform.machine())
_real: Callable[..., int] = subprocess._fork_exec  # type: ignore[attr-defined]


@contextmanager
def fork_server(env: Mapping[str, str] = os.environ, *, first: Sequence[str] = ()) -> Iterator[None]:
    """Start the program by fork in a block, unless ``COLD_STARTS`` is set or this machine's clone(2) is not known.

    ``env`` is the environment of the fork server. It must have the values of `_FIXED_AT_START` that the program will be
    started with. ``first`` is a command that the fork server itself runs before the first fork: hundreds of similar
    commands then use the caches that it filled.
    """
    if not _CLONE or os.environ.get("COLD_STARTS"):
        yield
        return
    starter = _Starter(env, first)
    subprocess._fork_exec = starter.fork_exec  # type: ignore[attr-defined]
    try:
        yield
    finally:
        subprocess._fork_exec = _real  # type: ignore[attr-defined]
        starter.close()


def _surroundings() -> tuple[object, ...]:
    """Return the other state that a child inherits: namespaces, user, group and limits."""
    return (
        [Path(f"/proc/thread-self/ns/{name}").readlink() for name in _NAMESPACES],
        os.getresuid(),
        os.getresgid(),
        [resource.getrlimit(number) for number in range(resource.RLIMIT_NICE)],
    )


def _fixed(env: dict[str, str]) -> dict[str, str]:
    return {name: env[name] for name in env if name.startswith(_FIXED_AT_START) and name != "PYTHONPATH"}


def _customized(env: dict[str, str]) -> bool:
    """Whether a file on ``PYTHONPATH`` changes the interpreter's start."""
    return any(Path(path, "sitecustomize.py").exists() for path in env.get("PYTHONPATH", "").split(os.pathsep))


def _possible(words: list[str]) -> bool:
    """Whether execve(2) accepts these words: no NUL, and at most 128 KiB each (MAX_ARG_STRLEN)."""
    return all("\0" not in word and len(os.fsencode(word)) < 128 * 1024 for word in words)


class _Starter:
    """Decides for each program that is started whether the fork server can start it, and asks it to."""

    def __init__(self, env: Mapping[str, str], first: Sequence[str]) -> None:
        self._env = env
        self._first = first
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._like: tuple[object, ...] = ()

    def fork_exec(self, argv: Any, executables: Any, close_fds: Any, keep: Any, cwd: Any, env: Any, *rest: Any) -> int:
        """Start a program; the arguments and the result are those of ``subprocess._fork_exec``."""
        in_child, _, _, out_child, _, err_child, _, error_pipe, _, session, group, gid, gids, uid, umask, *last = rest
        usual = (close_fds, keep, gids, {gid, uid} <= {None, -1}, last[0]) == (True, (error_pipe,), None, True, None)
        words = [os.fsdecode(word) for word in argv]
        known = words[:2] == [sys.executable, "-m"] and words[2:3] and words[2] in MODULES and _possible(words)
        given = dict(os.environ) if env is None else dict(os.fsdecode(each).split("=", 1) for each in env)
        if known and usual and executables == (os.fsencode(sys.executable),) and not _customized(given):
            order = {"words": words, "cwd": os.fspath(cwd or "."), "env": given}
            order |= {"session": session, "group": group, "umask": umask}
            streams = [fd if fd >= 0 else number for number, fd in enumerate((in_child, out_child, err_child))]
            with self._lock:
                if self._start() and (*_surroundings(), _fixed(given)) == self._like:
                    return self._ask(order, [*streams, error_pipe])
        return _real(argv, executables, close_fds, keep, cwd, env, *rest)

    def close(self) -> None:
        """End the fork server."""
        if self._server is not None and self._socket is not None:
            self._socket.close()
            self._server.wait()

    def _start(self) -> bool:
        """Start the fork server unless it runs already. Return False if it could not be started or has ended."""
        if self._server is None:
            env = {name: value for name, value in self._env.items() if not name.startswith("COVERAGE_")}
            self._like = (*_surroundings(), _fixed(env))
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._server = subprocess.Popen(
                    [sys.executable, "-m", __name__, str(theirs.fileno()), *self._first],
                    pass_fds=(theirs.fileno(),), env=env, cwd=Path(__file__).resolve().parents[2],
                    stdin=subprocess.DEVNULL,
                )  # fmt: skip
        return self._server.poll() is None

    def _ask(self, order: dict[str, Any], descriptors: list[int]) -> int:
        """Ask for a fork. The last descriptor is the pipe whose end tells `subprocess` that the program runs."""
        assert self._socket is not None
        order["cwd"] = str(Path(order["cwd"]).absolute())
        # The order is sent as a file, because an environment can be larger than a message.
        with os.fdopen(os.memfd_create("order"), "w+") as file:
            json.dump(order, file)
            file.flush()
            socket.send_fds(self._socket, [b"fork"], [file.fileno(), *descriptors])
        return int(self._socket.recv(100))


def _fork() -> int:
    """Fork, so that the child's parent is this process's parent."""
    api = ctypes.pythonapi
    api.PyOS_BeforeFork()
    pid: int = api.syscall(_CLONE, _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        api.PyOS_AfterFork_Child()
    else:
        api.PyOS_AfterFork_Parent()
    return pid


def _wait_for_order(connection: socket.socket) -> tuple[dict[str, Any], int]:
    """Fork once for each message. Return the order and the last descriptor of the message in the child.

    The parent ends with the test process.
    """
    while True:
        message, fds, _, _ = socket.recv_fds(connection, 100, 5)
        if not message:
            os._exit(0)
        pid = _fork()
        if pid == 0:
            connection.detach()
            with os.fdopen(fds[0]) as file:
                file.seek(0)
                order: dict[str, Any] = json.load(file)
            for number, fd in enumerate(fds[1:]):
                os.dup2(fd, number)  # the last one becomes 3
            os.closerange(4, 1024)
            return order, 3
        for fd in fds:
            os.close(fd)
        connection.send(str(pid).encode())


def _stream(number: int, mode: str, like: Any) -> Any:
    """Return a standard stream, opened as the interpreter opens it at its start."""
    raw = io.FileIO(number, mode, closefd=False)
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    buffered: Any = io.BufferedReader(raw) if mode == "r" else raw if unbuffered else io.BufferedWriter(raw)
    made = io.TextIOWrapper(
        buffered, like.encoding, like.errors, newline=None if mode == "r" else "\n",
        line_buffering=raw.isatty() or number == 2, write_through=unbuffered,
    )  # fmt: skip
    made.mode = mode  # type: ignore[misc]
    return made


def _become(order: dict[str, Any]) -> str:
    """Apply the order to this process. Return the name of the module to run."""
    _, _, module, *words = order["words"]
    if order["session"]:
        os.setsid()
    if order["group"] >= 0:
        os.setpgid(0, order["group"])
    if order["umask"] >= 0:
        os.umask(order["umask"])
    os.chdir(order["cwd"])
    before = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ.clear()
    os.environ.update(order["env"])
    time.tzset()
    added = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[: 1 + len(before)] = [order["cwd"], *added]
    sys.argv = ["-m", *words]
    sys.orig_argv = order["words"]
    sys.stdin = sys.__stdin__ = _stream(0, "r", sys.stdin)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _stream(1, "w", sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _stream(2, "w", sys.stderr)  # type: ignore[misc]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        import coverage

        coverage.process_startup()
    return str(module)


def _run_here(words: list[str]) -> None:
    """Run one command of the program in this process, and discard its output."""
    from mcp_server.cli import main

    sys.argv = ["mcp-network-tools", *words]
    with redirect_stdout(io.StringIO()), suppress(SystemExit):
        main()


def _main() -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    import mcp_server

    for found in pkgutil.walk_packages(mcp_server.__path__, "mcp_server."):
        if not found.name.endswith(".__main__") and ".migrations." not in found.name:
            importlib.import_module(found.name)
    for name in ("coverage", *_LAZY):
        importlib.import_module(name)
    if len(sys.argv) > 2:
        _run_here(sys.argv[2:])
    gc.collect()
    gc.freeze()
    order, pipe = _wait_for_order(connection)
    module = _become(order)
    os.close(pipe)
    try:
        runpy._run_module_as_main(module)  # type: ignore[attr-defined]
    except SystemExit as leaving:
        if isinstance(leaving.code, int | None):
            _leave(leaving.code or 0)
        raise
    _leave(0)


def _leave(code: int) -> NoReturn:
    """End as the interpreter does, but without clearing the modules, which would copy the fork server's memory."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.exit(code)  # The interpreter tries again and reports it.
    os._exit(code)


if __name__ == "__main__":
    _main()
