"""Monitor: QEMU's control socket.

The one module that knows the `qemu.qmp` library: its errors end here, and so does its habit of
keeping every event for ever. It sends commands and waits for events; what they mean it leaves to
its callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from typing import TYPE_CHECKING, Any, cast

from qemu.qmp import ExecuteError, QMPClient, QMPError, Runstate

from vmpool.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

COMMAND_TIMEOUT = 30.0
"""Seconds within which QEMU must answer; its commands take milliseconds."""

EVENTS = frozenset({"MIGRATION", "SHUTDOWN"})
"""The events that are kept until somebody takes them. A guest can cause only the second, once."""

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


class Monitor:
    """A QMP session; whoever makes it calls `close`."""

    def __init__(self) -> None:
        self._client = QMPClient()
        self._client.logger = cast("logging.Logger", _Wire(log.getChild("wire"), {}))
        self._client.events.names.update(EVENTS)

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
        """Run a QMP command and return its value.

        `_` in the names of arguments stands for `-`. If this is interrupted, whether the command
        took effect is unknown.

        Raises:
            EngineError: QEMU refused the command (`qmp_refused`), did not answer (`qemu_silent`),
                or is gone (`qemu_died`).
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT):
                return await self._client.execute(command, named or None)
        except TimeoutError as err:
            raise EngineError(f"QEMU did not answer {command!r}", code="qemu_silent") from err
        except ExecuteError as err:
            raise EngineError(f"QEMU refused {command!r}: {err}", code="qmp_refused") from err
        except QMPError as err:
            raise EngineError(f"QEMU went away at {command!r}", code="qemu_died") from err

    async def add_descriptor(self, descriptor: int, fdset: int) -> None:
        """Give QEMU a copy of `descriptor` under the name `/dev/fdset/<fdset>`.

        Raises:
            EngineError: As `execute`.
        """
        try:
            self._client.send_fd_scm(descriptor)
        except (QMPError, OSError) as err:
            raise EngineError("QEMU went away at 'add-fd'", code="qemu_died") from err
        await self.execute("add-fd", fdset_id=fdset)

    async def event(self) -> Mapping[str, Any]:
        """Wait for the next of `EVENTS`, also one that came before this call; return it.

        Does not return when QEMU ends: wait for its process beside it.
        """
        return await self._client.events.get()

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

    async def close(self) -> None:
        """End the session; QEMU lives on. *Idempotent*, and well after QEMU's death."""
        if self._client.runstate is Runstate.IDLE:
            return
        with contextlib.suppress(QMPError, EOFError, OSError):
            await self._client.disconnect()
