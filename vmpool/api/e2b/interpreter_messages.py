"""Interpreter messages: what is said on the interpreter's port, as E2B's clients read it."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from vmpool.api import bodies, codec, views
from vmpool.model import Exited, Output, Raised, Result, Started, Stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmpool.model import ExecutionEvent


class Execute(Struct, frozen=True, kw_only=True):
    """What to run, in a context or in a language's own one."""

    code: Annotated[str, Meta(pattern="^[^\\u0000]*$")]
    context_id: str | None = None
    language: str | None = None
    env_vars: bodies.Env | None = None


class CreateContext(Struct, frozen=True, kw_only=True):
    """A context to make."""

    language: str | None = None
    cwd: bodies.GuestPath | None = None


class Context(Struct, frozen=True, kw_only=True):
    """A context that there is."""

    id: str
    language: str
    cwd: str


class _Line(Struct, frozen=True, kw_only=True, tag_field="type"):
    """One line of an execution."""


class Count(_Line, frozen=True, kw_only=True, tag="number_of_executions"):
    """The first line: how many its context was given."""

    execution_count: int


class Stdout(_Line, frozen=True, kw_only=True, tag="stdout"):
    """Something printed."""

    text: str
    timestamp: str


class Stderr(_Line, frozen=True, kw_only=True, tag="stderr"):
    """Something printed as an error."""

    text: str
    timestamp: str


class Shown(_Line, frozen=True, kw_only=True, tag="result"):
    """A value that code showed, in each of its forms."""

    is_main_result: bool
    text: str | UnsetType = UNSET
    html: str | UnsetType = UNSET
    markdown: str | UnsetType = UNSET
    svg: str | UnsetType = UNSET
    png: str | UnsetType = UNSET
    jpeg: str | UnsetType = UNSET
    pdf: str | UnsetType = UNSET
    latex: str | UnsetType = UNSET
    json: Raw | UnsetType = UNSET
    javascript: str | UnsetType = UNSET
    data: Raw | UnsetType = UNSET
    chart: Raw | UnsetType = UNSET
    extra: dict[str, str] | UnsetType = UNSET


class Error(_Line, frozen=True, kw_only=True, tag="error"):
    """What ended the code."""

    name: str
    value: str
    traceback: str


class Keepalive(_Line, frozen=True, kw_only=True, tag="keepalive"):
    """Nothing, so that a client that has left is noticed."""


class UnexpectedEnd(_Line, frozen=True, kw_only=True, tag="unexpected_end_of_execution"):
    """The interpreter did not come to the code's end."""


class End(_Line, frozen=True, kw_only=True, tag="end_of_execution"):
    """The last line."""


_TEXTS: Final = {
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/javascript": "javascript",
}
_DOCUMENTS: Final = {"application/json": "json", "e2b/data": "data", "e2b/chart": "chart"}
_PLAIN: Final = "text/plain"
_OBJECTS: Final = frozenset({"data", "chart"})


class Transcript:
    """The events of one execution as lines."""

    def __init__(self) -> None:
        self.exited: Exited | None = None
        self._failed = False
        self._characters = {stream: codec.Characters() for stream in Stream}

    def lines(self, event: ExecutionEvent) -> Iterator[Struct]:
        """Yield what one event adds."""
        match event:
            case Started(execution_count=count):
                yield Count(execution_count=count or 0)
            case Output(stream=stream, data=data):
                for piece in self._characters[stream].feed(data):
                    yield _printed(stream, piece)
            case Result():
                yield _shown(event)
            case Raised():
                yield from self._ended_by(event.name, event.value, event.traceback)
            case Exited():
                for stream, characters in self._characters.items():
                    for rest in characters.finish():
                        yield _printed(stream, rest)
                if event.context_lost:
                    yield from self._ended_by("ContextLost", _loss(event), "")
                    yield UnexpectedEnd()
                yield End()
                self.exited = event

    def _ended_by(self, name: str, value: str, traceback: str) -> Iterator[Struct]:
        """Yield what ended the code; clients know of one end."""
        if not self._failed:
            self._failed = True
            yield Error(
                name=views.printable(name),
                value=views.printable(value),
                traceback=views.printable(traceback),
            )


def encode(line: Struct) -> bytes:
    """Return a line in ASCII: some clients take what they receive apart between any two bytes."""
    return codec.encode_ascii(line) + b"\n"


def _printed(stream: Stream, piece: str | bytes) -> Stdout | Stderr:
    text = piece if isinstance(piece, str) else piece.decode(errors="replace")
    kind = Stderr if stream is Stream.STDERR else Stdout
    return kind(text=text, timestamp=datetime.datetime.now(datetime.UTC).isoformat())


def _shown(result: Result) -> Shown:
    forms: dict[str, Any] = {}
    extra: dict[str, str] = {}
    for kind, form in result.mime.items():
        said = views.printable(form)
        if kind == _PLAIN:
            forms["text"] = _unquoted(said)
        elif kind in _TEXTS:
            forms[_TEXTS[kind]] = said
        elif kind in _DOCUMENTS:
            forms[_DOCUMENTS[kind]] = _document(_DOCUMENTS[kind], said)
        else:
            extra[views.printable(kind)] = said
    if extra:
        forms["extra"] = extra
    return Shown(is_main_result=result.is_main, **forms)


def _unquoted(text: str) -> str:
    """Return a value's text; that of a string is what is in it."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text


def _document(field: str, text: str) -> Raw | UnsetType:
    """Return a form as the document that it is, in one line; what is none is left out."""
    try:
        document = msgspec.json.format(text, indent=-1)
    except (msgspec.DecodeError, RecursionError):
        return UNSET
    return Raw(document) if field not in _OBJECTS or document.startswith("{") else UNSET


def _loss(event: Exited) -> str:
    of = "it ran out of memory" if event.out_of_memory else "its time was up"
    if not (event.out_of_memory or event.timed_out):
        by = f"signal {event.signal}" if event.exit_code is None else f"code {event.exit_code}"
        of = f"it ended with {by}"
    return f"the interpreter began anew, without its state: {of}"
