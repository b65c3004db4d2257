"""Rebooting: clones that are booted on the disk of a checkpoint that has no memory.

A state that is a disk alone cannot be laid over its template's memory: what that has cached of the
disk would be the template's, and the guest would write it over what is there. So the image is
booted, once more, on the disk, and compared before that with what was built. It decides when to try
again, how many boot at one time, and that tenants take turns; what becomes of the clone, others
know.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from vmpool import clone
from vmpool.errors import GuestError
from vmpool.lanes import Lanes
from vmpool.model import Kernel
from vmpool.vouching import Vouching

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool.clone import Clone
    from vmpool.ground import Ground
    from vmpool.model import Identity, Waking
    from vmpool.snapshot import Snapshot

log = logging.getLogger(__name__)

ATTEMPTS: Final = 3
"""A machine may hang early in its boot under emulation; it is started again."""

AT_ONCE: Final = 2
"""Guests that boot at one time: each takes a processor for as long as it does."""


class Rebooting:
    """What boots clones on disks."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._vouching = Vouching(ground.images, ground.custody)
        self._lanes = Lanes(AT_ONCE)

    async def boot(
        self,
        template: Snapshot,
        state: Snapshot,
        *,
        identity: Callable[[str], Identity],
        policy: Waking,
        party: str,
    ) -> Clone:
        """Return a clone that runs on the disk of a state of `template`'s; it obeys a new key.

        Args:
            identity: Says who a clone of a given id is to be.
            party: Whose sandbox it is: when more are to boot than may at one time, parties take
                turns, one for each try.

        Raises:
            NotFoundError: `image_not_found`; the template's image is gone.
            ImageError: `image_damaged`; its kernel, initrd, root or manifest is not what was built.
            VmpoolError: As `clone.reboot`.
        """
        for attempt in range(1, ATTEMPTS + 1):
            # Each time anew: what never comes up keeps others out for one.
            async with self._lanes.one(party):
                image = await asyncio.to_thread(self._ground.images.load, template.manifest.image)
                await self._vouching.image(image)
                kernel = Kernel(
                    kernel=image.kernel, initrd=image.initrd, command_line=image.command_line
                )
                try:
                    return await clone.reboot(
                        self._ground.engine,
                        template,
                        state,
                        kernel,
                        run=self._ground.clones,
                        identity=identity,
                        policy=policy,
                        deadlines=self._ground.deadlines,
                        airtime=self._ground.airtime,
                        boot_timeout=self._ground.settings.deadlines.boot,
                    )
                except GuestError as err:
                    if attempt == ATTEMPTS:
                        raise
                    log.warning("a guest did not come up on its disk: %s; trying again", err)
        raise AssertionError("unreachable: the last attempt returns or raises")
