"""A stand-in for the server inside a guard, and its guardian: the parts under test without the doors.

``python -m tests.support.guard_inside`` is the guardian. What it starts does what it is told on its standard input,
a line of JSON at a time, and answers each on its standard output: ``{"do": "read"}``, ``{"do": "reload", "policy":
HASH}``, ``{"do": "send", "hex": …}`` (anything at all to the guardian), ``{"do": "run", "targets": […], "argv": […]}``,
``{"do": "spawns", "program": …, "rounds": …}``, ``{"do": "python", "code": …}`` (``guard`` is the guard, ``found`` what
is answered).
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from dataclasses import asdict
from ipaddress import ip_network
from typing import Any

from mcp_server.errors import NetworkToolsError
from mcp_server.execution.guard.client import KernelGuard
from mcp_server.execution.process import Limits, run_process
from mcp_server.execution.sandbox import Sandbox
from mcp_server.model.target import Target, Targets


def targets_of(texts: list[str]) -> Targets:
    return Targets(tuple(Target(text, networks=(ip_network(text),)) for text in texts))


async def carry_out(guard: KernelGuard, order: dict[str, Any]) -> Any:  # noqa: PLR0911 - one for each order
    match order["do"]:
        case "read":
            return asdict(await guard.read())
        case "reload":
            await guard.reload(order["policy"])
            return guard.policy_hash
        case "send":
            return guard._channel.send(bytes.fromhex(order["hex"]))
        case "descriptors":
            sending = [sys.stderr.fileno()] * order["count"]
            return socket.send_fds(guard._channel, [b'[1,"read"]'], sending)
        case "run":
            output = bytearray()
            place = guard.place_for(targets_of(order["targets"]))
            sandbox = Sandbox(reads=("/usr/share/nmap",), raw_sockets=order.get("raw", False))
            ended = await run_process(
                tuple(order["argv"]), Limits(timeout_sec=20), output.extend, place=place, sandbox=sandbox
            )
            return {"returncode": ended.returncode, "output": output.decode(), "seconds": ended.seconds}
        case "spawns":
            return await spawn(guard, order["program"], order["rounds"])
        case "python":
            names: dict[str, Any] = {"guard": guard, "found": None}
            exec(order["code"], names)  # noqa: S102 - the test's own text
            return names["found"]
        case other:
            raise ValueError(other)


async def spawn(guard: KernelGuard, program: str, rounds: int) -> list[list[float]]:
    """Milliseconds of asyncio's bare subprocess, and of a run as the road makes it: reading, sandbox, reading."""
    place, sandbox = guard.place_for(targets_of(["192.0.2.1"])), Sandbox(raw_sockets=True)

    async def bare() -> None:
        process = await asyncio.create_subprocess_exec(program, stdout=asyncio.subprocess.PIPE)
        await process.communicate()

    async def guarded() -> None:
        await guard.read()
        await run_process((program,), Limits(timeout_sec=20), lambda _: None, place=place, sandbox=sandbox)
        await guard.read()

    taken: list[list[float]] = [[], []]
    for _ in range(rounds):
        for way, values in zip((bare, guarded), taken, strict=True):
            started = time.perf_counter()
            await way()
            values.append(1000 * (time.perf_counter() - started))
    return taken


async def obey(guard: KernelGuard) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while line := await reader.readline():
        try:
            answer: Any = {"answer": await carry_out(guard, json.loads(line))}
        except NetworkToolsError as error:
            answer = {"error": error.as_dict()}
        except OSError as error:
            answer = {"error": {"code": "os", "message": str(error), "errno": error.errno}}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    guard.close()


def be_guardian() -> int:
    from mcp_server.config import get_config, load_config
    from mcp_server.doors.http import listen
    from mcp_server.execution.guard.kernel import KernelGuardian

    host, port = os.environ["INSIDE_LISTENS"].split()
    command = [sys.executable, "-m", "tests.support.guard_inside"]
    guardian = KernelGuardian(
        get_config(),
        command,
        reload=lambda: load_config(notify=False),
        bind=lambda: listen(host, int(port)).sock,
    )
    return guardian.run()


if __name__ == "__main__":
    if "--inside" in sys.argv:
        asyncio.run(obey(KernelGuard(int(sys.argv[-1]))))
    else:
        try:
            sys.exit(be_guardian())
        except NetworkToolsError as problem:
            sys.exit(f"{problem.code} {problem.message}")
