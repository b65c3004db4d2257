"""Answers: what a guest says, checked and turned into values and errors.

Pure. A guest that says something else than the protocol allows gets a `GuestError` with code
`guest_protocol`; a refusal becomes an error whose class says whose fault it is.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import msgspec

from vmpool.errors import (
    GuestError,
    GuestFileError,
    InvalidRequestError,
    TaskError,
    TooLargeError,
    VmpoolError,
)
from vmpool.model import (
    Code,
    Command,
    ExecutionEvent,
    Exited,
    IdentityReceipt,
    Output,
    Preserve,
    Raised,
    Result,
    Rng,
    Seed,
    Started,
    Stream,
    Unique,
)
from vmpool_agent import wire

if TYPE_CHECKING:
    from collections.abc import Mapping

REQUEST_REFUSALS = frozenset(
    {
        "argument_list_too_long",
        "bad_request",
        "cwd_not_found",
        "permission_denied",
        "program_not_executable",
        "program_not_found",
        "unknown_group",
        "unknown_user",
    }
)
FILE_REFUSALS = frozenset(
    {
        "busy",
        "disk_full",
        "file_exists",
        "file_not_found",
        "io_error",
        "is_a_directory",
        "metadata_unsupported",
        "name_too_long",
        "not_a_directory",
        "not_a_regular_file",
        "not_empty",
        "permission_denied",
        "read_only",
        "too_many_links",
        "watch_limit",
    }
)
_MAX_TEXT = 4096
_MAX_PATH = 4096  # PATH_MAX in linux/limits.h
_MAX_FORMS = 64
"""What a result has at most; a value with more is odd, but nobody's fault."""
_PLAIN = "text/plain"
_MAX_STRUCTURE = 20_000
"""Values in a document that only the slower decoder understands, which makes all into objects."""
_SHOWN_TEXT = 500


class _LinkEnd(TypedDict):
    path: str
    kind: str
    mode: int


class _Info(TypedDict):
    path: str
    kind: str
    size_bytes: int
    mode: int
    owner: str
    group: str
    modified_ns: int
    target: NotRequired[str | None]
    resolved: NotRequired[_LinkEnd | None]
    metadata: NotRequired[dict[str, str]]


class _Change(TypedDict):
    event: str
    path: str
    directory: bool
    destination: NotRequired[str | None]


class _Size(TypedDict):
    rows: int
    cols: int


class _End(TypedDict):
    exit_code: int | None
    signal: int | None
    timed_out: bool
    out_of_memory: bool


class _Context(TypedDict):
    id: str
    language: str
    cwd: str
    user: str
    state: str
    pid: int | None
    executions: int
    waiting: int


class _Answer(TypedDict, total=False):
    """All that an answer may hold; what else a guest sends is passed over unread."""

    type: str
    code: str
    message: str
    pid: int
    mime: dict[str, str]
    name: str
    value: str
    traceback: str
    exit_code: int | None
    signal: int | None
    timed_out: bool
    out_of_memory: bool
    info: _Info
    entries: list[_Info]
    changes: list[_Change]
    count: int
    hostname: str
    machine_id: str
    boot_id: str
    entropy_bits: int
    generators: list[str]
    rng: str | dict[str, int]
    clock_ns: int
    tag: str | None
    argv: list[str]
    env: dict[str, str]
    cwd: str | None
    user: str
    pty: _Size | None
    stdin: bool
    started_ns: int
    output_bytes: int
    backlog_bytes: int
    skipped_bytes: int
    cut: bool
    ended: _End | None
    is_main: bool
    display_id: str
    execution_count: int
    context_lost: bool
    context: _Context
    contexts: list[_Context]
    interrupted: bool


_DECODER = msgspec.json.Decoder(_Answer)


def expect(event: wire.Data | wire.Message | None) -> dict[str, Any]:
    """Return the message that must come now.

    Raises:
        GuestError: Something else came, it is malformed, or the channel ended.
    """
    if isinstance(event, wire.Message):
        return _decode(event.document)
    what = "the end of the channel" if event is None else "data"
    raise GuestError(f"{what} where a message was due", code="guest_protocol")


def execution_request(what: Command | Code) -> dict[str, Any]:
    """Return the request that has something run."""
    request: dict[str, Any] = {
        "env": what.env,
        "cwd": what.cwd,
        "user": what.user,
        "timeout": what.timeout,
        "stdin": what.stdin,
    }
    if isinstance(what, Code):
        return {"op": "code", "source": what.source, **request}
    return {"op": "exec", "argv": list(what.argv), **request}


def execution_event(message: dict[str, Any]) -> ExecutionEvent:
    """Return the event that a message is.

    Raises:
        InvalidRequestError: The guest refused to run it.
        GuestError: The guest failed or broke the protocol.
    """
    match message.get("type"):
        case "started":
            count = (
                None if "execution_count" not in message else integer(message, "execution_count")
            )
            return Started(integer(message, "pid"), count)
        case "result":
            mime = message.get("mime")
            if not isinstance(mime, dict):
                raise malformed("mime")
            forms = _forms({_clean(kind): _clean(_text(mime, kind)) for kind in mime})
            id = None if "display_id" not in message else short(message, "display_id")
            return Result(forms, is_main=message.get("is_main") is True, display_id=id)
        case "raised":
            name, value, trace = (
                _clean(_text(message, key)) for key in ("name", "value", "traceback")
            )
            return Raised(name, value, trace)
        case "exited":
            return exited(message)
        case "error":
            raise refusal(message, REQUEST_REFUSALS, InvalidRequestError)
        case _:
            raise malformed("type")


def output(data: wire.Data, streams: Mapping[int, Stream]) -> Output:
    """Return the output that data is.

    Args:
        streams: Those that the operation has, by their numbers.

    Raises:
        GuestError: It is on another one.
    """
    stream = streams.get(data.stream)
    if stream is None:
        raise GuestError(f"output on stream {data.stream}", code="guest_protocol")
    return Output(stream, data.payload)


def done(message: dict[str, Any]) -> dict[str, Any]:
    """Return the message when it says that an operation is done.

    Raises:
        GuestFileError: The guest refused a file operation.
        InvalidRequestError: It refused the request's form or user.
        TooLargeError: There is more than the protocol carries.
        GuestError: The guest failed or broke the protocol.
    """
    match message.get("type"):
        case "done":
            return message
        case "error" if message.get("code") in ("bad_request", "unknown_group", "unknown_user"):
            raise refusal(message, REQUEST_REFUSALS, InvalidRequestError)
        case "error" if message.get("code") == "too_many_entries":
            raise refusal(message, frozenset({"too_many_entries"}), TooLargeError)
        case "error":
            raise refusal(message, FILE_REFUSALS, GuestFileError)
        case _:
            raise malformed("type")


def rng_request(rng: Rng) -> str | dict[str, int]:
    """Return what a guest is told of its user-space generators."""
    match rng:
        case Unique():
            return "unique"
        case Seed(value):
            return {"seed": value}
        case Preserve():
            return "preserve"


def receipt(message: dict[str, Any], clock_error_ns: int, rng: Rng) -> IdentityReceipt:
    """Return an identity's receipt; whether it confirms what was asked for, the caller judges.

    Args:
        rng: What must be confirmed of the generators.

    Raises:
        GuestError: It is malformed, or speaks of other generators.
    """
    if message.get("rng") != rng_request(rng):
        raise malformed("rng")
    generators = message.get("generators")
    if not isinstance(generators, list) or not all(isinstance(name, str) for name in generators):
        raise malformed("generators")
    return IdentityReceipt(
        hostname=short(message, "hostname"),
        machine_id=short(message, "machine_id"),
        boot_id=short(message, "boot_id"),
        entropy_bits=integer(message, "entropy_bits"),
        generators=tuple(_clean(name[:_MAX_TEXT]) for name in generators[:64]),
        clock_error_ns=clock_error_ns,
    )


def path(message: dict[str, Any], name: str) -> str:
    """Return a member that is a path, surrogate escapes in it for what is no UTF-8.

    Raises:
        GuestError: It is none, or longer than any.
    """
    text = _text(message, name)
    if len(text) > _MAX_PATH:
        raise malformed(name)
    return text


def short(message: dict[str, Any], name: str) -> str:
    """Return a member that is text, cut and without control characters.

    Raises:
        GuestError: It is none.
    """
    return _clean(_text(message, name)[:_MAX_TEXT])


def integer(message: dict[str, Any], name: str) -> int:
    """Return a member that is a number of at most 64 bits.

    Raises:
        GuestError: It is not.
    """
    value = message.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**64:
        raise malformed(name)
    return value


def _forms(mime: dict[str, str]) -> dict[str, str]:
    """Return a result's forms, and if they are too many the first of them, which then say so."""
    if len(mime) <= _MAX_FORMS:
        return mime
    plain = mime.get(_PLAIN, "")
    first = [kind for kind in mime if kind != _PLAIN][: _MAX_FORMS - 1]
    left_out = len(mime.keys() - {_PLAIN, *first})
    marked = f"{plain}\n[{left_out} more forms left out]"
    return {_PLAIN: marked, **{kind: mime[kind] for kind in first}}


def exited(message: dict[str, Any]) -> Exited:
    """Return how an execution ended.

    Raises:
        GuestError: The message is malformed.
    """
    code, signal = message.get("exit_code"), message.get("signal")
    if (code is None) == (signal is None):
        raise malformed("exit_code")
    if code is not None and not 0 <= integer(message, "exit_code") <= 255:
        raise malformed("exit_code")
    if signal is not None and not 0 < integer(message, "signal") < 128:
        raise malformed("signal")
    return Exited(
        exit_code=code,
        signal=signal,
        timed_out=message.get("timed_out") is True,
        out_of_memory=message.get("out_of_memory") is True,
        context_lost=message.get("context_lost") is True,
    )


def refusal(message: dict[str, Any], known: frozenset[str], kind: type[VmpoolError]) -> VmpoolError:
    """Return the error for a refusal; a code that we do not know is the guest's own failure."""
    code = message.get("code")
    text = _printable(_text(message, "message"))
    if code == "no_resources":
        return TaskError(text, code="guest_no_resources")
    if isinstance(code, str) and code in known:
        return kind(text, code=code)
    return GuestError(f"agent failed: {text}", code="guest_failed")


def _text(message: dict[str, Any], name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str):
        raise malformed(name)
    return value


def _decode(document: bytes) -> dict[str, Any]:
    """Return the members that we know of a document; makes no object for any other.

    Names that are not UTF-8 come as lone surrogates, which only the standard library takes.
    """
    try:
        try:
            return dict(_DECODER.decode(document))
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            structure = sum(map(document.count, (b",", b"[", b"{")))
            if b"\\u" not in document or structure > _MAX_STRUCTURE:
                raise
            return dict(msgspec.convert(json.loads(document.decode("ascii")), _Answer))
    except (ValueError, RecursionError) as err:
        text = _printable(str(err))
        raise GuestError(f"malformed answer: {text}", code="guest_protocol") from err


def _printable(text: str) -> str:
    """Return the start of a guest's text as one line without control characters, for people."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:_SHOWN_TEXT])


def _clean(text: str) -> str:
    """Return text that can be encoded as UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def malformed(name: str) -> GuestError:
    """Return the error for a member that is not what it must be."""
    return GuestError(f"answer with a wrong {name!r}", code="guest_protocol")
