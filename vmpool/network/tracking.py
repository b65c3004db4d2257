"""Tracking: the connections that the kernel keeps in mind for an address, and has it forget.

The namespace that a server lives in tracks what all its sandboxes send, to translate addresses. An
entry outlives its slot, an established one by days; a table that is full lets nobody connect. The
one module that knows ctnetlink. Everything here blocks, for a few milliseconds.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Final

from vmpool.errors import HostError
from vmpool.network.namespace import call_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Address

    from vmpool.network.namespace import Namespace

_NETFILTER: Final = 12  # linux/netlink.h
_LOOK, _DELETE = 0x0101, 0x0102  # linux/nfnetlink_conntrack.h, of the subsystem in its high byte
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300  # linux/netlink.h
_ERROR, _DONE = 2, 3
_ORIGINAL, _ZONE, _FILTER = 1, 18, 25  # enum ctattr_type
_ADDRESSES, _SOURCE = 1, 1  # enum ctattr_tuple, ctattr_ip
_ORIGINAL_FLAGS, _BY_SOURCE = 1, struct.pack("=I", 1)  # CTA_FILTER_F_CTA_IP_SRC
_NESTED = 0x8000
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_FAMILY = struct.pack("=BBH", socket.AF_INET, 0, 0)

_RECEIVED_BYTES = 1 << 16
_AT_ONCE = 64
"""Entries removed with one message; each is answered, and the answers have to fit in a buffer."""
_TIMEOUT = 10.0


def forget(namespace: Namespace, address: IPv4Address) -> int:
    """Remove the connections that an address began; return how many there were. *Idempotent.*

    Raises:
        HostError: `network_failed`; the kernel refused.
    """
    try:
        return call_in(namespace, lambda: _forget(address))
    except OSError as err:
        raise HostError(
            f"cannot end the connections of {str(address)!r}: {err.strerror or err}",
            code="network_failed",
        ) from err


def _forget(address: IPv4Address) -> int:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER) as kernel:
        kernel.settimeout(_TIMEOUT)
        kernel.bind((0, 0))
        source = _nested(_ORIGINAL, _nested(_ADDRESSES, _attribute(_SOURCE, address.packed)))
        # Kernels before 5.8 take no notice of the filter, and tell of all.
        only = _nested(_FILTER, _attribute(_ORIGINAL_FLAGS, _BY_SOURCE))
        kernel.send(_message(_LOOK, _REQUEST | _DUMP, source + only))
        found = [each for each in _entries(kernel) if _is_from(each, address)]
        for first in range(0, len(found), _AT_ONCE):
            some = found[first : first + _AT_ONCE]
            kernel.send(b"".join(_message(_DELETE, _REQUEST | _ACK, each) for each in some))
            _acknowledged(kernel, len(some))
    return len(found)


def _entries(kernel: socket.socket) -> Iterator[bytes]:
    """Yield of each entry what names it: its first tuple, and its zone if it is in one."""
    while True:
        for kind, body in _messages(kernel.recv(_RECEIVED_BYTES)):
            if kind == _DONE:
                return
            if kind == _ERROR:
                _require(body)
            else:
                yield b"".join(
                    whole
                    for number, whole in _attributes(body[len(_FAMILY) :])
                    if number in {_ORIGINAL, _ZONE}
                )


def _is_from(entry: bytes, address: IPv4Address) -> bool:
    for number, original in _attributes(entry):
        for inner, addresses in _attributes(original[_ATTRIBUTE.size :]):
            if number == _ORIGINAL and inner == _ADDRESSES:
                wanted = _attribute(_SOURCE, address.packed)
                return wanted in [whole for _, whole in _attributes(addresses[_ATTRIBUTE.size :])]
    return False


def _acknowledged(kernel: socket.socket, count: int) -> None:
    while count > 0:
        for kind, body in _messages(kernel.recv(_RECEIVED_BYTES)):
            if kind == _ERROR:
                count -= 1
                _require(body)


def _require(answer: bytes) -> None:
    (number,) = struct.unpack_from("=i", answer)
    if number not in {0, -errno.ENOENT}:  # one may have ended meanwhile
        raise OSError(-number, os.strerror(-number))


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : length]
        data = data[max(_aligned(length), _HEADER.size) :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield attributes by their number, each whole."""
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        size = max(_aligned(length), _ATTRIBUTE.size)
        yield kind & ~_NESTED, data[:size]
        data = data[size:]


def _message(kind: int, flags: int, attributes: bytes) -> bytes:
    body = _FAMILY + attributes
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    whole = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
    return whole.ljust(_aligned(len(whole)), b"\0")


def _nested(kind: int, inner: bytes) -> bytes:
    return _attribute(kind | _NESTED, inner)


def _aligned(length: int) -> int:
    return (length + 3) & ~3
