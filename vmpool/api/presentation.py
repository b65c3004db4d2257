"""Presentation: the certificate that the server shows, always the newest that could be read.

A file that was replaced is read when the next client comes, so that a renewed certificate needs
neither a restart nor a signal. One that cannot be read changes nothing: clients get what they got.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from vmpool import certificate
from vmpool.errors import HostError

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from vmpool.certificate import Certificate

log = logging.getLogger(__name__)

_Stamp = tuple[int, int, int]


class Presentation:
    """What one server shows to clients that speak TLS; `open` before use.

    Args:
        chain: Where it lies.
        key: Where its private key lies.
        domain: Whose names it should be good for; empty for none.
    """

    def __init__(self, chain: Path, key: Path, *, domain: str) -> None:
        self._files = chain, key
        self._domain = domain
        self._shown: Certificate | None = None
        self._seen: tuple[_Stamp, ...] = ()
        self._reading = asyncio.Lock()

    async def open(self) -> None:
        """Read what is to be shown.

        Raises:
            HostError: `certificate_unusable`.
        """
        self._seen = self._stamps()
        self._show(await asyncio.to_thread(certificate.load, *self._files))

    async def context(self) -> ssl.SSLContext:
        """Return what speaks TLS with the next client."""
        assert self._shown is not None
        # Two calls of stat(2) for each connection cost less than a hundredth of its handshake.
        if self._stamps() != self._seen:
            async with self._reading:
                await self._read_again()
        return self._shown.context

    async def _read_again(self) -> None:
        stamps = self._stamps()
        if stamps == self._seen:
            return  # somebody else has, meanwhile
        self._seen = stamps
        try:
            self._show(await asyncio.to_thread(certificate.load, *self._files))
        except HostError as err:
            # Two files are not replaced at one moment: the second makes this good.
            log.warning("the certificate of before stays: %s", err)

    def _show(self, read: Certificate) -> None:
        self._shown = read
        log.info("certificate for %s until %s", " ".join(sorted(read.names)), read.ends)
        if read.out_of_time():
            log.warning("clients will refuse the certificate: it %s", read.out_of_time())
        for name in read.lacks(self._domain):
            log.warning("clients will refuse the certificate for %s, which it does not name", name)

    def _stamps(self) -> tuple[_Stamp, ...]:
        return tuple(_stamp(path) for path in self._files)


def _stamp(path: Path) -> _Stamp:
    """Return what is different once a file was written or replaced."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns, found.st_size
    return 0, 0, 0
