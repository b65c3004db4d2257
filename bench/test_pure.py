"""The pure parts that every request passes, timed alone: `pytest bench/test_pure.py`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from vmpool import disk
from vmpool.model import GIB
from vmpool.policy import Census, Limits, Plan, plan
from vmpool_agent import wire
from vmpool_agent.message import decode, encode
from vmpool_agent.wire import Connection, Role

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

REQUEST = {
    "op": "code",
    "source": "print(6*7)",
    "env": {"VMPOOL_SANDBOX_ID": "a" * 20, "VMPOOL_TEMPLATE": "python"},
    "cwd": None,
    "user": "user",
    "timeout": 60.0,
}
OUTPUT = os.urandom(wire.MAX_PAYLOAD - wire.FRAME_COST)


def _connected() -> tuple[Connection, Connection, int]:
    """Return both ends of a synchronised stream with one channel open."""
    host, agent = Connection(Role.HOST), Connection(Role.AGENT, lambda _key: True)
    host.synchronise(bytes(wire.NONCE_SIZE), bytes(wire.KEY_SIZE))
    list(agent.receive(host.take()))
    list(host.receive(agent.take()))
    channel = host.open()
    list(agent.receive(host.take()))
    return host, agent, channel


def test_a_message_is_encoded(benchmark: BenchmarkFixture) -> None:
    assert bytes(benchmark(encode, REQUEST)).startswith(b'{"op":"code"')


def test_a_message_is_decoded(benchmark: BenchmarkFixture) -> None:
    assert benchmark(decode, bytes(encode(REQUEST))) == REQUEST


def test_a_frame_of_output_crosses_the_wire(benchmark: BenchmarkFixture) -> None:
    host, agent, channel = _connected()

    def cross() -> int:
        agent.send_data(channel, wire.STDOUT, OUTPUT)
        taken = 0
        for event in host.receive(agent.take()):
            assert isinstance(event, wire.Data)
            host.consumed(event)
            taken += len(event.payload)
        list(agent.receive(host.take()))  # credit
        return taken

    assert benchmark(cross) == len(OUTPUT)


def test_a_pool_is_planned(benchmark: BenchmarkFixture) -> None:
    limits = Limits(ready=4, total=16, memory_bytes=4 * GIB, clone_bytes=GIB // 4)
    census = Census(ready=1, restoring=1, held=3, dying=1, waiting=2)
    assert benchmark(plan, limits, census) == Plan(restore=1)


@pytest.mark.parametrize("size_bytes", [GIB, 64 * GIB], ids=["1 GiB", "64 GiB"])
def test_an_overlay_is_written(
    benchmark: BenchmarkFixture, tmp_path: Path, size_bytes: int
) -> None:
    path = tmp_path / "overlay"

    def write() -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            disk.write_overlay(descriptor, size_bytes)
        finally:
            os.close(descriptor)

    benchmark(write)
    assert path.read_bytes().startswith(b"QFI\xfb\0\0\0\3")
