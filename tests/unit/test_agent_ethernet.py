"""The guest gives itself its address, in a namespace that the test makes."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

from tests import netns
from vmpool.network.namespace import call_in
from vmpool_agent import ethernet

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces are root's to make")


def ip(where: str, *argv: str) -> str:
    return subprocess.run(
        ["ip", "-n", where, *argv], check=True, capture_output=True, text=True
    ).stdout


def test_a_guest_with_a_device_has_its_address_and_a_way_out() -> None:
    with netns.made() as guest:
        ip(guest.name, "link", "add", "eth0", "type", "veth", "peer", "name", "other")
        assert call_in(guest, ethernet.settle)
        assert f"{ethernet.GUEST}/30" in ip(guest.name, "-4", "addr", "show", "eth0")
        assert f"default via {ethernet.GATEWAY} dev eth0" in ip(guest.name, "route")
        assert "inet6" not in ip(guest.name, "addr", "show", "eth0")


def test_a_guest_without_a_carrier_learns_so_at_once() -> None:
    def attempt() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.sendto(b"x", ("203.0.113.5", 9))

    with netns.made() as guest:
        ip(guest.name, "link", "add", "eth0", "type", "veth", "peer", "name", "other")
        call_in(guest, ethernet.settle)  # the other end is down, so there is no carrier
        with pytest.raises(OSError, match="unreachable"):
            call_in(guest, attempt)
        ip(guest.name, "link", "set", "other", "up")
        call_in(guest, attempt)


def test_a_guest_without_a_device_goes_on_without() -> None:
    with netns.made() as guest:
        assert not call_in(guest, ethernet.settle)
        call_in(guest, ethernet.raise_loopback)
        assert "UP" in ip(guest.name, "link", "show", "lo")
