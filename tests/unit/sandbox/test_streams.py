"""Reading a pipe into a sink."""

from __future__ import annotations

import asyncio
import os

import pytest

from mcp_server.sandbox.streams import BoundedSink, OutputHead, OutputLimitError, PipeReader


async def test_a_pipe_reader_reads_to_the_end_and_does_not_close_the_descriptor() -> None:
    reader, writer = os.pipe()
    chunks: list[bytes] = []
    pipe = PipeReader(asyncio.get_running_loop(), reader, chunks.append)
    os.write(writer, b"one")
    os.close(writer)
    await asyncio.wait_for(pipe.ended, 5)
    assert (chunks, pipe.total, pipe.error) == ([b"one"], 3, None)
    assert not pipe.failed.done()
    os.close(reader)


async def test_nothing_is_read_after_the_sink_has_raised() -> None:
    reader, writer = os.pipe()

    def refuse(data: bytes) -> None:
        raise KeyError(data)

    pipe = PipeReader(asyncio.get_running_loop(), reader, refuse)
    os.write(writer, b"one")
    await asyncio.wait_for(pipe.failed, 5)
    os.write(writer, b"two")
    await asyncio.sleep(0.02)
    assert isinstance(pipe.error, KeyError)
    assert os.read(reader, 10) == b"two"
    pipe.stop()
    os.close(reader)
    os.close(writer)


def test_an_output_head_keeps_the_first_bytes() -> None:
    head = OutputHead(5)
    for data in (b"abc", b"de", b""):
        head(data)
    assert (bytes(head.kept), head.truncated) == (b"abcde", False)
    head(b"f")
    assert (bytes(head.kept), head.truncated) == (b"abcde", True)


def test_a_bounded_sink_passes_exactly_the_limit() -> None:
    passed = bytearray()
    bounded = BoundedSink(5, passed.extend)
    bounded(b"abc")
    bounded(b"de")
    with pytest.raises(OutputLimitError):
        bounded(b"f")
    again = BoundedSink(5, passed.extend)
    with pytest.raises(OutputLimitError):
        again(b"fghijk")
    assert passed == b"abcdefghij"
