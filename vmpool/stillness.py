"""Stillness: a guest's disk that holds all the guest has written, and changes no more.

The guest's file system is frozen by a process of the guest's own, which lets go of it when it is
told to or after a while: whoever asked may be killed at any moment, and a guest must not stand
still for ever because of that. If that process itself was killed, the next that asks, or lets go,
has another let go. What the guest says of it, it says of its own disk; one that lies
harms nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vmpool.cancellation import uninterrupted
from vmpool.errors import ConflictError, GuestError, NotFoundError, VmpoolError
from vmpool.model import Command, Exited, Output, Stream

if TYPE_CHECKING:
    from vmpool.agent import Agent
    from vmpool.agent.processes import Attachment

TIMEOUT: Final = 120.0
"""Seconds that a guest may take to write what it holds back."""

HELD_SECONDS: Final = 60
"""After which the guest lets go by itself, by its own clock, which stands while it is stopped.

It counts anew from when the guest was asked whether it still stands.
"""

TRUSTED_SECONDS: Final = 20.0
"""For how long the host believes that it has not; of two clocks one may be the faster.

From when the host asked, not from when it heard: words may wait long behind what else is said.
"""

_STILL: Final = b"still\n"
_AGAIN: Final = b"again\n"
_WORDS_BYTES: Final = 500

# In a mount namespace of its own: nobody in the guest sees the file system twice, and it is
# unmounted when the process is gone. Over a directory that every image has. It stays frozen when
# the process is killed, so what may be frozen is let go of first. One process at a time: one of a
# server before, whose minute runs out, would let go of what the next one holds.
_MOUNT: Final = "mount -t ext4 /dev/vdb /tmp"
_SCRIPT: Final = f"""\
set -e
exec 9</dev/vdb
flock 9
{_MOUNT}
fsfreeze --unfreeze /tmp 2>/dev/null || true
sync -f /tmp
fsfreeze --freeze /tmp
trap 'fsfreeze --unfreeze /tmp' EXIT
echo still
read -r -t {HELD_SECONDS} && echo again && read -r -t {HELD_SECONDS} || true
"""
_COMMAND = Command(
    argv=("unshare", "--mount", "/bin/bash", "-c", _SCRIPT), user="root", cwd="/", stdin=True
)
_THAW = replace(
    _COMMAND,
    argv=("unshare", "--mount", "/bin/bash", "-c", f"{_MOUNT} && fsfreeze --unfreeze /tmp"),
    stdin=False,
)


class Stillness:
    """One guest's disk, held still from `begin` on."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._pid: int | None = None
        self._until = 0.0

    async def begin(self) -> None:
        """Have the guest write all to its disk and hold it still. *Not idempotent.*

        When this fails or is cancelled, the guest goes on, at the latest by itself.

        Raises:
            GuestError: `disk_unwritten`; it could not, or not in time. Or it is lost.
        """
        try:
            async with (
                asyncio.timeout(TIMEOUT),
                self._agent.processes.begin(_COMMAND) as process,
            ):
                self._pid = process.pid
                await _said(process, _STILL)
                asked = time.monotonic()
                await process.write_stdin(b"\n")
                await _said(process, _AGAIN)
        except TimeoutError as err:
            raise _unwritten(f"not within {TIMEOUT:.0f} s") from err
        except GuestError:
            raise
        except VmpoolError as err:  # a refusal of what its caller has not asked for
            raise _unwritten(str(err)) from err
        self._until = asked + TRUSTED_SECONDS

    def require(self) -> None:
        """Refuse a disk that the guest may have let go of; to be asked once it is stopped.

        Raises:
            GuestError: `disk_unwritten`.
        """
        if time.monotonic() > self._until:
            raise _unwritten("it was held still for longer than a guest does that")

    async def end(self) -> None:
        """Have a guest that runs go on writing. *Idempotent*; goes on to its end when cancelled."""
        if self._pid is not None:
            await uninterrupted(self._let_go(self._pid))

    async def _let_go(self, pid: int) -> None:
        with contextlib.suppress(VmpoolError):  # it does so by itself
            try:
                await self._agent.processes.close_stdin(pid)
            except (ConflictError, NotFoundError):  # it has, unless it was killed
                await self._agent.processes.start(_THAW)


async def _said(process: Attachment, word: bytes) -> None:
    said, words = b"", b""
    async for event in process:
        match event:
            case Output(stream=Stream.STDOUT, data=data):
                said = (said + data)[: len(word)]
                if said == word:
                    return
            case Output(data=data):
                words = (words + data)[-_WORDS_BYTES:]
            case Exited():
                break
            case _:
                pass
    raise _unwritten(words.decode(errors="replace").strip() or "it did not say why")


def _unwritten(why: str) -> GuestError:
    return GuestError(
        f"the guest did not bring what it wrote to its disk: {why}",
        code="disk_unwritten",
        remedy="try again, or keep its memory, too",
    )
