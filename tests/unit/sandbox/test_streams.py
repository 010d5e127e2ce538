"""Pumping a pipe into a sink."""

from __future__ import annotations

import asyncio
import os

import pytest

from mcp_server.sandbox.streams import Bounded, LimitError, OutputHead, Pump


async def test_a_pump_reads_to_the_end_and_leaves_the_descriptor_to_its_owner() -> None:
    reader, writer = os.pipe()
    chunks: list[bytes] = []
    pump = Pump(asyncio.get_running_loop(), reader, chunks.append)
    os.write(writer, b"one")
    os.close(writer)
    await asyncio.wait_for(pump.ended, 5)
    assert (chunks, pump.total, pump.error) == ([b"one"], 3, None)
    assert not pump.failed.done()
    os.close(reader)


async def test_nothing_is_read_after_the_sink_has_raised() -> None:
    reader, writer = os.pipe()

    def refuse(data: bytes) -> None:
        raise KeyError(data)

    pump = Pump(asyncio.get_running_loop(), reader, refuse)
    os.write(writer, b"one")
    await asyncio.wait_for(pump.failed, 5)
    os.write(writer, b"two")
    await asyncio.sleep(0.02)
    assert isinstance(pump.error, KeyError)
    assert os.read(reader, 10) == b"two"
    pump.stop()
    os.close(reader)
    os.close(writer)


def test_head_keeps_the_beginning() -> None:
    head = OutputHead(5)
    for data in (b"abc", b"de", b""):
        head(data)
    assert (bytes(head.kept), head.truncated) == (b"abcde", False)
    head(b"f")
    assert (bytes(head.kept), head.truncated) == (b"abcde", True)


def test_bounded_lets_exactly_the_limit_through() -> None:
    passed = bytearray()
    bounded = Bounded(5, passed.extend)
    bounded(b"abc")
    bounded(b"de")
    with pytest.raises(LimitError):
        bounded(b"f")
    again = Bounded(5, passed.extend)
    with pytest.raises(LimitError):
        again(b"fghijk")
    assert passed == b"abcdefghij"
