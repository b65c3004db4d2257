"""Links: interfaces, addresses and routes of slots, of the router and of the uplink.

The one module that knows pyroute2 and the tun device. It is told what to make and decides nothing.
Everything here blocks for a few milliseconds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

from pyroute2 import IPRoute, NetlinkError
from pyroute2.netlink.rtnl import TC_H_ROOT

from vmpool.errors import HostError
from vmpool.model import GUEST_MAC
from vmpool.network.addressing import GATEWAY, GATEWAY_MAC, GUEST, LINK_BITS
from vmpool.network.namespace import call_in
from vmpool.network.plan import TAP, UP, UPLINK, router_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from vmpool.egress import Bandwidth
    from vmpool.network.addressing import Range
    from vmpool.network.namespace import Namespace

    T = TypeVar("T")

TUN = "/dev/net/tun"
_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000

_MAIN_TABLE = 254  # linux/rtnetlink.h

_SETTINGS = Path("/proc/sys/net")

_BURST_SECONDS = 0.02
_BURST_LEAST = 128 << 10  # a segment that the kernel has not cut yet has 64 KiB
_DELAY_SECONDS = 0.1
_RATE_MOST = 2**32 - 1  # bytes a second in struct tc_ratespec; more than a tap passes


def make_slot(slot: Namespace, router: Namespace, number: int, within: Range) -> int:
    """Furnish a new slot: the guest's link, and the one to the router. *Not idempotent.*

    Returns:
        The descriptor of the guest's end, the caller's to close; the link is there for as long as
        somebody has it open.

    Raises:
        HostError: `network_failed`; the kernel refused.
    """

    def furnish() -> int:
        tap = open_tap()
        try:
            with router.path.open("rb") as there, _routes() as routes:
                _allow_forwarding()
                (guest_end,) = routes.link_lookup(ifname=TAP)
                routes.link("set", index=guest_end, address=GATEWAY_MAC, state="up")
                routes.addr("add", index=guest_end, address=str(GATEWAY), prefixlen=LINK_BITS)
                routes.neigh("add", ifindex=guest_end, dst=str(GUEST), lladdr=GUEST_MAC, state=0x80)
                peer = {"ifname": router_end(number), "net_ns_fd": there.fileno()}
                routes.link("add", ifname=UP, kind="veth", peer=peer)
                (up,) = routes.link_lookup(ifname=UP)
                routes.link("set", index=up, state="up")
                routes.addr("add", index=up, address=str(within.slot(number)), prefixlen=32)
                gateway = str(within.router)
                routes.route("add", dst="default", gateway=gateway, oif=up, flags=["onlink"])
        except BaseException:
            os.close(tap)
            raise
        return tap

    tap = _made(slot, furnish)
    try:
        _made(router, lambda: _meet_slot(number, within))
    except BaseException:
        os.close(tap)
        raise
    return tap


def make_router(home: Namespace, router: Namespace, uplink: str, within: Range) -> None:
    """Furnish the namespace that joins slots, with a link to the server's own. *Not idempotent.*

    Args:
        home: The server's own.
        uplink: Name of that link in it.

    Raises:
        HostError: `network_failed`; the kernel refused, or the name is taken.
    """

    def connect() -> None:
        with router.path.open("rb") as there, _routes() as routes:
            peer = {"ifname": UPLINK, "net_ns_fd": there.fileno()}
            routes.link("add", ifname=uplink, kind="veth", peer=peer)
            (ours,) = routes.link_lookup(ifname=uplink)
            _set(f"ipv6/conf/{uplink}/disable_ipv6", 1)
            _set(f"ipv4/conf/{uplink}/rp_filter", 1)
            _set(f"ipv4/conf/{uplink}/forwarding", 1)
            routes.addr("add", index=ours, address=str(within.home), prefixlen=LINK_BITS)
            routes.link("set", index=ours, state="up")

    def furnish() -> None:
        with _routes() as routes:
            _allow_forwarding()
            (theirs,) = routes.link_lookup(ifname=UPLINK)
            routes.addr("add", index=theirs, address=str(within.router), prefixlen=LINK_BITS)
            routes.link("set", index=theirs, state="up")
            routes.route("add", dst="default", gateway=str(within.home), oif=theirs)

    def lead_there() -> None:
        with _routes() as routes:
            routes.route("add", dst=str(within.network), gateway=str(within.router))

    _made(home, connect)
    _made(router, furnish)
    _made(home, lead_there)


def limit(slot: Namespace, bandwidth: Bandwidth) -> None:
    """Bound what a slot's guest sends and receives, or let it. *Idempotent.*

    Raises:
        HostError: `network_failed`; the kernel refused.
    """

    def bound() -> None:
        with _routes() as routes:
            for name, rate in ((UP, bandwidth.up), (TAP, bandwidth.down)):
                (index,) = routes.link_lookup(ifname=name)
                if rate is None:
                    _lift_limit(routes, index)
                else:
                    _set_limit(routes, index, min(rate, _RATE_MOST))

    _made(slot, bound)


def _set_limit(routes: IPRoute, index: int, rate: int) -> None:
    burst = max(_BURST_LEAST, int(rate * _BURST_SECONDS))
    waiting = burst + int(rate * _DELAY_SECONDS)
    routes.tc("replace", "tbf", index=index, rate=rate, burst=burst, limit=waiting)


def _lift_limit(routes: IPRoute, index: int) -> None:
    try:
        routes.tc("del", index=index, parent=TC_H_ROOT)
    except NetlinkError as err:
        if err.code != errno.ENOENT:  # there was no limit
            raise


def exists(namespace: Namespace, name: str) -> bool:
    """Tell whether a namespace has a link of this name.

    Raises:
        HostError: `network_failed`; there is no such namespace.
    """
    return _made(namespace, lambda: name in [each for _, each in socket.if_nameindex()])


def require_free(home: Namespace, within: Range) -> None:
    """Make sure that a namespace leads to nobody else by addresses of a range.

    Raises:
        HostError: `network_unavailable`.
    """

    def destinations() -> list[str]:
        with _routes() as routes:
            found = routes.get_routes(family=socket.AF_INET, table=_MAIN_TABLE)
            return [
                f"{each.get_attr('RTA_DST')}/{each['dst_len']}"
                for each in found
                if each.get_attr("RTA_DST") is not None
            ]

    for destination in _made(home, destinations):
        if IPv4Network(destination).overlaps(within.network):
            raise HostError(
                f"network.range {str(within.network)!r} overlaps the route to {destination!r}",
                code="network_unavailable",
                remedy="set network.range to a network that nobody else uses on this host",
            )


def remove(namespace: Namespace, name: str) -> None:
    """Remove a link, and the other end of it. *Idempotent.*

    Raises:
        HostError: `network_failed`; the kernel refused.
    """

    def drop() -> None:
        with _routes() as routes:
            for index in routes.link_lookup(ifname=name):
                try:
                    routes.link("del", index=index)
                except NetlinkError as err:
                    if err.code != errno.ENODEV:  # the kernel was faster: its other end is gone
                        raise

    _made(namespace, drop)


def forward_through(home: Namespace, names: list[str]) -> None:
    """Let a namespace forward what comes in by these links.

    Raises:
        HostError: `network_failed`; the kernel refused.
    """

    def allow() -> None:
        for name in names:
            _set(f"ipv4/conf/{name}/forwarding", 1)

    _made(home, allow)


def forward_no_more(home: Namespace, names: list[str]) -> None:
    """Take back what `forward_through` allowed. *Idempotent.*

    Raises:
        HostError: `network_failed`; the kernel refused.
    """

    def forbid() -> None:
        there = [name for _, name in socket.if_nameindex()]
        for name in names:
            if name in there:
                _set(f"ipv4/conf/{name}/forwarding", 0)

    _made(home, forbid)


def not_forwarding(home: Namespace, uplink: str) -> list[str]:
    """Return the links of a namespace, but for the uplink, that forward nothing yet."""

    def find() -> list[str]:
        names = [name for _, name in socket.if_nameindex() if name not in {"lo", uplink}]
        return [name for name in names if _read(f"ipv4/conf/{name}/forwarding") == "0"]

    return _made(home, find)


def _meet_slot(number: int, within: Range) -> None:
    name = router_end(number)
    with _routes() as routes:
        (index,) = routes.link_lookup(ifname=name)
        _set(f"ipv4/conf/{name}/rp_filter", 1)
        routes.link("set", index=index, state="up")
        routes.route("add", dst=f"{within.slot(number)}/32", oif=index, scope="link")


def open_tap() -> int:
    """Return a new tap of the namespace that this thread is in, as `TAP`; it ends with its users.

    Raises:
        OSError: The kernel refused, or has no such devices.
    """
    tap = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", TAP.encode(), _IFF_TAP | _IFF_NO_PI))
    except BaseException:
        os.close(tap)
        raise
    return tap


def _allow_forwarding() -> None:
    """Make a router of IPv4 of the namespace that this thread is in; it knows no IPv6."""
    if (_SETTINGS / "ipv6").exists():
        for scope in ("all", "default"):
            _set(f"ipv6/conf/{scope}/disable_ipv6", 1)
    _set("ipv4/ip_forward", 1)
    for scope in ("all", "default"):
        _set(f"ipv4/conf/{scope}/rp_filter", 1)
        _set(f"ipv4/conf/{scope}/send_redirects", 0)
        _set(f"ipv4/conf/{scope}/accept_redirects", 0)


def _set(setting: str, value: int) -> None:
    (_SETTINGS / setting).write_text(str(value))


def _read(setting: str) -> str:
    return (_SETTINGS / setting).read_text().strip()


@contextlib.contextmanager
def _routes() -> Iterator[IPRoute]:
    """Yield a netlink socket of the namespace that this thread is in."""
    with IPRoute() as routes:
        yield routes


def _made(namespace: Namespace, function: Callable[[], T]) -> T:
    try:
        return call_in(namespace, function)
    except (NetlinkError, OSError) as err:
        raise HostError(
            f"cannot make a link in network namespace {namespace.name!r}: {err}",
            code="network_failed",
        ) from err
