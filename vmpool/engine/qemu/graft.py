"""Graft: a checkpoint's pages, put into a hypervisor that waits for its devices.

Two ways, and both give the same memory. Long stretches are mapped from the file that they lie in,
so that children of one state share what they do not write; all others are copied. Where mapping is
not to be had, everything is copied.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING

from vmpool import delta
from vmpool.cancellation import uninterrupted
from vmpool.engine.qemu import inlay, pagemap, pages
from vmpool.engine.qemu.command import DEVICES_FDSET

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import TypeVar

    from vmpool.delta import Delta, Extent
    from vmpool.engine.qemu.hypervisor import Hypervisor
    from vmpool.engine.qemu.pagemap import Mapping, Span
    from vmpool.snapshot import Snapshot

    T = TypeVar("T")

log = logging.getLogger(__name__)

PAGES_FDSET = DEVICES_FDSET + 1
"""The fdset of the file that pages are mapped from."""

WORTH_BYTES = 16 << 20
"""From here on, all stretches together, they are mapped: that has a price of its own."""

LAY_TIMEOUT = 10.0
"""Seconds that mapping may take; it takes milliseconds."""

TURN_BYTES = 64 << 20
"""What is copied in one turn; others get theirs between two."""


async def graft(
    started: Hypervisor, template: Snapshot, state: Snapshot, turn: asyncio.Lock
) -> None:
    """Have a checkpoint's pages where a waiting hypervisor has its template's.

    Args:
        turn: Held meanwhile: of several children the first is there in a part of the time.

    Raises:
        SnapshotError: They are damaged.
        EngineError: The hypervisor is gone.
        HostError: `memory_unreadable`.
    """
    pid, size = started.process.pid, template.spec.memory_bytes
    with contextlib.ExitStack() as held:

        def find() -> tuple[Delta, tuple[Mapping, ...]]:
            own = state.delta or held.enter_context(delta.opened(state.pages, size))
            return own, pagemap.find_mappings(pid, template.memory, size)

        async with turn:
            own, mappings = await _in_thread(find)
            # In threads, too: a hundred thousand places take a tenth of a second.
            spans = await _in_thread(partial(pagemap.to_process, own.spans, mappings))
            mapped = await _map(started, own.extent, spans, mappings)
            parts = await _in_thread(partial(_parts, spans, own, mapped))
            for part in parts[:1]:
                await _in_thread(partial(pages.put, pid, *part))
        for part in parts[1:]:
            async with turn:
                await _in_thread(partial(pages.put, pid, *part))


async def _map(
    started: Hypervisor, extent: Extent | None, spans: list[Span], mappings: tuple[Mapping, ...]
) -> Collection[Span]:
    """Map the stretches that are worth it; return them."""
    if extent is None:
        return ()
    choose = partial(inlay.choose, spans, extent.offset, most=pagemap.INLAID_MOST)
    pieces = await _in_thread(choose)
    # A piece is known again by lying between two mappings of the template.
    ends = {end for mapping in mappings for end in (mapping.start, mapping.end)}
    pieces = {span: piece for span, piece in pieces.items() if ends.isdisjoint(span)}
    if sum(piece.size_bytes for piece in pieces.values()) < WORTH_BYTES:
        return ()
    number = await started.monitor.add_descriptor(extent.file, PAGES_FDSET)
    # One that does not stop is killed, or the thread would wait for it for ever, and all others for
    # the turn.
    alarm = asyncio.get_running_loop().call_later(LAY_TIMEOUT, started.process.send_kill)
    try:
        await _in_thread(partial(inlay.lay, started.process.pid, number, tuple(pieces.values())))
    except OSError as err:
        log.info("pages of a checkpoint are copied, not mapped: %s", err)
        return ()
    finally:
        alarm.cancel()
        await started.monitor.execute("remove-fd", fdset_id=PAGES_FDSET)
    return pieces.keys()


def _parts(
    spans: list[Span], own: Delta, mapped: Collection[Span]
) -> list[tuple[list[Span], list[Span]]]:
    """Return what is to be copied, in parts: where it belongs, and where it lies with us."""
    if not spans:
        return []
    there, here = spans, [pages.whole(own.data)]
    if mapped:
        pairs = zip(spans, pages.places(spans, own.data), strict=True)
        here = [place for span, place in pairs if span not in mapped]
        there = [span for span in spans if span not in mapped]
    if own.size_bytes <= TURN_BYTES:
        return [(there, here)]
    both = (pages.batches(one, TURN_BYTES) for one in (there, here))
    return list(zip(*both, strict=True))


async def _in_thread(step: Callable[[], T]) -> T:
    # Not cut short: what the thread works on must not be given back meanwhile.
    return await uninterrupted(asyncio.to_thread(step))
