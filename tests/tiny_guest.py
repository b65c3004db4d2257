"""Tiny guests: kernels of a few bytes, up in a fraction of a second under emulation.

`IDLE` does nothing, `PANIC` panics, `FLOOD` writes to its panic device without end. `WITNESS` shows
what a hypervisor did to it: it waits until VMGENID tells it that it was restored, and then ends in
a way that says what it found in memory. A machine that sees nobody else's writes powers off; one
that does panics.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vmpool.model import Kernel

if TYPE_CHECKING:
    from pathlib import Path

UP = b"U"
"""What it writes to the console when it runs."""

_LOAD = 0x100000
_FLAG = 0x200000

# 32-bit protected mode, interrupts off, as multiboot leaves it.
_HELLO = [
    b"\x66\xba\xf8\x03",  # mov dx, 0x3f8       the console
    b"\xb0\x55",  # mov al, 'U'
    b"\xee",  # out dx, al
]
_PANIC = [
    b"\x66\xba\x05\x05",  # panic: mov dx, 0x505  the panic device
    b"\xb0\x01",  # mov al, 1
    b"\xee",  # out dx, al
    b"\xf4",  # hlt
]
IDLE = b"".join([*_HELLO, b"\xf4"])  # hlt
PANIC = b"".join([*_HELLO, *_PANIC])
FLOOD = b"".join(
    [
        *_HELLO,
        b"\x66\xba\x05\x05",  # mov dx, 0x505  the panic device
        b"\xb0\x02",  # mov al, 2              a crash kernel is loaded: QEMU only tells it
        b"\xee",  # again: out dx, al
        b"\xeb\xfd",  # jmp again
    ]
)
WITNESS = b"".join(
    [
        *_HELLO,
        b"\x66\xba\x20\x06",  # mov dx, 0x620       ACPI's general purpose events
        b"\xec",  # wait: in al, dx
        b"\xa8\x20",  # test al, 1 << 5             VMGENID's
        b"\x74\xfb",  # jz wait
        b"\x83\x3d" + struct.pack("<IB", _FLAG, 0),  # cmp dword [flag], 0
        b"\x75\x15",  # jne panic
        b"\xc7\x05" + struct.pack("<II", _FLAG, 1),  # mov dword [flag], 1
        b"\x66\xba\x04\x06",  # mov dx, 0x604       ACPI's power control
        b"\x66\xb8\x00\x20",  # mov ax, 1 << 13     sleep: soft off
        b"\x66\xef",  # out dx, ax
        b"\xf4",  # hlt
        *_PANIC,
    ]
)


def kernel(directory: Path, code: bytes) -> Kernel:
    """Write the guest `code` into `directory` and return how it is booted."""
    path, initrd = directory / "tiny", directory / "tiny-initrd"
    magic, flags = 0x1BADB002, 0x00010000  # multiboot 0.6.96: addresses are in the header
    entry = _LOAD + 32
    header = struct.pack(
        "<8I", magic, flags, -(magic + flags) & 0xFFFFFFFF, _LOAD, _LOAD, 0, 0, entry
    )
    path.write_bytes(header + code)
    initrd.write_bytes(b"none\n")
    return Kernel(kernel=path, initrd=initrd, command_line="")
