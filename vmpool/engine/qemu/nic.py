"""NIC: a guest's network device, and how a link is plugged into it while the machine lives.

The device hangs on a hub on which at first there is nobody else. So a state that was saved with or
without a network loads whatever comes of the clone, and a clone that waits in a pool serves every
kind of network: the tap is handed over by descriptor when somebody wants one. QEMU itself sees no
network and opens none.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vmpool.engine.qemu.command import HUB, NIC
from vmpool.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from vmpool.engine.qemu.monitor import Monitor

_TAP = "tap"
_PLUG = "plug"


async def pull_down(monitor: Monitor) -> None:
    """Take the carrier away: a guest that knows that it has none waits for nobody. *Idempotent.*

    Raises:
        EngineError: As `Monitor.execute`.
    """
    await monitor.execute("set_link", name=NIC, up=False)


async def plug(monitor: Monitor, tap: int) -> None:
    """Connect a tap to the device, and give the guest its carrier. *Not idempotent.*

    Args:
        tap: Descriptor, the caller's to close.

    Raises:
        EngineError: As `Monitor.execute`; nothing is connected.
    """
    try:
        # Sent together, once QEMU has the tap: what each takes is mostly the way there and back.
        await _all(
            monitor.give_descriptor(tap, _TAP),
            monitor.execute("netdev_add", type="tap", id=_TAP, fd=_TAP),
            monitor.execute("netdev_add", type="hubport", id=_PLUG, hubid=HUB, netdev=_TAP),
            monitor.execute("set_link", name=NIC, up=True),
        )
    except EngineError as err:
        if err.error_code == "qmp_refused":
            await unplug(monitor)
        raise


async def unplug(monitor: Monitor) -> None:
    """Take the carrier and the tap away. *Idempotent.*

    Raises:
        EngineError: QEMU did not answer, or is gone.
    """
    await pull_down(monitor)
    for each in (_PLUG, _TAP):
        try:
            await monitor.execute("netdev_del", id=each)
        except EngineError as err:
            if err.error_code != "qmp_refused":  # it is not there
                raise


async def _all(*commands: Coroutine[Any, Any, object]) -> None:
    """Await commands that are under way together, and raise the first failure when all are over."""
    for outcome in await asyncio.gather(*commands, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
