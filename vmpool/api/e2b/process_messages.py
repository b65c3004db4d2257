"""Process messages: what E2B's clients say of processes, and are told."""

from __future__ import annotations

import signal
from typing import Annotated, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from vmpool.api import bodies, views
from vmpool.api.e2b.connect import Nothing
from vmpool.errors import InvalidRequestError
from vmpool.model import Exited, Output, Stream

Characters = Annotated[int, Meta(ge=1, le=65_535)]
_Text = Annotated[str, Meta(pattern="^[^\\u0000]*$")]
_Tag = Annotated[str, Meta(max_length=256)]


class Config(Struct, frozen=True, kw_only=True):
    """A program, and what it is begun with."""

    cmd: Annotated[str, Meta(min_length=1, pattern="^[^\\u0000]*$")]
    args: Annotated[list[_Text], Meta(max_length=4095)] = []
    envs: bodies.Env = {}
    cwd: Annotated[str, Meta(max_length=4095, pattern="^[^\\u0000]*$")] | None = None


class Size(Struct, frozen=True, kw_only=True):
    """A terminal's size in characters."""

    cols: Characters = 80
    rows: Characters = 24


class Pty(Struct, frozen=True, kw_only=True):
    """A terminal."""

    size: Size = Size()


class Selector(Struct, frozen=True, kw_only=True):
    """Which process is meant: exactly one member is set."""

    pid: Annotated[int, Meta(ge=0, lt=1 << 32)] | None = None
    tag: _Tag | None = None


class Start(Struct, frozen=True, kw_only=True):
    """A program to start; without a word of `stdin` it has one."""

    process: Config
    pty: Pty | None = None
    tag: _Tag | None = None
    stdin: bool = True


class Named(Struct, frozen=True, kw_only=True):
    """A process that something is asked of."""

    process: Selector


class Update(Named, frozen=True, kw_only=True):
    """A terminal's new size."""

    pty: Pty | None = None


class Input(Struct, frozen=True, kw_only=True):
    """Bytes for a process: exactly one member is set."""

    stdin: bytes | None = None
    pty: bytes | None = None

    @property
    def content(self) -> bytes:
        """What is to be written.

        Raises:
            InvalidRequestError: Both members are set, or none is.
        """
        given = [data for data in (self.stdin, self.pty) if data is not None]
        if len(given) != 1:
            raise InvalidRequestError("an input is either stdin or pty")
        return given[0]


class SendInput(Named, frozen=True, kw_only=True):
    """Bytes for one process."""

    input: Input


class SendSignal(Named, frozen=True, kw_only=True):
    """A signal for one process's group."""

    signal: Literal["SIGNAL_SIGKILL", "SIGNAL_SIGTERM", 9, 15]

    @property
    def number(self) -> int:
        """The signal as Linux numbers it."""
        killed = self.signal in {"SIGNAL_SIGKILL", signal.SIGKILL}
        return signal.SIGKILL if killed else signal.SIGTERM


class InputData(Struct, frozen=True, kw_only=True):
    """Bytes in a stream of input."""

    input: Input


class InputFrame(Struct, frozen=True, kw_only=True):
    """A message in a stream of input: the first names a process, the others have its input."""

    start: Named | None = None
    data: InputData | None = None
    keepalive: Nothing | None = None


class Started(Struct, frozen=True, kw_only=True):
    """A process's id in the guest."""

    pid: int


class Data(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a process wrote: one member is set."""

    stdout: bytes | UnsetType = UNSET
    stderr: bytes | UnsetType = UNSET
    pty: bytes | UnsetType = UNSET


class End(Struct, frozen=True, kw_only=True, rename="camel"):
    """How a process ended; `error` is missing where all was well."""

    exit_code: int
    exited: bool
    status: str
    error: str | UnsetType = UNSET


class Event(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What happened to a process: one member is set."""

    start: Started | UnsetType = UNSET
    data: Data | UnsetType = UNSET
    end: End | UnsetType = UNSET
    keepalive: Nothing | UnsetType = UNSET


class Said(Struct, frozen=True, kw_only=True):
    """A message in the stream of a process."""

    event: Event


KEEPALIVE: Final = Said(event=Event(keepalive=Nothing()))


class Process(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A process that runs."""

    config: Config
    pid: int
    tag: str | UnsetType = UNSET


class ProcessList(Struct, frozen=True, kw_only=True):
    """The processes that run."""

    processes: list[Process]


def started(pid: int) -> Said:
    """Return the first message of each stream."""
    return Said(event=Event(start=Started(pid=pid)))


def written(output: Output) -> Said:
    """Return the message of something that a process wrote."""
    return Said(event=Event(data=_data(output)))


def ended(exited: Exited) -> Said:
    """Return the last message of a process's stream."""
    if exited.signal is None:
        code = exited.exit_code or 0
        status = f"exit status {code}"
    else:
        code = -1
        word = signal.strsignal(exited.signal) if exited.signal in signal.valid_signals() else None
        status = f"signal: {(word or f'signal {exited.signal}').lower()}"
    why = f"{status} (out of memory)" if exited.out_of_memory else status
    error = UNSET if code == 0 else why
    end = End(exit_code=code, exited=exited.signal is None, status=status, error=error)
    return Said(event=Event(end=end))


def printable(argv: tuple[str, ...], env: dict[str, str], cwd: str | None) -> Config:
    """Return what a process was begun with, as it can be told."""
    cmd, *args = [views.printable(word) for word in argv] or [""]
    return Config(
        cmd=cmd,
        args=args,
        envs={views.printable(name): views.printable(value) for name, value in env.items()},
        cwd=None if cwd is None else views.printable(cwd),
    )


def _data(output: Output) -> Data:
    match output.stream:
        case Stream.STDOUT:
            return Data(stdout=output.data)
        case Stream.STDERR:
            return Data(stderr=output.data)
        case Stream.PTY:
            return Data(pty=output.data)
