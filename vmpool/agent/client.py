"""Client: what the agent in a guest can be asked, as coroutines.

It turns operations into channels and guest answers into values and errors. Everything a guest
says is checked before it becomes a value.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING, Any, Self

from vmpool.agent import answers, listing
from vmpool.agent.asking import ask, patience
from vmpool.agent.contexts import Contexts
from vmpool.agent.execution import Execution
from vmpool.agent.link import Link, Peer, open_link
from vmpool.agent.processes import Processes
from vmpool.agent.tunnel import Tunnel, tunnelling
from vmpool.agent.watches import Watch, watching
from vmpool.errors import GuestError, GuestFileError, TooLargeError
from vmpool.model import (
    AgentAddress,
    Code,
    Command,
    FileInfo,
    FileKind,
    Identity,
    IdentityReceipt,
    Rng,
    Started,
)
from vmpool_agent import wire

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable
    from types import TracebackType

    from vmpool.agent.airtime import Airtime

_MAX_ENTRIES = 10_000
_MAX_LISTING = 8 * 1024 * 1024
_LISTING_DEADLINE = 300.0
"""Seconds that a whole listing may take."""


async def connect(
    address: AgentAddress,
    *,
    key: bytes,
    timeout: float,
    peer: Peer = Peer.NEW,
    airtime: Airtime | None = None,
) -> Agent:
    """Return the agent at `address`; tries until it answers.

    Args:
        address: Where its stream is.
        peer: What its stream was used for before.
        key: From `new_key`. An agent that was never connected to, or that a snapshot was restored
            with, obeys the first key it is shown, and no other afterwards.
        airtime: What it shares with others, from its first word; `None` for as much as it takes.

    Raises:
        GuestError: `guest_unreachable` when none answered in time, `guest_protocol`.
    """
    link = await open_link(address, key=key, timeout=timeout, peer=peer, airtime=airtime)
    return Agent(link)


class Agent:
    """The agent of one guest. Owns its link; an async context manager.

    Attributes:
        contexts: Interpreters that keep their state.
        processes: Those that outlive whoever began them.
    """

    def __init__(self, link: Link) -> None:
        self.contexts = Contexts(link)
        self.processes = Processes(link)
        self._link = link

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the link; what runs over it is killed in the guest. *Idempotent.*"""
        await self._link.close()

    async def wait_closed(self) -> None:
        """Return when the link is lost or closed."""
        await self._link.wait_closed()

    async def identify(
        self, identity: Identity, *, rng: Rng, clock_offset_ns: int = 0, timeout: float
    ) -> IdentityReceipt:
        """Make the guest a clone of its own.

        Args:
            rng: How its user-space generators come about.
            clock_offset_ns: What its wall clock is to be ahead of the host's.

        Returns:
            What the guest says that it read back, which the caller holds against `identity`.

        Raises:
            GuestError: It did not take, or not in time; the clone must not be used.
        """
        request = {
            "op": "identify",
            "hostname": identity.hostname,
            "machine_id": identity.machine_id,
            "seed": identity.seed.hex(),
            "rng": answers.rng_request(rng),
        }
        answer, error_ns = await self._ask_with_clock(request, clock_offset_ns, timeout)
        return answers.receipt(answer, error_ns, rng)

    async def set_clock(self, *, clock_offset_ns: int = 0, timeout: float) -> int:
        """Set the guest's wall clock.

        Args:
            clock_offset_ns: What it is to be ahead of the host's.

        Returns:
            How far it was off in ns when the answer came; the true error is not larger.

        Raises:
            GuestError: It did not take, or not in time.
        """
        _, error_ns = await self._ask_with_clock({"op": "set_clock"}, clock_offset_ns, timeout)
        return error_ns

    async def quiesce(self, *, timeout: float) -> None:
        """Have the guest give back memory that it does not need.

        Raises:
            GuestError: It did not in time.
        """
        await ask(self._link, {"op": "quiesce"}, timeout=timeout)

    async def stock(self, *, timeout: float) -> None:
        """Return once as many forks of the warm interpreter wait as a snapshot should hold.

        Raises:
            GuestError: They were not there in time.
        """
        await ask(self._link, {"op": "stock"}, timeout=timeout)

    async def release(self, *, timeout: float) -> None:
        """Have the agent forget our key, for a snapshot; this link goes on to hold.

        Over vsock nobody else is obeyed before the machine has been restored.

        Raises:
            GuestError: It did not in time.
        """
        await ask(self._link, {"op": "release"}, timeout=timeout)

    @contextlib.asynccontextmanager
    async def execute(
        self, what: Command | Code, *, start_timeout: float | None = None
    ) -> AsyncGenerator[Execution, None]:
        """Run a program or source; leaving the block kills what still runs.

        Args:
            what: What to run.
            start_timeout: Seconds that its start may take, the first of an interpreter's much;
                `None` for as long as any answer may.

        Raises:
            InvalidRequestError: It could not be started; the code says why.
            TooLargeError: The request is too large for the protocol.
            GuestError: The guest died, hung or broke the protocol.
        """
        async with self._link.open() as channel:
            async with patience(start_timeout):
                await channel.send_message(answers.execution_request(what))
                first = answers.execution_event(answers.expect(await channel.receive()))
            if not isinstance(first, Started):
                raise GuestError("output before start", code="guest_protocol")
            yield Execution(channel, first, stdin=what.stdin)

    async def read_file(
        self, path: str, *, user: str, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield a file's bytes as they come, at most 32 KiB a piece and `length` in all.

        Raises:
            GuestFileError: The guest refused; the code says why.
            GuestError: The guest died, hung or broke the protocol, as by sending more.
        """
        request = {"op": "read", "path": path, "user": user, "offset": offset, "length": length}
        left = math.inf if length is None else length
        async with contextlib.aclosing(self._content(request)) as pieces:
            async for piece in pieces:
                left -= len(piece)
                if left < 0:
                    raise answers.malformed("length")
                yield piece

    async def archive(self, path: str, *, user: str) -> AsyncGenerator[bytes, None]:
        """Yield a directory with all in it as a tar archive, as it is read.

        Names in it are the guest's word: whoever unpacks it takes care where they lead.

        Raises:
            GuestFileError: The guest refused, perhaps in the middle; the code says why.
            GuestError: The guest died, hung or broke the protocol.
        """
        request = {"op": "archive", "path": path, "user": user}
        async with contextlib.aclosing(self._content(request)) as pieces:
            async for piece in pieces:
                yield piece

    async def _content(self, request: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        async with self._link.open() as channel:
            async with patience():
                await channel.send_message(request)
            while True:
                async with patience():
                    event = await channel.receive()
                if not isinstance(event, wire.Data):
                    break
                yield event.payload
            answers.done(answers.expect(event))

    async def write_file(
        self,
        path: str,
        data: AsyncIterable[bytes],
        *,
        user: str,
        mode: int | None = None,
        metadata: dict[str, str] | None = None,
    ) -> FileInfo:
        """Write a file, parents included. Not atomic: on failure a part of it may be there.

        Args:
            metadata: Words that are kept with it, instead of all before; `None` leaves those.

        Raises:
            InvalidRequestError: `unknown_user`; `bad_request`: there is too much metadata.
            GuestFileError: The guest refused; the code says why. `metadata_unsupported` also when
                the content is written: agents before metadata pass over what they do not know.
            GuestError: The guest died, hung or broke the protocol.
        """
        request = {"op": "write", "path": path, "user": user, "mode": mode, "metadata": metadata}
        async with self._link.open() as channel:
            async with patience():
                await channel.send_message(request)
            async for chunk in data:
                async with patience():
                    if not await channel.send_data(wire.STDIN, chunk):
                        break
            channel.finish()
            async with patience():
                answer = answers.expect(await channel.receive())
            info = listing.file_info(answers.done(answer).get("info"))
        if metadata and info.kind is FileKind.FILE and not info.metadata:
            raise GuestFileError(
                f"{path!r} was written, but without metadata: the sandbox's agent keeps none",
                code="metadata_unsupported",
                remedy="create a sandbox of a template that was made since, or write without",
            )
        return info

    async def stat(self, path: str, *, user: str) -> FileInfo:
        """Return what is at `path`, links not followed.

        Raises:
            GuestFileError: The guest refused; the code says why.
            GuestError: The guest died, hung or broke the protocol.
        """
        return await self._ask_for_info({"op": "stat", "path": path, "user": user})

    async def list_directory(self, path: str, *, user: str, depth: int = 1) -> list[FileInfo]:
        """Return the entries of a directory, in lexical order, parents first.

        Raises:
            TooLargeError: `too_many_entries`: over 10,000, or over 8 MiB of paths.
            GuestFileError: The guest refused; the code says why.
            GuestError: The guest died, hung or broke the protocol.
        """
        request = {"op": "list", "path": path, "user": user, "depth": depth}
        entries: list[FileInfo] = []
        size = 0
        async with self._link.open() as channel, patience(_LISTING_DEADLINE):
            await channel.send_message(request)
            while True:
                async with patience():
                    answer = answers.expect(await channel.receive())
                if answer.get("type") != "entries":
                    answers.done(answer)
                    return entries
                listed = listing.entries(answer)
                entries += listed
                size += sum(map(listing.cost, listed))
                if len(entries) > _MAX_ENTRIES or size > _MAX_LISTING:
                    raise TooLargeError(f"{path!r} is too large", code="too_many_entries")

    async def remove(self, path: str, *, user: str) -> None:
        """Remove a file, or a directory with all it holds.

        Raises:
            GuestFileError: The guest refused; the code says why.
            GuestError: The guest died, hung or broke the protocol.
        """
        await ask(self._link, {"op": "remove", "path": path, "user": user})

    async def move(self, source: str, destination: str, *, user: str) -> FileInfo:
        """Rename, over what is there; makes the destination's parents.

        Raises:
            GuestFileError: The guest refused; the code says why.
            GuestError: The guest died, hung or broke the protocol.
        """
        return await self._ask_for_info(
            {"op": "move", "path": source, "destination": destination, "user": user}
        )

    async def make_directory(self, path: str, *, user: str) -> FileInfo:
        """Make a directory and its parents.

        Raises:
            GuestFileError: The guest refused; `file_exists` when something is there.
            GuestError: The guest died, hung or broke the protocol.
        """
        return await self._ask_for_info({"op": "make_directory", "path": path, "user": user})

    async def link(self, path: str, target: str, *, user: str) -> FileInfo:
        """Make a symbolic link at `path` that says `target`; makes the link's parents.

        Raises:
            GuestFileError: The guest refused; `file_exists` when something is there.
            GuestError: The guest died, hung or broke the protocol.
        """
        return await self._ask_for_info(
            {"op": "link", "path": path, "target": target, "user": user}
        )

    async def change(
        self,
        path: str,
        *,
        user: str,
        mode: int | None = None,
        owner: str | None = None,
        group: str | None = None,
    ) -> FileInfo:
        """Change permission bits and owners, links followed; what is `None` stays.

        Args:
            owner: Name, or number in decimal; `group` likewise.

        Raises:
            InvalidRequestError: `unknown_user` or `unknown_group`.
            GuestFileError: The guest refused; the code says why.
            GuestError: The guest died, hung or broke the protocol.
        """
        changed = {"mode": mode, "owner": owner, "group": group}
        return await self._ask_for_info({"op": "change", "path": path, "user": user, **changed})

    def watch(
        self, path: str, *, user: str, recursive: bool = False
    ) -> contextlib.AbstractAsyncContextManager[Watch]:
        """Watch a directory for the time of a block; see `watches.watching`."""
        return watching(self._link, path, user=user, recursive=recursive)

    def reach(self, port: int) -> contextlib.AbstractAsyncContextManager[Tunnel]:
        """Connect to a port of the guest for the time of a block; see `tunnel.tunnelling`."""
        return tunnelling(self._link, port)

    async def _ask_for_info(self, request: dict[str, Any]) -> FileInfo:
        return listing.file_info((await ask(self._link, request)).get("info"))

    async def _ask_with_clock(
        self, request: dict[str, Any], offset_ns: int, timeout: float
    ) -> tuple[dict[str, Any], int]:
        """Ask with the guest's clock; return the answer and how far that is off then, in ns."""
        told = {**request, "clock_ns": time.time_ns() + offset_ns}
        answer = await ask(self._link, told, timeout=timeout)
        return answer, answers.integer(answer, "clock_ns") - time.time_ns() - offset_ns
