"""Stream: QEMU's migration stream, as far as it has to be known to write one.

A template's stream holds no RAM but what its file cannot: the ROMs. A checkpoint's stream is the
template's up to there, then the machine's devices. A shell of the template loads it like any other,
once the pages in which the machine differs from its template lie in the shell's memory.

Names and numbers are of QEMU 10.0: `migration/savevm.c` for sections, `migration/ram.c` for pages.
Pure: bytes in, bytes out.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vmpool.errors import EngineError, SnapshotError

PAGE_BYTES = 4096

RAM_BLOCK = "ram"
"""What the command line calls the guest's memory, and so the stream."""

# Sections.
_MAGIC, _VERSION = b"QEVM", 3
_EOF, _START, _PART, _END, _FULL, _SUBSECTION, _VMDESC, _CONFIGURATION, _COMMAND = range(9)
_FOOTER = 0x7E

# What an eight-byte page header holds below the page's offset.
_ZERO, _MEMORY_SIZE, _PAGE, _END_OF_SECTION, _CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
_FLAGS = PAGE_BYTES - 1
_PAGE_SIZES = {_PAGE: PAGE_BYTES, _ZERO: 1}

_BYTE = struct.Struct(">B")
_HALF = struct.Struct(">I")
_WORD = struct.Struct(">Q")
_DEVICES_HEADER = _MAGIC + _HALF.pack(_VERSION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How a stream of a template's descendant begins.

    Attributes:
        head: Header, the list of RAM blocks, and the pages of all but the guest's memory.
        footer: What ends the section of RAM after its pages.
    """

    head: bytes
    footer: bytes


class _Reader:
    """A position in a template's stream; reading past its end is the stream's fault."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        taken = self.data[self.at : self.at + size]
        if len(taken) != size:
            raise _foreign("it ends early")
        self.at += size
        return taken

    def byte(self) -> int:
        return int(_BYTE.unpack(self.take(1))[0])

    def half(self) -> int:
        return int(_HALF.unpack(self.take(4))[0])

    def word(self) -> int:
        return int(_WORD.unpack(self.take(8))[0])

    def name(self) -> str:
        return self.take(self.byte()).decode("ascii", "replace")

    def peek(self) -> int:
        """Return the next byte and stay."""
        byte = self.byte()
        self.at -= 1
        return byte

    def expect(self, found: object, wanted: object) -> None:
        """Refuse the stream when `found` is not `wanted`."""
        if found != wanted:
            raise _foreign(f"{found!r} at {self.at}, not {wanted!r}")


def parse_opening(template: bytes, memory_bytes: int) -> Opening:
    """Return how every stream of a template's descendants begins.

    Args:
        template: The template's own stream.
        memory_bytes: Of the guest, which the stream must agree with.

    Raises:
        SnapshotError: It is no stream of a template; code `snapshot_damaged`.
    """
    reader = _Reader(template)
    reader.expect(reader.take(8), _DEVICES_HEADER)
    if reader.peek() == _CONFIGURATION:
        _skip_configuration(reader)
    reader.expect(reader.byte(), _START)
    section = reader.half()
    reader.expect(reader.name(), "ram")
    reader.take(8)  # instance and version
    _skip_blocks(reader, memory_bytes)
    footer = _skip_footer(reader, section)
    while True:
        kind = reader.byte()
        if kind == _COMMAND:  # since 10.0: that the machine stops now
            reader.take(2)
            reader.take(int.from_bytes(reader.take(2), "big"))
            continue
        if kind not in {_PART, _END}:
            raise _foreign(f"a section of kind {kind} among those of RAM")
        reader.expect(reader.half(), section)
        _skip_pages(reader)
        if kind == _END:
            return Opening(head=template[: reader.at], footer=_WORD.pack(_END_OF_SECTION) + footer)
        reader.take(_WORD.size)
        reader.expect(_skip_footer(reader, section), footer)


def _skip_configuration(reader: _Reader) -> None:
    reader.byte()
    reader.take(reader.half())  # the machine's name
    while reader.peek() == _SUBSECTION:
        reader.byte()
        name = reader.name()
        reader.half()  # version
        match name:
            case "configuration/capabilities":
                for _ in range(reader.half()):
                    reader.name()
            case "configuration/target-page-bits":
                reader.take(4)
            case "configuration/uuid":
                reader.take(16)
            case _:
                raise _foreign(f"an unknown part {name!r}")


def _skip_blocks(reader: _Reader, memory_bytes: int) -> None:
    left = reader.word()
    reader.expect(left & _FLAGS, _MEMORY_SIZE)
    left &= ~_FLAGS
    sizes: dict[str, int] = {}
    while left > 0:
        name = reader.name()
        sizes[name] = reader.word()
        reader.word()  # the address, which is there because shared memory is left out
        left -= sizes[name]
    reader.expect(left, 0)
    reader.expect(sizes.get(RAM_BLOCK), memory_bytes)
    reader.expect(reader.word(), _END_OF_SECTION)


def _skip_footer(reader: _Reader, section: int) -> bytes:
    if reader.peek() != _FOOTER:
        return b""
    start = reader.at
    reader.byte()
    reader.expect(reader.half(), section)
    return reader.data[start : reader.at]


def _skip_pages(reader: _Reader) -> None:
    """Go to the word that ends the section."""
    while True:
        flags = reader.word() & _FLAGS
        if flags == _END_OF_SECTION:
            reader.at -= _WORD.size
            return
        if not flags & _CONTINUE:
            reader.name()
        kind = flags & ~_CONTINUE
        if kind not in _PAGE_SIZES:
            raise _foreign(f"pages of kind {kind:#x}")
        reader.take(_PAGE_SIZES[kind])


def compose_devices(state: bytes) -> bytes:
    """Return what follows the pages: the devices, and an empty description of them.

    Args:
        state: What QEMU saves when it is asked for the devices alone.

    Raises:
        EngineError: It is no such state; code `state_unknown`.
    """
    header = len(_DEVICES_HEADER)
    if state[: header + 1] != _DEVICES_HEADER + _BYTE.pack(_FULL) or state[-1] != _EOF:
        raise EngineError("QEMU saved devices in a form unknown to vmpool", code="state_unknown")
    return state[header:] + _BYTE.pack(_VMDESC) + _HALF.pack(0)


def _foreign(what: str) -> SnapshotError:
    return SnapshotError(
        f"the template's device state is no stream that vmpool knows: {what}",
        code="snapshot_damaged",
        remedy="make the template again",
    )
