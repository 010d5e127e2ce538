"""Test an installed mcp-network-tools as a user and a client would; print one JSON line with the result of each step.

It uses only the standard library, so that every interpreter and every empty environment can run it. The steps: doctor,
MCP over stdio in both protocol revisions with a real scan of a listener on loopback, MCP over HTTP, the guard, and a
clean stop of each server.

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
"""The programs and libraries that each tier needs (docs/guard.md)."""


class NotRunError(Exception):
    """This host cannot run the step; the message gives the reason."""


def check(condition: bool, reason: object) -> None:
    """Raise AssertionError with the reason if the condition is false; -O would remove an ``assert``."""
    if not condition:
        raise AssertionError(str(reason)[:600])


def piped(stream: IO[str] | None) -> IO[str]:
    """Return the stream; raise ValueError if it is None."""
    if stream is None:
        raise ValueError("the stream is not a pipe")
    return stream


class Server:
    """A server process over stdio: sends and receives messages."""

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
        with contextlib.suppress(BrokenPipeError):  # the error below has the output of the server
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
        """Without a failure, close its input and expect a clean exit within five seconds. After a failure, kill it."""
        if kind is None:
            self.stop()
            return
        self.process.kill()
        self.process.communicate()

    def stop(self) -> None:
        """Close its input and expect a clean exit."""
        self.stdin.close()
        code = self.process.wait(5)
        output = self.stderr.read()
        check(code == 0 and "Traceback" not in output, f"the server ended with {code}: {output[-500:]}")


@contextlib.contextmanager
def listener(address: str) -> Iterator[int]:
    """Open a port for the duration of the context; the kernel completes the handshake, and nothing is accepted."""
    with socket.create_server((address, 0)) as listening:
        yield int(listening.getsockname()[1])


class Smoke:
    """The steps, in order."""

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
        """Return the environment of a server with its own state folder."""
        return {**self.environment, "MCP_STATE_DIR": str(self.state / folder), **more}

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the program and wait for its end."""
        return subprocess.run(
            [self.program, *words],
            env=self.settings("cli", **more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def step_installed(self) -> str:
        """The program has the version that was built."""
        done = self.run("version", "--json")
        check(done.returncode == 0, done.stderr)
        version = json.loads(done.stdout)["version"]
        check(not self.version or version == self.version, f"{version} is installed, {self.version} was built")
        return str(version)

    def step_doctor(self) -> str:
        """The doctor runs, and reports correctly whether nmap is installed."""
        done = self.run("doctor", "--json")
        check("Traceback" not in done.stderr and done.stdout.startswith("{"), done.stderr or done.stdout)
        report = json.loads(done.stdout)
        nmap = next(each for each in report["checks"] if each["name"] == "tool nmap")
        check((nmap["state"] == "ok") == ("nmap" not in self.absent), nmap)
        return f"{report['state']}, exit {done.returncode}"

    def scan(self, server: Server, address: str, enforcement: str) -> str:
        """Scan an open and a closed port with nmap; without nmap, expect a refusal."""
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
        """Measure the cold start to the tools/list response of protocol revision 2026-07-28, then scan."""
        started = time.monotonic()
        with Server(self.program, self.settings("stdio")) as server:
            listed = server.ask("tools/list")
            took = time.monotonic() - started
            check("nmap" in {tool["name"] for tool in listed["tools"]}, listed)
            found = self.scan(server, "127.0.0.1", "argument")
        return f"{took:.2f} s to tools/list; nmap {found}"

    def step_handshake(self) -> str:
        """A client of an earlier protocol revision, which sends initialize first."""
        opening = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "smoke", "version": "1"}}
        with Server(self.program, self.settings("handshake")) as server:
            result = server.ask("initialize", modern=False, **opening)
            server.send({"method": "notifications/initialized"})
            check(bool(server.ask("tools/list", modern=False)["tools"]), "no tools")
        return str(result["protocolVersion"])

    def step_http(self) -> str:
        """A request needs the token, tools/list is answered, and SIGTERM stops the server cleanly."""
        environment = self.settings("http", MCP_SERVER_SHUTDOWN_GRACE_PERIOD="1")
        with listener("127.0.0.1") as free:
            port = str(free)
        words = [self.program, "serve", "--transport", "http", "--host", "127.0.0.1", "--port", port, "--json"]
        with subprocess.Popen(
            words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as server:
            errors, output = piped(server.stderr), ""
            while not (url := re.search(r"http://127\.0\.0\.1:\d+", output)):
                line = errors.readline()
                check(bool(line), f"the server ended: {output}")
                output += line
            try:
                self.speak_http(url.group())
            finally:
                server.send_signal(signal.SIGTERM)
                output += errors.read()
            code = server.wait(10)
        check(code in {0, 143} and "Traceback" not in output, f"the server ended with {code}: {output[-500:]}")
        return f"stopped with exit {code}"

    def speak_http(self, base: str) -> None:
        """Send one request without the token and one with it."""
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
        """Scan in the tier that this user can have; if a requirement is missing, expect a refused start."""
        if not self.guard:
            raise NotRunError("no tier was requested")
        if self.guard == "rootless" and (reason := missing_namespaces()):
            raise NotRunError(reason)
        needs = self.absent & GUARD_NEEDS[self.guard]
        more = {"MCP_SECURITY_GUARD": self.guard, "MCP_STATE_DIR": str(self.state / "guard")}
        if self.guard == "kernel":
            more["MCP_GUARD_USER"] = "nobody"
        if needs:
            done = self.run("serve", **more)
            refused = done.returncode == 9 and "guard_unavailable" in done.stderr
            check(refused, f"without {needs}: {done.returncode}: {done.stderr[-400:]}")
            return "refused: guard_unavailable"
        with Server(self.program, self.settings("guard", **more)) as server:
            found = self.scan(server, "127.0.0.1" if self.guard == "kernel" else self.target, self.guard)
        return f"{self.guard}: nmap {found}"

    def step_nothing_left(self) -> str:
        """In the PID namespace of the cell, every process has ended."""
        if os.environ.get("SMOKE_OWN_PIDS") != "1":
            raise NotRunError("this process shares the PID namespace of the machine")
        deadline = time.monotonic() + 5
        while left := [each for each in processes() if self.program.encode() in each or b"mcp_server" in each]:
            check(time.monotonic() < deadline, left)
            time.sleep(0.05)
        return "no process is left"


def processes() -> list[bytes]:
    """Return the command lines of all visible processes except this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes()
                if b"smoke.py" not in words:
                    found.append(words)
    return found


def missing_namespaces() -> str:
    """Return why this host has no user namespaces with a tap device, or an empty text if it has them."""
    unshare = shutil.which("unshare") or "/usr/bin/unshare"
    try:
        subprocess.run([unshare, "--user", "--net", "true"], check=True, capture_output=True)
        with Path("/dev/net/tun").open("r+b", buffering=0):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"this host has no user namespaces with a tap device: {error}"


def fetch(url: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Send a GET, or a POST with JSON, to this machine; return the status and the text."""
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data, headers or {})  # noqa: S310
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def attempt(name: str, step: Callable[[], str]) -> dict[str, str]:
    """Run a step with a time limit of `DEADLINE_SEC` seconds."""
    signal.alarm(DEADLINE_SEC)
    try:
        return {"step": name, "state": "passed", "detail": step()}
    except NotRunError as error:
        return {"step": name, "state": "not run", "detail": str(error)}
    except Exception as error:  # noqa: BLE001 - any error fails the step, and the next step runs
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
