"""Vsock: context ids, claimed with the kernel and not guessed."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import struct
from dataclasses import dataclass

from vmpool.errors import HostError

DEVICE = "/dev/vhost-vsock"

_SET_GUEST_CID = 0x4008AF60  # linux/vhost.h: _IOW(VHOST_VIRTIO, 0x60, __u64)
_FIRST_CID = 1 << 16  # far above 0 to 2, which are reserved, and above what people pick by hand
_LAST_CID = 0xFFFFFFFE  # VMADDR_CID_ANY is 0xFFFFFFFF
_ATTEMPTS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A context id that is ours as long as `descriptor` or a copy of it is open.

    Attributes:
        descriptor: Of `/dev/vhost-vsock`, to be handed to QEMU; whoever holds the claim closes it.
    """

    cid: int
    descriptor: int


def claim(wanted: int | None = None) -> Claim:
    """Claim a context id: `wanted`, or one drawn at random so that none is soon used again.

    Raises:
        HostError: The device is missing (`vsock_missing`), or the id is taken (`cid_taken`).
    """
    try:
        descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as err:
        missing = isinstance(err, FileNotFoundError)
        raise HostError(
            f"cannot open {DEVICE}: {err.strerror}",
            code="vsock_missing",
            remedy="modprobe vhost_vsock" if missing else "run as an account that may open it",
        ) from err
    candidates = [_drawn() for _ in range(_ATTEMPTS)] if wanted is None else [wanted]
    try:
        for cid in candidates:
            if _claimed(descriptor, cid):
                return Claim(cid=cid, descriptor=descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    raise HostError(f"vsock context ids are taken: {candidates!r}", code="cid_taken")


def _drawn() -> int:
    return _FIRST_CID + secrets.randbelow(_LAST_CID - _FIRST_CID + 1)


def _claimed(descriptor: int, cid: int) -> bool:
    try:
        fcntl.ioctl(descriptor, _SET_GUEST_CID, struct.pack("=Q", cid))
    except OSError as err:
        if err.errno == errno.EADDRINUSE:
            return False
        raise HostError(f"cannot claim vsock context id {cid}: {err.strerror}") from err
    return True
