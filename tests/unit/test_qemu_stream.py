"""The migration stream of a template's descendant, byte by byte."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.engine.qemu import stream
from vmpool.engine.qemu.stream import PAGE_BYTES
from vmpool.errors import EngineError, SnapshotError

MEMORY_BYTES = 16 * PAGE_BYTES
ROM = bytes(range(256)) * (PAGE_BYTES // 256)
FOOTER = b"\x7e" + struct.pack(">I", 2)
END_OF_PAGES = struct.pack(">Q", 0x10)

CONFIGURATION = (
    b"\x07\x00\x00\x00\x0bpc-q35-10.0"
    b"\x05\x1aconfiguration/capabilities\x00\x00\x00\x01\x00\x00\x00\x01\x0fx-ignore-shared"
)
BLOCKS = (
    struct.pack(">Q", (MEMORY_BYTES + 2 * PAGE_BYTES) | 0x04)
    + b"\x03ram"
    + struct.pack(">QQ", MEMORY_BYTES, 0)
    + b"\x07pc.bios"
    + struct.pack(">QQ", 2 * PAGE_BYTES, 0xFFFC0000)
    + END_OF_PAGES
)
PAGES = struct.pack(">Q", 0x08) + b"\x07pc.bios" + ROM + struct.pack(">Q", 0x1000 | 0x22) + b"\0"


def template(
    *, footer: bytes = FOOTER, pages: bytes = PAGES, parts: int = 0, blocks: bytes = BLOCKS
) -> bytes:
    """Return a template's stream as QEMU 10.0 writes it, with `parts` rounds before the last."""
    start = b"\x01" + struct.pack(">I", 2) + b"\x03ram" + struct.pack(">II", 0, 4)
    part = b"\x02" + struct.pack(">I", 2) + END_OF_PAGES + footer
    switchover = b"\x08" + struct.pack(">HH", 16, 0)
    end = b"\x03" + struct.pack(">I", 2) + pages + END_OF_PAGES + footer
    return b"".join(
        [
            b"QEVM\x00\x00\x00\x03",
            CONFIGURATION,
            *(start, blocks, footer),
            *([part + switchover] * parts),
            end,
            b"\x04devices\x00",
        ]
    )


@pytest.mark.parametrize("footer", [FOOTER, b""])
@pytest.mark.parametrize("parts", [0, 2])
def test_a_descendants_stream_begins_as_its_templates_up_to_the_end_of_ram(
    footer: bytes, parts: int
) -> None:
    whole = template(footer=footer, parts=parts)
    opening = stream.parse_opening(whole, MEMORY_BYTES)
    assert opening.head.endswith(PAGES)
    assert opening.footer == END_OF_PAGES + footer
    assert whole == opening.head + opening.footer + b"\x04devices\x00"


def test_a_descendants_devices_are_these_bytes() -> None:
    devices = stream.compose_devices(b"QEVM\x00\x00\x00\x03\x04devices\x00")
    assert devices == b"\x04devices\x00\x06\x00\x00\x00\x00"


@pytest.mark.parametrize(
    "state",
    [b"", b"QEVM\x00\x00\x00\x03", b"QEVM\x00\x00\x00\x03\x01x\x00", b"QEVM\x00\x00\x00\x03\x04x"],
)
def test_devices_in_an_unknown_form_are_refused(state: bytes) -> None:
    with pytest.raises(EngineError) as caught:
        stream.compose_devices(state)
    assert caught.value.error_code == "state_unknown"


@given(st.integers(0, len(template())))
def test_a_stream_that_ends_early_is_refused(length: int) -> None:
    whole = template()
    opening = stream.parse_opening(whole, MEMORY_BYTES)
    needed = len(opening.head) + len(END_OF_PAGES)
    if length >= needed:
        assert stream.parse_opening(whole[:length], MEMORY_BYTES) == opening
    else:
        with pytest.raises(SnapshotError) as caught:
            stream.parse_opening(whole[:length], MEMORY_BYTES)
        assert caught.value.error_code == "snapshot_damaged"


@given(at=st.integers(0, len(template()) - 1), byte=st.integers(0, 255))
def test_a_stream_with_a_wrong_byte_is_refused_or_still_begins_as_it_did(
    at: int, byte: int
) -> None:
    changed = bytearray(template())
    changed[at] = byte
    try:
        opening = stream.parse_opening(bytes(changed), MEMORY_BYTES)
    except SnapshotError:
        return
    assert bytes(changed).startswith(opening.head + opening.footer)


def test_a_template_with_memory_of_another_size_is_refused() -> None:
    with pytest.raises(SnapshotError):
        stream.parse_opening(template(), MEMORY_BYTES * 2)
    with pytest.raises(SnapshotError):
        stream.parse_opening(b"", MEMORY_BYTES)
