"""Result: what came of code that ran to its end, well or not.

Code that fails is no error of the call: it was run. `check` makes it one for whoever wants that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmpool.client.display import Display, mimebundle
from vmpool.client.events import Attached, Event, Exited, Output, Raised, Started
from vmpool.client.values import Receipt, read
from vmpool.errors import GuestFileError, TaskError, TaskMemoryError, TaskTimeoutError
from vmpool.model import Stream

if TYPE_CHECKING:
    from typing import Self

GATHERED_BYTES = 16 << 20
"""Of an execution's output, and of what it shows, the most that is kept for a result, each."""

REPR_BYTES = 60
"""Of stdout, what a result's one line shows."""

_OVERHEAD = 512
"""What a display costs that holds nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of code that ran to its end.

    Attributes:
        stdout_bytes: Output as it was; `stdout` is the same as text. Likewise `stderr_bytes`.
        exit_code: 0 to 255, `None` when a signal ended it.
        signal: Number of the signal that ended it, `None` when it exited.
        timed_out: It was killed because its time was up.
        out_of_memory: The guest's kernel killed it for want of memory.
        truncated: Output or displays were over a limit, and the rest of them is lost.
        displays: What the code showed, the value of a last expression for one.
        error: The exception that ended it.
        timings_ms: How long it took, by phase.
        files: Contents of the files that were asked for, by path.
        missing: Why those that could not be had could not.
        sandbox_id: Of the machine that was made for it, `None` when it ran in one that was there.
        identity: What that machine said of its identity.
        context_lost: The interpreter of a context ended with it, and begins anew without its state.
    """

    stdout_bytes: bytes = b""
    stderr_bytes: bytes = b""
    exit_code: int | None
    signal: int | None
    timed_out: bool
    out_of_memory: bool
    truncated: bool
    displays: tuple[Display, ...]
    error: Raised | None
    timings_ms: dict[str, float | None]
    files: dict[str, bytes] = field(default_factory=dict)
    missing: dict[str, GuestFileError] = field(default_factory=dict)
    sandbox_id: str | None = None
    identity: Receipt | None = None
    context_lost: bool = False

    def __repr__(self) -> str:
        how = "ok" if self.ok else self._epitaph()
        begun = self.stdout_bytes[:REPR_BYTES].decode(errors="replace")
        rest = len(self.stdout_bytes) - REPR_BYTES
        more = f" and {rest} bytes more" if rest > 0 else ""
        return f"<Result {how}, stdout {begun!r}{more}, displays {len(self.displays)}>"

    @property
    def stdout(self) -> str:
        """Output as text; what is no UTF-8 becomes U+FFFD."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Error output as text; what is no UTF-8 becomes U+FFFD."""
        return self.stderr_bytes.decode(errors="replace")

    @property
    def value(self) -> Display | None:
        """The value of the last expression, where it had one and the server tells it apart."""
        return next((display for display in self.displays if display.is_main), None)

    @property
    def ok(self) -> bool:
        """Whether it exited with 0."""
        return self.exit_code == 0 and not self.timed_out and not self.out_of_memory

    def check(self) -> Self:
        """Return this result if the code did well.

        Raises:
            TaskTimeoutError: Its time was up.
            TaskMemoryError: The guest had no more memory.
            TaskError: It failed in another way.
        """
        if self.ok:
            return self
        if self.timed_out:
            raise TaskTimeoutError("the code ran past its time")
        if self.out_of_memory:
            raise TaskMemoryError("the code used up the guest's memory")
        raise TaskError(self._epitaph())

    def _epitaph(self) -> str:
        if self.error is not None:
            return f"the code raised {self.error.name}: {self.error.value[:500]}"
        how = f"exit code {self.exit_code}" if self.signal is None else f"signal {self.signal}"
        words = self.stderr.strip().rpartition("\n")[2][:500]
        return f"the code ended with {how}" + (f": {words!r}" if words else "")

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        """Return what a notebook shows; IPython's protocol."""
        parts: list[str | Display] = [self.stdout, *self.displays, self.stderr]
        if self.error is not None:
            parts.append(self.error.traceback)
        elif not self.ok:
            parts.append(self._epitaph())
        return mimebundle(part for part in parts if part)


class Gathering:
    """The events of an execution on their way to a result, of bounded size."""

    def __init__(self) -> None:
        self._written = {stream: bytearray() for stream in Stream}
        self._displays: list[Display] = []
        self._room = {Output: GATHERED_BYTES, Display: GATHERED_BYTES}
        self._truncated = False
        self._raised: Raised | None = None
        self.exited: Exited | None = None

    def add(self, event: Event) -> None:
        """Take the next event."""
        match event:
            case Output(stream, data):
                self._written[stream] += data[: self._take(Output, len(data))]
            case Display(mime):
                size = _OVERHEAD + sum(len(kind) + len(form) for kind, form in mime.items())
                if self._take(Display, size) == size:
                    self._show(event)
            case Raised():
                self._raised = event
            case Exited():
                self.exited = event
            case Started() | Attached():
                pass

    def _show(self, display: Display) -> None:
        """Add a display, or put it in the place of the one that it updates."""
        for place, shown in enumerate(self._displays):
            if display.display_id is not None and shown.display_id == display.display_id:
                self._displays[place] = display
                return
        self._displays.append(display)

    def _take(self, kind: type[Output | Display], size: int) -> int:
        """Return how much of `size` there is room for."""
        taken = min(size, self._room[kind])
        self._room[kind] -= taken
        self._truncated |= taken < size
        return taken

    def result(self, exited: Exited) -> Result:
        """Return the whole."""
        return Result(
            stdout_bytes=bytes(self._written[Stream.STDOUT]),
            stderr_bytes=bytes(self._written[Stream.STDERR]),
            exit_code=exited.exit_code,
            signal=exited.signal,
            timed_out=exited.timed_out,
            out_of_memory=exited.out_of_memory,
            truncated=self._truncated,
            displays=tuple(self._displays),
            error=self._raised,
            timings_ms={"execute": exited.duration_ms},
            context_lost=exited.context_lost,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    code: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Collected:
    content: str | None = None
    content_base64: bytes | None = None
    error: _Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _RunAnswer:
    """The answer to a run, as the interface has it."""

    id: str
    stdout: str
    stderr: str
    exit_code: int | None
    signal: int | None
    timed_out: bool
    out_of_memory: bool
    truncated: bool
    results: tuple[dict[str, str], ...]
    error: Raised | None
    files: dict[str, _Collected]
    timings_ms: dict[str, float | None]
    identity: Receipt
    stdout_base64: bytes | None = None
    stderr_base64: bytes | None = None


def read_run(data: bytes) -> Result:
    """Return what an answer to a run says.

    Raises:
        InfrastructureError: `not_vmpool` when it is none.
    """
    answer = read(data, _RunAnswer)
    return Result(
        stdout_bytes=_exact(answer.stdout, answer.stdout_base64),
        stderr_bytes=_exact(answer.stderr, answer.stderr_base64),
        exit_code=answer.exit_code,
        signal=answer.signal,
        timed_out=answer.timed_out,
        out_of_memory=answer.out_of_memory,
        truncated=answer.truncated,
        displays=tuple(Display(mime) for mime in answer.results),
        error=answer.error,
        timings_ms=answer.timings_ms,
        files={
            path: _exact(file.content or "", file.content_base64)
            for path, file in answer.files.items()
            if file.error is None
        },
        missing={
            path: GuestFileError(file.error.detail, code=file.error.code)
            for path, file in answer.files.items()
            if file.error is not None
        },
        sandbox_id=answer.id,
        identity=answer.identity,
    )


def _exact(text: str, data: bytes | None) -> bytes:
    return text.encode() if data is None else data
