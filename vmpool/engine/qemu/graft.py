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
    from collections.abc import AsyncIterator, Callable, Collection
    from typing import TypeVar

    from vmpool.delta import Delta, Extent
    from vmpool.engine.qemu.hypervisor import Hypervisor
    from vmpool.engine.qemu.inlay import Piece
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
        # In threads: a hundred thousand places take a tenth of a second. And in few of them: to
        # change threads takes as long as to copy some hundred pages.
        def find() -> tuple[Delta, list[Span], dict[Span, Piece]]:
            own = state.delta or held.enter_context(delta.opened(state.pages, size))
            mappings = pagemap.find_mappings(pid, template.memory, size)
            spans = pagemap.to_process(own.spans, mappings)
            return own, spans, _choose(own, spans, mappings)

        def copy_first() -> list[tuple[list[Span], list[Span]]]:
            parts = _parts(spans, own, mapped)
            for part in parts[:1]:
                pages.put(pid, *part)
            return parts[1:]

        async with turn:
            own, spans, pieces = await _in_thread(find)
            mapped = await _map(started, own.extent, pieces)
            async with _forgetting(started) if pieces else contextlib.nullcontext():
                rest = await _in_thread(copy_first)
        for part in rest:
            async with turn:
                await _in_thread(partial(pages.put, pid, *part))


def _choose(own: Delta, spans: list[Span], mappings: tuple[Mapping, ...]) -> dict[Span, Piece]:
    """Return the stretches that are to be mapped, none when they are not worth it together."""
    if own.extent is None or own.size_bytes < WORTH_BYTES:
        return {}
    pieces = inlay.choose(spans, own.extent.offset, most=pagemap.INLAID_MOST)
    # A piece is known again by lying between two mappings of the template.
    ends = {end for mapping in mappings for end in (mapping.start, mapping.end)}
    pieces = {span: piece for span, piece in pieces.items() if ends.isdisjoint(span)}
    worth = sum(piece.size_bytes for piece in pieces.values()) >= WORTH_BYTES
    return pieces if worth else {}


async def _map(
    started: Hypervisor, extent: Extent | None, pieces: dict[Span, Piece]
) -> Collection[Span]:
    """Map stretches, of a file that is the process's; return those that are: all or none."""
    if extent is None or not pieces:
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
    return pieces.keys()


@contextlib.asynccontextmanager
async def _forgetting(started: Hypervisor) -> AsyncIterator[None]:
    """Have the process close the file by the block's end; what is mapped of it stays."""
    closing = asyncio.ensure_future(started.monitor.execute("remove-fd", fdset_id=PAGES_FDSET))
    try:
        yield
    finally:
        outcomes = await asyncio.gather(closing, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


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
