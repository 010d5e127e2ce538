"""A host for tests of guards: namespaces with users and a network, and a machine outside that counts frames.

::

    world (network + mount namespace)                outside (network namespace)
      eth0 10.99.0.1/24  ───────────── veth ─────────── eth0 10.99.0.2/24, 10.99.0.66, 203.0.113.1
      the guard's own device is on eth0                 nft counts every frame that should not arrive
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.support.processes import binary

ROOT: Final = Path(__file__).resolve().parents[2]
HOST, TARGET, UNKNOWN_CALLER, GUARDED = "10.99.0.1", "10.99.0.2", "10.99.0.66", "10.99.0.250"
NOWHERE: Final = "203.0.113.1"
OPEN_PORT: Final = 2222
SERVER_UID: Final = 61101
LOOPBACK_UID: Final = 61102
MACVLAN: Final = {"MCP_GUARD_ADDRESSES": f"{GUARDED}/24", "MCP_GUARD_GATEWAYS": TARGET}
SOON: Final = 10.0

OPEN_FOLDERS: Final = r"""
while [ $# -gt 1 ]; do  # $1: a private folder, $2: a folder below it that is needed
  mkdir /run/keep/folder
  mount --bind "$2" /run/keep/folder
  mount -t tmpfs -o mode=755 private "$1"
  mkdir -p "$2"
  mount --bind /run/keep/folder "$2"
  umount /run/keep/folder
  rmdir /run/keep/folder
  shift 2
done
"""
"""Gives other users access to the folders of `opened`, in a mount namespace. It needs an empty folder /run/keep."""

_SETUP: Final = (
    r"""
mount -t tmpfs -o mode=755 run /run
mkdir /run/world /run/keep
grep -v '^world' /etc/passwd >/run/keep/passwd
echo "world-server:x:$1:$1::/nonexistent:/usr/sbin/nologin" >>/run/keep/passwd
echo "world-loopback:x:$2:$2::/nonexistent:/usr/sbin/nologin" >>/run/keep/passwd
mount --bind /run/keep/passwd /etc/passwd
shift 2
"""
    + OPEN_FOLDERS
    + r"""
sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
sysctl -qw net.ipv6.conf.lo.disable_ipv6=0
ip link set lo up
"""
)
_COUNT: Final = f"""
table netdev world {{
  counter stray {{ }}
  counter fine {{ }}
  chain arriving {{
    type filter hook ingress device eth0 priority 0; policy accept;
    ether type ip ip daddr {TARGET} counter name fine accept
    ether type arp arp daddr ip {{ {HOST}, {TARGET} }} counter name fine accept
    counter name stray accept
  }}
}}
"""


def opened() -> list[str]:
    """Pairs of a private folder and a folder below it that has the interpreter or this checkout."""
    pairs: dict[Path, Path] = {}
    for needed in (Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), ROOT):
        private = [folder for folder in reversed(needed.parents) if not folder.stat().st_mode & 0o001]
        if private:
            assert private[0] not in pairs.values(), f"expected one needed folder below {private[0]}, found two"
            pairs[needed] = private[0]
    return [str(word) for needed, private in pairs.items() for word in (private, needed)]


@dataclass
class World:
    """A host for guards and the machine outside it. ``env`` is the environment of every command."""

    pid: int
    outside: int
    env: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The path by which this process reaches the folder /run/world of the host."""
        return self.see("/run/world")

    def see(self, path: str) -> Path:
        """The path by which this process reaches a path of the host."""
        return Path(f"/proc/{self.pid}/root{path}")

    @property
    def prefix(self) -> list[str]:
        """The words before a command that run it on the host. They execute it, so the PID stays the same."""
        return [binary("nsenter"), "--target", str(self.pid), "--net", "--mount", "--wd=" + str(ROOT)]

    def run(self, *argv: str, check: bool = True, text_in: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command on the host."""
        done = subprocess.run(
            [*self.prefix, *argv], env=self.env, input=text_in, capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or done.returncode == 0, (argv, done.stdout, done.stderr)
        return done

    def outdoors(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine outside."""
        enter = [binary("nsenter"), "--target", str(self.outside), "--net"]
        done = subprocess.run([*enter, *argv], capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, (argv, done.stdout, done.stderr)
        return done

    def cli(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run this project's command line on the host."""
        return self.run(sys.executable, "-m", "mcp_server", *words, check=check)

    def counted(self) -> dict[str, int]:
        """How many frames reached the machine outside: ``fine`` are allowed ones, ``stray`` are all others."""
        listed = json.loads(self.outdoors(binary("nft"), "-j", "list", "counters").stdout)["nftables"]
        return {item["counter"]["name"]: item["counter"]["packets"] for item in listed if "counter" in item}

    def start(
        self, *words: str, module: str = "mcp_server", under: Sequence[str] = (), **options: Any
    ) -> subprocess.Popen[str]:
        """Start a Python module on the host. Its standard error is written to serve.log in `folder`."""
        with (self.folder / "serve.log").open("w") as log:
            return subprocess.Popen(
                [*self.prefix, *under, sys.executable, "-m", module, *words], env=self.env, stderr=log, text=True,
                **{"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL} | options,
            )  # fmt: skip

    @property
    def log(self) -> str:
        """The standard error of the last server and its guard helper."""
        return (self.folder / "serve.log").read_text()

    def traces(self) -> dict[str, Any]:
        """Everything that a guard can change on the host, as it is now."""
        links = json.loads(self.run(binary("ip"), "-json", "link", "show").stdout)
        settings = self.run("sh", "-c", "grep -s . /proc/sys/net/ipv4/conf/*/forwarding || true")
        run = self.see("/run/mcp-network-tools")
        return {
            "links": sorted(link["ifname"] for link in links),
            "tables": self.run(binary("nft"), "list", "tables").stdout.splitlines(),
            "settings": settings.stdout.splitlines(),
            "files": sorted(entry.name for entry in run.iterdir() if entry.name != "lock") if run.is_dir() else [],
            "processes": sorted(self.processes()),
        }

    def processes(self) -> list[int]:
        """The PIDs of the processes in the host's mount namespace, without the one that keeps it alive."""
        mine = Path(f"/proc/{self.pid}/ns/mnt").stat().st_ino
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.pid:
                try:
                    if (entry / "ns/mnt").stat().st_ino == mine and "Z" not in _stat(entry)[:1]:
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found


def _stat(process: Path) -> list[str]:
    return (process / "stat").read_text().rpartition(")")[2].split()


@dataclass
class Guarded:
    """A running guard: ``process`` is the guard helper, and ``server`` is the PID of the server inside."""

    world: World
    process: subprocess.Popen[str]
    server: int

    def status(self) -> dict[str, str]:
        """The fields of the server's /proc/PID/status."""
        lines = Path(f"/proc/{self.server}/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line)

    def inside(self, *argv: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a program like the server: in its namespace, as its user, with no capability except CAP_NET_RAW."""
        as_server = [
            binary("nsenter"), "--target", str(self.server), "--net", "--mount", "--", binary("setpriv"),
            "--no-new-privs", f"--reuid={SERVER_UID}", f"--regid={SERVER_UID}", "--clear-groups",
            "--inh-caps=-all,+net_raw", "--ambient-caps=-all,+net_raw", "--bounding-set=-all,+net_raw", "--",
        ]  # fmt: skip
        done = subprocess.run([*as_server, *argv], capture_output=True, text=True, timeout=60, check=False, cwd="/")
        assert not check or done.returncode == 0, (argv, done.stdout, done.stderr)
        return done

    def guard(self) -> dict[str, Any]:
        """What ``guard status`` reports about the only guard."""
        guards = json.loads(self.world.cli("guard", "status", "--json").stdout)["guards"]
        assert len(guards) == 1, f"expected one guard, found {guards}"
        found: dict[str, Any] = guards[0]
        return found


def wait_for(done: Callable[[], object], why: Callable[[], str] = str, seconds: float = SOON) -> None:
    """Wait until ``done`` returns a true value, and fail with ``why`` if that takes too long."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, why()
        time.sleep(0.02)


@contextmanager
def _holder(script: str, *arguments: str, unshare: Sequence[str]) -> Iterator[int]:
    held = subprocess.Popen(
        [binary("setpriv"), "--pdeathsig", "KILL", "--", binary("unshare"), *unshare, "sh", "-ec",
         f"{script}\necho ready\nexec sleep 600", "sh", *arguments],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert held.stdout is not None
        line = held.stdout.readline()
        assert line == "ready\n", f"expected the namespaces to be set up, found {line!r}"
        yield held.pid
    finally:
        held.kill()
        held.communicate()


@contextmanager
def world() -> Iterator[World]:
    """Create a host and the machine outside, which listens on OPEN_PORT. At the end, kill all their processes."""
    quiet = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1\nip link set lo up"
    private = ("--net", "--mount", "--propagation", "private")
    with (
        _holder(_SETUP, str(SERVER_UID), str(LOOPBACK_UID), *opened(), unshare=private) as pid,
        _holder(quiet, unshare=("--net",)) as outside,
    ):
        made = World(pid, outside, environment())
        made.run(
            binary("ip"), "-batch", "-",
            text_in=f"link add eth0 type veth peer name eth0 netns {outside}\naddr add {HOST}/24 dev eth0\n"
            f"link set eth0 up\nroute add default via {TARGET}\n",
        )  # fmt: skip
        for line in (
            f"addr add {TARGET}/24 dev eth0", f"addr add {UNKNOWN_CALLER}/24 dev eth0", f"addr add {NOWHERE}/32 dev lo",
            "link set eth0 up", f"route add {GUARDED}/32 dev eth0",
        ):  # fmt: skip
            made.outdoors(binary("ip"), *line.split())
        made.outdoors(binary("sh"), "-c", f"{binary('nft')} -f - <<'END'\n{_COUNT}\nEND")
        listening = subprocess.Popen(
            [binary("nsenter"), "--target", str(outside), "--net", sys.executable, "-c", _LISTENER, str(OPEN_PORT)],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert listening.stdout is not None
            started = listening.stdout.readline()
            assert started == b"ready\n", f"expected a listener on the machine outside, found {started!r}"
            yield made
        finally:
            listening.kill()
            listening.communicate()
            for left in made.processes():
                os.kill(left, signal.SIGKILL)


_LISTENER: Final = """
import socket, sys
listening = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
while True:
    listening.accept()[0].close()
"""


def environment(**extra: str) -> dict[str, str]:
    """The environment of a guarded server: this process's without project settings, plus the host's users and paths."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MCP_", "TOOL", "LOG_", "COV"))}
    settings = {
        "MCP_STATE_DIR": "/run/world/state",
        "MCP_SECURITY_POLICY_FILE": "/run/world/policy.yaml",
        "MCP_GUARD_USER": "world-server",
        "MCP_GUARD_LOOPBACK_USER": "world-loopback",
    }
    return kept | settings | extra


def policy(*allow: str, exclude: Sequence[str] = ()) -> str:
    """The content of a policy file."""
    return json.dumps({"version": 1, "allow": list(allow), "exclude": list(exclude)})


@contextmanager
def guarded(
    made: World, *words: str, settings: Mapping[str, str] = MACVLAN, rules: str = "", **options: Any
) -> Iterator[Guarded]:
    """Run ``serve`` in the kernel tier on a host. ``rules`` is the policy file, by default one that allows TARGET."""
    (made.folder / "policy.yaml").write_text(rules or policy(TARGET))
    made.env = environment(**settings)
    process = made.start(*(words or ("serve", "--guard", "kernel")), **options)
    try:

        def server() -> int:
            assert process.poll() is None, made.log
            file = made.see(f"/run/mcp-network-tools/guard-{process.pid}.json")
            return int(json.loads(file.read_text())["server"]) if file.exists() else 0

        wait_for(server, lambda: made.log, 30)
        yield Guarded(made, process, server())
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            finally:
                process.kill()
        process.communicate()


@dataclass
class Inside(Guarded):
    """A guard with the program of `guard_inside` in it, which executes orders."""

    def ask(self, do: str, **order: Any) -> Any:
        """Send an order and return its result. Fail if the answer is an error."""
        answer = self.try_to(do, **order)
        assert "error" not in answer, f"expected {do!r} to succeed, found {answer}"
        return answer["answer"]

    def try_to(self, do: str, **order: Any) -> dict[str, Any]:
        """Send an order and return its ``answer`` or ``error``."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do} | order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"expected an answer to {do!r}, found the end of the program: {self.world.log}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def policy_hash(self, rules: str) -> str:
        """Write a policy file and return the hash of its policy."""
        (self.world.folder / "policy.yaml").write_text(rules)
        reading = (
            "from mcp_server.scope.policy import ScopePolicy; from pathlib import Path; "
            "print(ScopePolicy.load(Path('/run/world/policy.yaml'), (), entries_are_set=False).hash)"
        )
        return self.world.run(sys.executable, "-c", reading).stdout.strip()


@contextmanager
def inside(made: World, port: int, **options: Any) -> Iterator[Inside]:
    """A guard with the program of `guard_inside` in it, and with a listening socket on a port of the host."""
    settings = {**options.pop("settings", MACVLAN), "INSIDE_LISTENS": f"{HOST} {port}"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with guarded(made, "", module="tests.support.guard_inside", settings=settings, **pipes, **options) as found:
        assert found.process.stdout is not None
        line = found.process.stdout.readline()
        assert line == "ready\n", f"expected the program to start, found {line!r}: {made.log}"
        yield Inside(found.world, found.process, found.server)


def attack(script: str) -> list[str]:
    """The command that runs a Python script as an attacker, with the whole standard library."""
    return [sys.executable, "-I", "-S", "-c", script]
