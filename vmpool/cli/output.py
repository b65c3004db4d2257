"""Output: a guest's bytes on their way to the terminal or the pipe behind it, unchanged."""

from __future__ import annotations

import base64
import sys
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Mapping

_STREAMS = ("stdout", "stderr")


def write_stream(name: str, data: bytes) -> None:
    """Write bytes to our stream of a name, at once."""
    stream = _binary(name)
    stream.write(data)
    stream.flush()


def write_result(mime: Mapping[str, str]) -> None:
    """Write the text form of a value that code showed, as an interpreter's prompt would."""
    write_stream("stdout", mime.get("text/plain", "").encode() + b"\n")


def write_traceback(text: str) -> None:
    """Write how an exception ended code, where an interpreter would."""
    write_stream("stderr", text.rstrip("\n").encode() + b"\n")


def decode(member: Mapping[str, Any], name: str) -> bytes:
    """Return the bytes of a member that is text, or beside it base64 where it is none."""
    exact = member.get(f"{name}_base64")
    return base64.b64decode(exact) if exact is not None else str(member.get(name, "")).encode()


def encode(name: str, content: bytes) -> dict[str, str]:
    """Return bytes as a member: text where they are text, base64 where they are not."""
    try:
        return {name: content.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(content).decode()}


def _binary(name: str) -> BinaryIO:
    assert name in _STREAMS
    stream: BinaryIO = (sys.stdout if name == "stdout" else sys.stderr).buffer
    return stream
