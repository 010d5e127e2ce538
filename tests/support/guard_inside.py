"""A guard helper with a simple program in place of the server, for tests of the guard without the interfaces.

``python -m tests.support.guard_inside`` is the guard helper. The program that it starts reads orders from standard
input, one JSON object per line, and answers each on standard output. The orders are:

- ``{"do": "read"}`` and ``{"do": "reload", "policy": HASH}`` call the guard.
- ``{"do": "send", "hex": …}`` sends bytes to the guard helper.
- ``{"do": "descriptors", "count": …}`` passes file descriptors to the guard helper.
- ``{"do": "run", "targets": […], "argv": […]}`` runs a program.
- ``{"do": "spawns", "floor": […], "program": …, "rounds": …}`` measures the start of the floor and of the program.
- ``{"do": "python", "code": …}`` executes code. In it, ``guard`` is the guard. The answer is the value of ``found``.
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
from mcp_server.netguard.client import PacketGuard
from mcp_server.sandbox.process import ProcessLimits, run_process
from mcp_server.sandbox.sandbox import Sandbox


def targets_of(texts: list[str]) -> Targets:
    return Targets(tuple(Target(text, networks=(ip_network(text),)) for text in texts))


async def carry_out(guard: PacketGuard, order: dict[str, Any]) -> Any:  # noqa: PLR0911 - one return for each order
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
            return await spawn(guard, order["floor"], order["program"], order["rounds"])
        case "python":
            names: dict[str, Any] = {"guard": guard, "found": None}
            exec(order["code"], names)  # noqa: S102 - code of the test
            return names["found"]
        case other:
            raise ValueError(other)


async def spawn(guard: PacketGuard, floor: list[str], program: str, rounds: int) -> list[list[float]]:
    """Return the milliseconds of asyncio's own subprocess and of a sandboxed run between two readings of the guard."""
    executor, sandbox = guard.executor_for(targets_of(["192.0.2.1"])), Sandbox(raw_sockets=True)

    async def bare() -> None:
        process = await asyncio.create_subprocess_exec(*floor, stdout=asyncio.subprocess.PIPE)
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


async def obey(guard: PacketGuard) -> None:
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


def run_helper() -> int:
    from mcp_server.api.http.connections import listen
    from mcp_server.config import get_config, load_config
    from mcp_server.netguard.kernel import KernelGuardHelper

    host, port = os.environ["INSIDE_LISTENS"].split()
    command = [sys.executable, "-m", "tests.support.guard_inside"]
    helper = KernelGuardHelper(
        get_config(),
        command,
        load_config=lambda: load_config(notify=False),
        bind=lambda: listen(host, int(port)).sock,
    )
    return helper.run()


if __name__ == "__main__":
    if "--inside" in sys.argv:
        asyncio.run(obey(PacketGuard(int(sys.argv[-1]))))
    else:
        try:
            sys.exit(run_helper())
        except NetworkToolsError as problem:
            sys.exit(f"{problem.code} {problem.message}")
