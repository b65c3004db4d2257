"""Ethernet: the guest's address, the same in every guest, set once before any snapshot is taken.

There may be no device: then there is no network. Without a carrier, which the host gives to a guest
that it connects, the kernel answers at once that nothing can be reached.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from pathlib import Path

GUEST = "169.254.77.2"
GATEWAY = "169.254.77.1"
"""The other end of the link, and who answers for names."""

_NETMASK = "255.255.255.252"
_DEVICE = b"eth0"
_SETTINGS = Path("/proc/sys/net")

# linux/sockios.h
_SIOCADDRT = 0x890B
_SIOCSIFFLAGS = 0x8914
_SIOCGIFFLAGS = 0x8913
_SIOCSIFADDR = 0x8916
_SIOCSIFNETMASK = 0x891C

_IFF_UP = 1  # linux/if.h
_RTF_UP = 1  # linux/route.h
_RTF_GATEWAY = 2


def raise_loopback() -> None:
    """Bring up `lo`.

    Raises:
        OSError: The kernel refused.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        _raise(control, b"lo")


def settle() -> bool:
    """Give the guest its address and its route, and let it speak IPv4 alone.

    Returns:
        Whether there is a device.

    Raises:
        OSError: The kernel refused.
    """
    if _DEVICE.decode() not in (name for _, name in socket.if_nameindex()):
        return False
    # A route over a link that is down is none: what is tried fails at once, and does not wait.
    (_SETTINGS / "ipv4/conf/all/ignore_routes_with_linkdown").write_text("1")
    if (six := _SETTINGS / "ipv6/conf/eth0/disable_ipv6").exists():
        six.write_text("1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFADDR, struct.pack("16s16s8x", _DEVICE, _address(GUEST)))
        fcntl.ioctl(control, _SIOCSIFNETMASK, struct.pack("16s16s8x", _DEVICE, _address(_NETMASK)))
        _raise(control, _DEVICE)
        fcntl.ioctl(control, _SIOCADDRT, _default_route())
    return True


def _raise(control: socket.socket, name: bytes) -> None:
    answer = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH14x", name, 0))
    flags = struct.unpack_from("H", answer, 16)[0] | _IFF_UP
    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", name, flags))


def _default_route() -> bytes:
    """Return a `struct rtentry` (linux/route.h) that leads everything to the gateway."""
    anything = _address("0.0.0.0")  # noqa: S104 -- a destination
    flags = _RTF_UP | _RTF_GATEWAY
    return struct.pack("8x16s16s16sH62x", anything, _address(GATEWAY), anything, flags)


def _address(text: str) -> bytes:
    """Return a `struct sockaddr_in` (linux/in.h)."""
    return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))
