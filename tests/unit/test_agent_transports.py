"""The ways a host's stream comes: a device may be late, and a kernel promise more than it has."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

import pytest

from vmpool.engine.qemu import vsock
from vmpool.errors import HostError
from vmpool_agent import transports
from vmpool_agent.session import Service

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Watched:
    """A reactor that only remembers what it is to watch."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []

    def watch(self, descriptor: int, _callback: Callable[[], None]) -> None:
        self.descriptors.append(descriptor)

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(transports, "_DEVICE_POLL", 0)
    return Watched()


def nobody(_key: bytes) -> bool:
    return False


SERVICE = Service(nobody, lambda _channel, _request: None)


def test_a_serial_port_that_comes_late_is_waited_for_where_vsock_has_no_device(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, ours = os.openpty()
    looks = iter([None, None, os.ttyname(ours)])
    monkeypatch.setattr(transports, "find_serial_port", lambda: next(looks))
    monkeypatch.setattr(transports, "listen_on_vsock", lambda *_: None)
    transports.open_streams(watched, SERVICE, lambda: None)  # type: ignore[arg-type]
    (opened,) = watched.descriptors
    os.write(port, b"x\n")
    assert select.select([opened], [], [], 5)[0] == [opened]
    for descriptor in (port, ours):
        os.close(descriptor)
    watched.close()


def test_a_vsock_device_that_comes_late_ends_the_search(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    cids = iter([None, None, 70_000])
    monkeypatch.setattr(transports, "find_serial_port", lambda: None)
    monkeypatch.setattr(transports, "listen_on_vsock", lambda *_: None)
    transports.open_streams(watched, SERVICE, lambda: next(cids))  # type: ignore[arg-type]
    assert next(cids, None) is None
    assert not watched.descriptors


def test_a_machine_with_neither_is_given_up(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transports, "_DEVICE_WAIT", 0)
    monkeypatch.setattr(transports, "find_serial_port", lambda: None)
    monkeypatch.setattr(transports, "listen_on_vsock", lambda *_: None)
    transports.open_streams(watched, SERVICE, lambda: None)  # type: ignore[arg-type]
    assert not watched.descriptors


@pytest.mark.parametrize(("there", "remedy"), [(False, "modprobe"), (True, "account")])
def test_a_vsock_device_that_cannot_be_opened_is_told_with_what_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool, remedy: str
) -> None:
    device = tmp_path if there else tmp_path / "none"
    monkeypatch.setattr(vsock, "DEVICE", os.fspath(device))
    with pytest.raises(HostError) as raised:
        vsock.claim()
    assert raised.value.error_code == "vsock_missing"
    assert remedy in raised.value.remedy
