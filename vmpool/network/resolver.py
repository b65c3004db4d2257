"""Resolver: the DNS server that one sandbox asks, over UDP and TCP, at its gateway's address.

What is asked is decided by `questions`; here it comes in and goes out, within bounds. An address is
open before the guest learns of it, or the guest does not learn of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Protocol, Self

from vmpool.chores import Chores
from vmpool.errors import VmpoolError
from vmpool.network import questions
from vmpool.network.events import NAME_SHOWN, Denial, EventLog
from vmpool.network.pacing import Bucket, PacedReader
from vmpool.network.questions import QUESTION_BYTES, STREAM_BYTES, Conclusion, Question

if TYPE_CHECKING:
    import socket
    from collections.abc import Coroutine, Sequence
    from ipaddress import IPv4Address, IPv6Address
    from types import TracebackType

    from vmpool.network.permission import Permission
    from vmpool.network.upstream import Upstream

log = logging.getLogger(__name__)

PROTOCOL: Final = "dns"
RATE: Final = 50.0
"""Messages a second; a browser that opens a page comes with as many."""
BURST: Final = 200
UNDER_WAY_MOST: Final = 16
"""Questions that are asked outside at one time."""
CONNECTIONS_MOST: Final = 4
IDLE_SECONDS: Final = 5.0
"""A connection without a whole message for so long is closed."""
NAMES_KNOWN: Final = 1024
"""Addresses of which the name is remembered, to tell of it in events."""
CLOSING_SECONDS: Final = 5.0
GRACE_SECONDS: Final = 5.0
"""For which an address stays open when the guest no longer keeps the answer: to connect last."""

_BUFFER_BYTES: Final = 2 * (QUESTION_BYTES + 2)
_RATE_LIMITED: Final = "dns-rate"
_BUSY: Final = "dns-busy"
_UNOPENED: Final = "dns-unopened"


class Opening(Protocol):
    """Lets a guest send to addresses that a name led to."""

    async def __call__(self, name: str, addresses: Sequence[IPv4Address], ttl: float) -> None:
        """Open `addresses` for `ttl` seconds from now, by the rules that allow `name`.

        Raises:
            VmpoolError: They are not open.
        """


class Resolver:
    """Answers one sandbox's questions, from entering to leaving.

    Args:
        datagrams: Bound, not blocking; `listener` likewise and listening. Both are the resolver's
            to close once it was entered.
        permission: What holds at first; assign `permission` to replace it.
    """

    def __init__(
        self,
        *,
        datagrams: socket.socket,
        listener: socket.socket,
        permission: Permission,
        upstream: Upstream,
        open_addresses: Opening,
        events: EventLog,
    ) -> None:
        self.permission = permission
        self._datagrams = datagrams
        self._listener = listener
        self._upstream = upstream
        self._open = open_addresses
        self._events = events
        self._names: OrderedDict[IPv4Address | IPv6Address, str] = OrderedDict()
        self._chores = Chores("resolver")
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._connections = 0
        self._stack = contextlib.AsyncExitStack()
        self._bucket: Bucket

    async def __aenter__(self) -> Self:
        """Begin to answer."""
        bucket = Bucket(rate=RATE, burst=BURST, clock=asyncio.get_running_loop().time)
        self._bucket = bucket
        stack = self._stack
        stack.callback(self._datagrams.close)
        stack.callback(self._listener.close)
        stack.push_async_callback(self._end_tasks)
        for source, read in ((self._datagrams, self._receive), (self._listener, self._accept)):
            reader = PacedReader(source.fileno(), read, bucket, on_pause=self._note_pause)
            stack.callback(reader.close)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Answer no more; what is under way comes to nothing."""
        await self._stack.aclose()

    def name_of(self, address: IPv4Address | IPv6Address) -> str | None:
        """Return the name that last led the guest to an address."""
        return self._names.get(address)

    # Messages, one a datagram.

    def _receive(self) -> bool:
        try:
            wire, guest = self._datagrams.recvfrom(QUESTION_BYTES + 1)
        except BlockingIOError:
            return False
        except OSError as err:  # of an earlier answer that did not arrive
            log.debug("a datagram's error: %s", err.strerror)
            return True
        match questions.judge(wire, self.permission):
            case Question() as question:
                self._begin(self._answer_datagram(question, guest))
            case Conclusion() as conclusion:
                self._send(self._noted(conclusion).encode(conclusion.datagram_bytes), guest)
            case bytes() as refusal:
                self._send(refusal, guest)
            case None:
                pass
        return True

    async def _answer_datagram(self, question: Question, guest: tuple[str, int]) -> None:
        self._send(await self._settle(question, question.datagram_bytes), guest)

    def _send(self, wire: bytes, guest: tuple[str, int]) -> None:
        """Send an answer; one that cannot be sent is lost, as on any network."""
        with contextlib.suppress(OSError):
            self._datagrams.sendto(wire, guest)

    # Connections, each with messages one after the other.

    def _accept(self) -> bool:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return False
        except OSError as err:  # it was gone again, or there are no descriptors left
            log.debug("a connection's error: %s", err.strerror)
            return False
        if self._connections >= CONNECTIONS_MOST:
            connection.close()
        else:
            self._connections += 1
            self._begin(self._serve(connection))
        return True

    async def _serve(self, connection: socket.socket) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=connection, limit=_BUFFER_BYTES)
            try:
                while (answer := await self._converse(reader)) is not None:
                    writer.write(len(answer).to_bytes(2) + answer)
                    async with asyncio.timeout(IDLE_SECONDS):
                        await writer.drain()
            finally:
                writer.transport.abort()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the guest's business
        finally:
            connection.close()
            self._connections -= 1

    async def _converse(self, reader: asyncio.StreamReader) -> bytes | None:
        """Return the answer to the connection's next message; `None` to hang up."""
        async with asyncio.timeout(IDLE_SECONDS):
            length = int.from_bytes(await reader.readexactly(2))
            if length > QUESTION_BYTES or not self._bucket.take():
                return None
            wire = await reader.readexactly(length)
        match questions.judge(wire, self.permission):
            case Question() as question:
                return await self._settle(question, STREAM_BYTES)
            case Conclusion() as conclusion:
                return self._noted(conclusion).encode(STREAM_BYTES)
            case refusal:
                return refusal

    # Questions.

    async def _settle(self, question: Question, limit: int) -> bytes:
        """Ask outside, open what the answer leads to, and return the answer's bytes."""
        if self._under_way >= UNDER_WAY_MOST:
            self._note(_BUSY, question.name)
            return questions.failure(question).encode(limit)
        self._under_way += 1
        try:
            answer = await self._upstream.ask(question.name, question.type)
        finally:
            self._under_way -= 1
        conclusion = self._noted(questions.conclude(question, answer, self.permission))
        wire = conclusion.encode(limit)
        told = conclusion.opened_by(wire)
        if told:
            try:
                await self._open(question.name, told, conclusion.ttl + GRACE_SECONDS)
            except VmpoolError as err:
                log.debug("cannot open addresses: %s", err)
                self._note(_UNOPENED, question.name)
                return questions.failure(question).encode(limit)
            self._remember(told, question.name)
        return wire

    def _remember(self, addresses: Sequence[IPv4Address], name: str) -> None:
        for address in addresses:
            self._names.pop(address, None)
            self._names[address] = name
        while len(self._names) > NAMES_KNOWN:
            self._names.popitem(last=False)

    # Events.

    def _noted(self, conclusion: Conclusion) -> Conclusion:
        for rule, address in conclusion.denials:
            self._note(rule, conclusion.name, address)
        return conclusion

    def _note_pause(self) -> None:
        self._note(_RATE_LIMITED)

    def _note(self, rule: str, name: str | None = None, address: IPv4Address | None = None) -> None:
        shown = None if name is None else name[:NAME_SHOWN]
        self._events.add(
            Denial(protocol=PROTOCOL, destination=address, port=None, name=shown, rule=rule)
        )

    # Tasks.

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        task = self._chores.begin(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._chores.done(within=CLOSING_SECONDS)
