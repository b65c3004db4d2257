"""Whom an agent obeys: who claimed it first, and nobody else."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from tests import fake_guest
from vmpool.agent import connect, new_key
from vmpool.errors import GuestError
from vmpool.model import SerialAddress
from vmpool_agent import wire
from vmpool_agent.claim import Claim

if TYPE_CHECKING:
    from pathlib import Path

OURS, THEIRS = bytes(32), bytes([*range(31), 0xFF])
BOOTED, RESTORED = 70_000, 80_000
"""Context ids of a template's machine and of a clone's."""


def without_vsock() -> None:
    return None


def test_the_first_key_claims_an_agent_and_no_other_is_admitted() -> None:
    claim = Claim(without_vsock)
    assert claim.admit(OURS)
    assert not claim.admit(THEIRS)
    assert not claim.admit(OURS[:-1])
    assert claim.admit(OURS)


def test_a_released_agent_is_nobodys_until_its_machine_was_restored() -> None:
    cids = [BOOTED]
    claim = Claim(lambda: cids[-1])
    assert claim.admit(OURS)
    claim.release()
    assert not claim.admit(THEIRS)
    assert not claim.admit(OURS)
    cids.append(RESTORED)
    assert claim.admit(THEIRS)
    assert not claim.admit(OURS)


def test_without_vsock_a_released_agent_is_free_at_once() -> None:
    claim = Claim(without_vsock)
    assert claim.admit(OURS)
    claim.release()
    assert claim.admit(THEIRS)


def test_keys_are_long_and_do_not_repeat() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert {len(key) for key in keys} == {wire.KEY_SIZE}
    assert wire.KEY_SIZE * 8 >= 128


async def test_an_agent_hangs_up_on_another_key_before_any_operation(tmp_path: Path) -> None:
    with fake_guest.running(tmp_path) as path:
        async with await connect(SerialAddress(path=path), key=OURS, timeout=10):
            pass
        reader, writer = await asyncio.open_unix_connection(str(path))
        intruder = wire.Connection(wire.Role.HOST)
        intruder.synchronise(bytes(16), THEIRS)
        request = b'{"op":"write","path":"mark","user":"user","mode":null}'
        opened = b"\x03\0\0\0\0\0\0\x01" + b"\x05\0" + len(request).to_bytes(2, "big")
        writer.write(intruder.take() + opened + b"\0\0\0\x01" + request)
        with contextlib.suppress(ConnectionResetError):  # it hangs up with the rest unread
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        async with await connect(SerialAddress(path=path), key=OURS, timeout=10) as agent:
            listed = await agent.list_directory("~", user="user")
    assert not [entry.path for entry in listed if entry.path.endswith("mark")]


async def test_a_host_with_another_key_finds_nobody(tmp_path: Path) -> None:
    with fake_guest.running(tmp_path) as path:
        async with await connect(SerialAddress(path=path), key=OURS, timeout=10):
            pass
        with pytest.raises(GuestError) as raised:
            await connect(SerialAddress(path=path), key=THEIRS, timeout=0.3)
    assert raised.value.error_code == "guest_unreachable"


async def test_a_host_that_comes_again_with_its_key_is_obeyed(tmp_path: Path) -> None:
    with fake_guest.running(tmp_path) as path:
        for _ in range(2):
            async with await connect(SerialAddress(path=path), key=OURS, timeout=10) as agent:
                assert (await agent.stat("/", user="user")).path == "/"


async def test_a_released_agent_serves_its_host_to_the_end_and_then_the_next(
    tmp_path: Path,
) -> None:
    with fake_guest.running(tmp_path) as path:
        async with await connect(SerialAddress(path=path), key=OURS, timeout=10) as agent:
            await agent.release(timeout=10)
            assert (await agent.stat("/", user="user")).path == "/"
        async with await connect(SerialAddress(path=path), key=THEIRS, timeout=10) as agent:
            assert (await agent.stat("/", user="user")).path == "/"


def test_an_agents_end_that_was_told_nobody_admits_nobody() -> None:
    host, agent = wire.Connection(wire.Role.HOST), wire.Connection(wire.Role.AGENT)
    host.synchronise(bytes(16), OURS)
    with pytest.raises(wire.RefusedError):
        agent.receive(host.take())
    assert not agent.outgoing
    assert not agent.synchronised
