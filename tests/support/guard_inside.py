"""A stand-in for the server inside a guard, and its guard helper: the parts under test without the interfaces.

``python -m tests.support.guard_inside`` is the guard helper. What it starts does what it is told on its standard input,
a line of JSON at a time, and answers each on its standard output: ``{"do": "read"}``, ``{"do": "reload", "policy":
HASH}``, ``{"do": "send", "hex": …}`` (anything at all to the guard helper), ``{"do": "run", "targets": […], "argv": […]}``,
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
from mcp_server.model.target import Target, Targets
from mcp_server.netguard.client import KernelGuard
from mcp_server.sandbox.process import ProcessLimits, run_process
from mcp_server.sandbox.sandbox import Sandbox


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
            executor = guard.executor_for(targets_of(order["targets"]))
            sandbox = Sandbox(reads=("/usr/share/nmap",), raw_sockets=order.get("raw", False))
            ended = await run_process(
                tuple(order["argv"]), ProcessLimits(timeout_sec=20), output.extend, executor=executor, sandbox=sandbox
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
    executor, sandbox = guard.executor_for(targets_of(["192.0.2.1"])), Sandbox(raw_sockets=True)

    async def bare() -> None:
        process = await asyncio.create_subprocess_exec(program, stdout=asyncio.subprocess.PIPE)
        await process.communicate()

    async def guarded() -> None:
        await guard.read()
        await run_process((program,), ProcessLimits(timeout_sec=20), lambda _: None, executor=executor, sandbox=sandbox)
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


def be_helper() -> int:
    from mcp_server.api.http.connections import listen
    from mcp_server.config import get_config, load_config
    from mcp_server.netguard.kernel import KernelGuardHelper

    host, port = os.environ["INSIDE_LISTENS"].split()
    command = [sys.executable, "-m", "tests.support.guard_inside"]
    helper = KernelGuardHelper(
        get_config(),
        command,
        reload=lambda: load_config(notify=False),
        bind=lambda: listen(host, int(port)).sock,
    )
    return helper.run()


if __name__ == "__main__":
    if "--inside" in sys.argv:
        asyncio.run(obey(KernelGuard(int(sys.argv[-1]))))
    else:
        try:
            sys.exit(be_helper())
        except NetworkToolsError as problem:
            sys.exit(f"{problem.code} {problem.message}")
