"""The tools of the protocol tests: a child process, stray output, a long wait, a long result."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio

from tests.contract.everything_tools import Answer, Context, Params, fixture, strings, text_result


@fixture("Runs a child process until cancelled, and writes its pid", schema=strings("pid_file"))
async def run_child(ctx: Context, params: Params) -> Answer:
    process = await asyncio.create_subprocess_exec("sleep", "300", stdin=None)
    try:
        Path((params.arguments or {})["pid_file"]).write_text(str(process.pid))
        return text_result(f"ended with {await process.wait()}")
    finally:
        if process.returncode is None:
            process.kill()
            # The SDK cancels by scope: without a shield, every further await would be cancelled too.
            with anyio.CancelScope(shield=True):
                await process.wait()


@fixture("Writes to standard output and reads standard input, as a careless library would")
async def stray_output(ctx: Context, params: Params) -> Answer:
    print("stray line of the server")  # noqa: T201 - a stray line on purpose
    process = await asyncio.create_subprocess_exec("sh", "-c", "echo stray line of a child; cat | wc -c >&2")
    return text_result(f"child ended with {await process.wait()}")


@fixture("Waits", schema={"type": "object", "properties": {"seconds": {"type": "number"}}})
async def wait(ctx: Context, params: Params) -> Answer:
    await asyncio.sleep((params.arguments or {}).get("seconds", 0.0))
    return text_result("waited")


@fixture("Answers with a long text", schema={"type": "object", "properties": {"size": {"type": "integer"}}})
async def long_text(ctx: Context, params: Params) -> Answer:
    return text_result("x" * (params.arguments or {}).get("size", 0))


@fixture("Lists the descriptors that a child process inherits without close_fds")
async def inherited_descriptors(ctx: Context, params: Params) -> Answer:
    process = await asyncio.create_subprocess_exec(
        "/bin/ls", "-l", "/proc/self/fd", stdout=asyncio.subprocess.PIPE, close_fds=False
    )
    listing, _ = await process.communicate()
    return text_result(listing.decode())
