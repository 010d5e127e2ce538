"""Uses an installed mcp-network-tools as a person and a client would; one JSON line says how each step went.

Standard library alone, so that every interpreter and every empty environment can run it: doctor, MCP over stdio in
both eras with a real scan of a listener of its own on loopback, MCP over HTTP, the guard, an orderly stop of each.

    python smoke.py --program VENV/bin/mcp-network-tools --state EMPTY_FOLDER [--version VERSION] [--absent nmap]
                    [--guard kernel|rootless] [--target 10.99.0.1]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Self

DEADLINE_SEC = 60
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
GUARD_NEEDS = {"kernel": {"libnftables", "ip"}, "rootless": {"libnftables", "ip", "pasta"}}
"""What each tier cannot be without (docs/guard.md)."""


class NotRunError(Exception):
    """A step that this host cannot carry out, and why."""


def check(so: bool, why: object) -> None:
    """Raise AssertionError with the reason; ``assert`` is gone under -O."""
    if not so:
        raise AssertionError(str(why)[:600])


def piped(stream: IO[str] | None) -> IO[str]:
    """A pipe that was asked for."""
    if stream is None:
        raise ValueError("it is not a pipe")
    return stream


class Server:
    """A server over stdio: a message out, a message in."""

    def __init__(self, program: str, environment: dict[str, str], *words: str) -> None:
        self.process = subprocess.Popen(
            [program, "serve", *words],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.stdin, self.stdout = piped(self.process.stdin), piped(self.process.stdout)
        self.stderr = piped(self.process.stderr)

    def send(self, message: dict[str, Any]) -> None:
        """Write one line."""
        self.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        self.stdin.flush()

    def ask(self, method: str, modern: bool = True, **params: Any) -> dict[str, Any]:
        """Send a request and return its result."""
        if modern:
            params["_meta"] = MODERN
        with contextlib.suppress(BrokenPipeError):  # what the server said is told below
            self.send({"id": 1, "method": method, "params": params})
        while line := self.stdout.readline():
            answer = json.loads(line)
            if answer.get("id") == 1:
                check("result" in answer, answer)
                result: dict[str, Any] = answer["result"]
                return result
        code = self.process.wait()
        raise AssertionError(f"the server ended with {code}: {self.stderr.read().strip()[-500:]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        """After its steps: end its input and expect a clean end within five seconds. After a failure: kill it."""
        if kind is None:
            self.stop()
            return
        self.process.kill()
        self.process.communicate()

    def stop(self) -> None:
        """End its input and expect a clean end."""
        self.stdin.close()
        code = self.process.wait(5)
        said = self.stderr.read()
        check(code == 0 and "Traceback" not in said, f"it ended with {code}: {said[-500:]}")


@contextlib.contextmanager
def listener(address: str) -> Iterator[int]:
    """A port that is open for as long as this is entered; the kernel completes the handshake, nothing is accepted."""
    with socket.create_server((address, 0)) as listening:
        yield int(listening.getsockname()[1])


class Smoke:
    """The steps, in the order in which they are carried out."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.program = str(options.program)
        self.version: str = options.version
        self.absent: set[str] = set(options.absent)
        self.guard: str = options.guard
        self.target: str = options.target
        self.state = Path(options.state)
        self.environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "MCP_SECURITY_ALLOWED_TARGETS": "loopback,RFC1918,.lab.internal",
            "MCP_SECURITY_GUARD": "argument",
            "LOG_LEVEL": "WARNING",
        }

    def settings(self, folder: str, **more: str) -> dict[str, str]:
        """The environment of a server with a state folder of its own."""
        return {**self.environment, "MCP_STATE_DIR": str(self.state / folder), **more}

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the program to its end."""
        return subprocess.run(
            [self.program, *words],
            env=self.settings("cli", **more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def step_installed(self) -> str:
        """The program is the version that was built, and its package is not that of any checkout."""
        done = self.run("version", "--json")
        check(done.returncode == 0, done.stderr)
        version = json.loads(done.stdout)["version"]
        check(not self.version or version == self.version, f"{version} is installed, {self.version} was built")
        return str(version)

    def step_doctor(self) -> str:
        """The doctor runs, and says of nmap what is so."""
        done = self.run("doctor", "--json")
        check("Traceback" not in done.stderr and done.stdout.startswith("{"), done.stderr or done.stdout)
        report = json.loads(done.stdout)
        nmap = next(each for each in report["checks"] if each["name"] == "tool nmap")
        check((nmap["state"] == "ok") == ("nmap" not in self.absent), nmap)
        return f"{report['state']}, exit {done.returncode}"

    def scan(self, server: Server, address: str, enforcement: str) -> str:
        """Have nmap look at a port that is open and one that is not; or be told that there is no nmap."""
        with listener(address) as port:
            arguments = {"target": address, "mode": "ports", "ports": f"{port},9"}
            result = server.ask("tools/call", name="nmap", arguments=arguments)
        body = result.get("structuredContent") or {}
        if "nmap" in self.absent:
            code = body.get("error", {}).get("code")
            check(bool(result.get("isError")) and code == "binary_not_found", result)
            return "refused: binary_not_found"
        check(not result.get("isError"), result)
        check(body["outcome"] == "completed" and body["enforcement"] == enforcement, body)
        seen = re.findall(r"(\d+)/tcp", body["hosts"][address])
        check(seen == [str(port)], body)
        return "found the open port"

    def step_stdio(self) -> str:
        """Cold start to the answer of tools/list on the 2026 wire, then a scan."""
        started = time.monotonic()
        with Server(self.program, self.settings("stdio")) as server:
            listed = server.ask("tools/list")
            took = time.monotonic() - started
            check("nmap" in {tool["name"] for tool in listed["tools"]}, listed)
            found = self.scan(server, "127.0.0.1", "argument")
        return f"{took:.2f} s to tools/list; nmap {found}"

    def step_handshake(self) -> str:
        """A client of the earlier era, which says initialize first."""
        opening = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "smoke", "version": "1"}}
        with Server(self.program, self.settings("handshake")) as server:
            result = server.ask("initialize", modern=False, **opening)
            server.send({"method": "notifications/initialized"})
            check(bool(server.ask("tools/list", modern=False)["tools"]), "no tools")
        return str(result["protocolVersion"])

    def step_http(self) -> str:
        """The token is asked for, tools/list is answered, and SIGTERM ends the server in order."""
        environment = self.settings("http", MCP_SERVER_SHUTDOWN_GRACE_PERIOD="1")
        with listener("127.0.0.1") as free:
            port = str(free)
        words = [self.program, "serve", "--transport", "http", "--host", "127.0.0.1", "--port", port, "--json"]
        with subprocess.Popen(
            words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as it:
            errors, said = piped(it.stderr), ""
            while not (place := re.search(r"http://127\.0\.0\.1:\d+", said)):
                line = errors.readline()
                check(bool(line), f"the server ended: {said}")
                said += line
            try:
                self.speak_http(place.group())
            finally:
                it.send_signal(signal.SIGTERM)
                said += errors.read()
            code = it.wait(10)
        check(code in {0, 143} and "Traceback" not in said, f"it ended with {code}: {said[-500:]}")
        return f"stopped with exit {code}"

    def speak_http(self, base: str) -> None:
        """One request without the token, one with it."""
        check(fetch(f"{base}/livez")[0] == 200, "livez")
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": MODERN}}
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": "2026-07-28",
            "Mcp-Method": "tools/list",
        }
        status, _ = fetch(f"{base}/mcp", body, headers)
        check(status == 401, f"without a token: {status}")
        headers["Authorization"] = f"Bearer {(self.state / 'http/token').read_text().strip()}"
        status, text = fetch(f"{base}/mcp", body, headers)
        check(status == 200 and '"nmap"' in text, (status, text))

    def step_guard(self) -> str:
        """The tier that this user can have holds a scan; without what it needs, the start is refused with its code."""
        if not self.guard:
            raise NotRunError("no tier was asked for")
        if self.guard == "rootless" and (why := no_namespaces()):
            raise NotRunError(why)
        needs = self.absent & GUARD_NEEDS[self.guard]
        more = {"MCP_SECURITY_GUARD": self.guard, "MCP_STATE_DIR": str(self.state / "guard")}
        if self.guard == "kernel":
            more["MCP_GUARD_USER"] = "nobody"
        if needs:
            done = self.run("serve", **more)
            said = done.stderr[-400:]
            check(done.returncode == 9 and "guard_unavailable" in said, f"without {needs}: {done.returncode}: {said}")
            return "refused: guard_unavailable"
        with Server(self.program, self.settings("guard", **more)) as server:
            found = self.scan(server, "127.0.0.1" if self.guard == "kernel" else self.target, self.guard)
        return f"{self.guard}: nmap {found}"

    def step_nothing_left(self) -> str:
        """Inside a PID namespace of its own: every process that was started has ended."""
        if os.environ.get("SMOKE_OWN_PIDS") != "1":
            raise NotRunError("not in a PID namespace of its own")
        deadline = time.monotonic() + 5
        while left := [each for each in processes() if self.program.encode() in each or b"mcp_server" in each]:
            check(time.monotonic() < deadline, left)
            time.sleep(0.05)
        return "no process is left"


def processes() -> list[bytes]:
    """The command lines of every process that can be seen, but for this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes()
                if b"smoke.py" not in words:
                    found.append(words)
    return found


def no_namespaces() -> str:
    """Why this host gives a user no namespaces with a tap; empty where it does."""
    unshare = shutil.which("unshare") or "/usr/bin/unshare"
    try:
        subprocess.run([unshare, "--user", "--net", "true"], check=True, capture_output=True)
        with Path("/dev/net/tun").open("r+b", buffering=0):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"this host has no user namespaces with a tap: {error}"


def fetch(url: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """GET, or POST of JSON; the status and the text. ``url`` is always one of this machine's."""
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data, headers or {})  # noqa: S310
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def attempt(name: str, step: Callable[[], str]) -> dict[str, str]:
    """Carry a step out; it has `DEADLINE_SEC` seconds."""
    signal.alarm(DEADLINE_SEC)
    try:
        return {"step": name, "state": "passed", "detail": step()}
    except NotRunError as error:
        return {"step": name, "state": "not run", "detail": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever it is, the step has failed and the next is tried
        return {"step": name, "state": "failed", "detail": f"{type(error).__name__}: {error}"}
    finally:
        signal.alarm(0)


def too_long(_number: int, _frame: object) -> None:
    raise TimeoutError(f"longer than {DEADLINE_SEC} s")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", type=Path, required=True)
    parser.add_argument("--state", required=True)
    parser.add_argument("--version", default="")
    parser.add_argument("--absent", nargs="*", default=[])
    parser.add_argument("--guard", choices=["kernel", "rootless", ""], default="")
    parser.add_argument("--target", default="")
    parser.add_argument("--steps", nargs="*", default=[])
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, too_long)
    smoke = Smoke(options)
    failed = False
    for name in options.steps or ["installed", "doctor", "stdio", "handshake", "http", "guard", "nothing_left"]:
        outcome = attempt(name, getattr(smoke, f"step_{name}"))
        failed = failed or outcome["state"] == "failed"
        print(json.dumps(outcome), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
