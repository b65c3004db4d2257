"""Monitor: QEMU's control socket.

The one module that knows the `qemu.qmp` library: its errors end here, and so does its habit of
keeping every event for ever. It sends commands and waits for events; what they mean it leaves to
its callers.

What QEMU says is up to the guest in part, so a session that says too much is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from typing import TYPE_CHECKING, Any, cast

from qemu.qmp import ExecuteError, Message, QMPClient, QMPError, Runstate

from vmpool.cancellation import uninterrupted
from vmpool.engine.qemu import answers
from vmpool.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

COMMAND_TIMEOUT = 30.0
"""Seconds within which QEMU must answer; its commands take milliseconds."""

EVENTS = frozenset({"MIGRATION", "SHUTDOWN"})
"""The events that are kept until somebody takes them. A guest can cause only the second, once."""

UNASKED_LIMIT = 256
"""Events beyond those that a session bears; a guest that behaves causes a handful in its life."""

_EXPECTED = EVENTS | {
    # What our own commands cause.
    *("STOP", "RESUME", "JOB_STATUS_CHANGE", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"),
    # What QEMU itself lets through once a second; see monitor_qapi_event_conf in monitor/monitor.c.
    *("RTC_CHANGE", "VSERPORT_CHANGE"),
}

_BACKLOG = 1


def listen(directory: Path, name: str) -> socket.socket:
    """Bind a socket for QEMU to serve and return it listening: connecting never has to wait.

    Bound through the directory's descriptor, so that the length of its path does not matter.

    Raises:
        EngineError: The socket cannot be bound.
    """
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _reachable(directory) as short:
            server.bind(f"{short}/{name}")
        server.listen(_BACKLOG)
    except OSError as err:
        server.close()
        raise EngineError(f"cannot bind {str(directory / name)!r}: {err.strerror}") from err
    return server


def dial(directory: Path, name: str) -> socket.socket:
    """Return a non-blocking socket connected to the one that `listen` bound. *Idempotent.*

    Raises:
        OSError: Nobody listens there.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.setblocking(False)
        with _reachable(directory) as short:
            client.connect(f"{short}/{name}")  # a Unix socket connects at once or fails
    except BaseException:
        client.close()
        raise
    return client


@contextlib.contextmanager
def _reachable(directory: Path) -> Iterator[str]:
    """Yield a short name for `directory`: a socket's path has at most 107 bytes (unix(7))."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


class _Wire(logging.LoggerAdapter[logging.Logger]):
    """What the library has to say, as debugging: to it every killed QEMU is an error."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        super().log(min(level, logging.DEBUG), msg, *args, **kwargs)


class _Client(QMPClient):
    """The library's client, which writes a message out for its log only if that is wanted."""

    def _cb_outbound(self, msg: Message) -> Message:
        self.logger.debug("--> %s", msg)
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        self.logger.debug("<-- %s", msg)
        return msg


class _FloodError(QMPError):
    """Ends the library's reader from within."""


class _MalformedError(QMPError):
    """Ends it likewise."""


class Monitor:
    """A QMP session; whoever makes it calls `close`.

    Args:
        on_flood: Called once when the session was ended because QEMU says too much: a guest writes
            to `pvpanic` as fast as it can, and each time is an event. It must end QEMU, which
            would buffer without a bound what nobody reads.

    Attributes:
        flooded: Whether that has happened.
    """

    def __init__(self, on_flood: Callable[[], None] = lambda: None) -> None:
        self.flooded = False
        self._on_flood = on_flood
        self._unasked = 0
        self._handing_over = asyncio.Lock()
        self._client = _Client()
        self._client.logger = cast("logging.Logger", _Wire(log.getChild("wire"), {}))
        self._client.events.event_filter = self._sift

    async def connect(self, directory: Path, name: str) -> None:
        """Open the session on the socket `name` in `directory`, as soon as QEMU is up.

        Raises:
            EngineError: QEMU is gone (`qemu_died`), or does not greet (`qemu_silent`).
        """
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT):
                await self._client.connect(dial(directory, name))
        except TimeoutError as err:
            raise EngineError("QEMU did not greet in time", code="qemu_silent") from err
        except (QMPError, OSError) as err:
            raise EngineError(f"QEMU did not come up: {err}", code="qemu_died") from err

    async def execute(self, command: str, **arguments: object) -> Any:
        """Run a QMP command and return its value, as far as `answers` knows that somebody reads it.

        `_` in the names of arguments stands for `-`. If this is interrupted, whether the command
        took effect is unknown. Commands are sent at once, in the order in which they are asked for;
        those behind a descriptor when QEMU has that.

        Raises:
            EngineError: QEMU refused the command (`qmp_refused`), did not answer (`qemu_silent`),
                or not as it does (`qmp_malformed`), or is gone (`qemu_died`).
        """
        async with self._handing_over:
            pass  # sent below in this very turn: nothing comes between
        return await self._ask(command, arguments)

    async def _ask(self, command: str, arguments: Mapping[str, object]) -> Any:
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT):
                answer = await self._client.execute(command, named or None)
        except TimeoutError as err:
            raise EngineError(f"QEMU did not answer {command!r}", code="qemu_silent") from err
        except ExecuteError as err:
            raise EngineError(f"QEMU refused {command!r}: {err}", code="qmp_refused") from err
        except QMPError as err:
            raise EngineError(f"QEMU went away at {command!r}", code="qemu_died") from err
        return answers.checked(command, answer)

    async def add_descriptor(self, descriptor: int, fdset: int) -> int:
        """Give QEMU a copy of `descriptor` under the name `/dev/fdset/<fdset>`.

        Returns:
            Its number in QEMU.

        Raises:
            EngineError: As `execute`.
        """
        return int((await self._hand_over(descriptor, "add-fd", {"fdset_id": fdset}))["fd"])

    async def give_descriptor(self, descriptor: int, name: str) -> None:
        """Give QEMU a copy of `descriptor` under a name, for the next command that takes one.

        Raises:
            EngineError: As `execute`.
        """
        await self._hand_over(descriptor, "getfd", {"fdname": name})

    async def _hand_over(
        self, descriptor: int, command: str, arguments: Mapping[str, object]
    ) -> Any:
        """Send a descriptor and the command that takes it, and nothing until QEMU has done so.

        A thread of QEMU's reads a byte at a time, and has with each byte what descriptor nobody has
        taken yet block those who read it; another thread takes that meanwhile, without a lock
        (tcp_chr_recv in chardev/char-socket.c). With a byte to read at that moment the one could be
        late: then a tap that the other has made non-blocking since blocks for ever, and the guest
        stands still.
        """
        async with self._handing_over:
            try:
                self._client.send_fd_scm(descriptor)
            except (QMPError, OSError) as err:
                raise EngineError(f"QEMU went away at {command!r}", code="qemu_died") from err
            # Also when cancelled: until QEMU has it, nobody else may send anything.
            return await uninterrupted(self._ask(command, arguments))

    async def event(self) -> Mapping[str, Any]:
        """Wait for the next of `EVENTS`, also one that came before this call; return it.

        Does not return when QEMU ends: wait for its process beside it.
        """
        return await self._client.events.get()

    @contextlib.contextmanager
    def hearing(self, *names: str) -> Iterator[Callable[[], Awaitable[Mapping[str, Any]]]]:
        """Yield what waits for the next event of these `names`, from now on to the block's end.

        Only of what is asked of QEMU here: a guest must not be able to cause them.
        """
        with self._client.listener(names) as listener:
            yield listener.get

    async def ended(self) -> None:
        """Wait until QEMU has closed the session.

        Raises:
            EngineError: It did not in time; code `qemu_silent`.
        """
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT):
                while self._client.runstate is Runstate.RUNNING:
                    await self._client.runstate_changed()
        except TimeoutError as err:
            raise EngineError("QEMU did not end the session", code="qemu_silent") from err

    async def last_events(self) -> list[Mapping[str, Any]]:
        """Return the events that nobody has taken, all of them, of a QEMU that has ended.

        Raises:
            EngineError: It has not; code `qemu_silent`.
        """
        await self.ended()
        return list(self._client.events.clear())

    def _sift(self, event: Mapping[str, Any]) -> bool:
        """Tell the library's reader whether to keep an event; end it when there are too many."""
        name = event.get("event")
        if not answers.is_event(name, event.get("data", {})):
            self._on_flood()
            raise _MalformedError("an event that QEMU does not send")
        if name not in _EXPECTED:
            self._unasked += 1
            if self._unasked > UNASKED_LIMIT:
                self.flooded = True
                self._on_flood()
                raise _FloodError(f"{self._unasked} events that nobody asked for")
        return name in EVENTS

    async def close(self) -> None:
        """End the session; QEMU lives on. *Idempotent*, and well after QEMU's death."""
        if self._client.runstate is Runstate.IDLE:
            return
        # The library raises here what ended its reader, such as the RecursionError of an answer
        # that is nested too deep: of a hostile QEMU anything, and none of it matters any more.
        with contextlib.suppress(Exception):
            await self._client.disconnect()
