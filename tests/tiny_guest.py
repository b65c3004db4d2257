"""Tiny guests: kernels of a few bytes, up in a fraction of a second under emulation.

`IDLE` does nothing, `COUNTER` counts in a register and shows it in memory, `PANIC` panics, `FLOOD`
writes to its panic device without end, `CHATTER` says `CHATTER_BYTES` on its console, then its last
words, and panics. `WITNESS` shows what a hypervisor did to it: it waits until VMGENID tells it that
it was restored, and then ends in a way that says what it found in memory. A machine that sees
nobody else's writes powers off; one that does panics.
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
COUNT = 0x300000
"""Where `COUNTER` writes how far it is."""
MARK = 0x301000
"""Where `COUNTER` once wrote something that is not zero; it never comes back to that page."""
_STACK = 0x300000

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
CHATTER_BYTES = 200_000
LAST_WORD = b"E"
CHATTER = b"".join(
    [
        b"\xbc" + struct.pack("<I", _STACK),  # mov esp, _STACK
        b"\xb9" + struct.pack("<I", CHATTER_BYTES),  # mov ecx, CHATTER_BYTES
        b"\xb3\x2e",  # mov bl, '.'
        b"\xe8\x17\x00\x00\x00",  # again: call say
        b"\x49",  # dec ecx
        b"\x75\xf8",  # jnz again
        b"\xb3" + LAST_WORD,  # mov bl, LAST_WORD
        b"\xe8\x0d\x00\x00\x00",  # call say
        b"\xe8\x08\x00\x00\x00",  # call say      returns only when the first one is out
        *_PANIC,
        # say:
        b"\x66\xba\xfd\x03",  # mov dx, 0x3fd      the console's state
        b"\xec",  # wait: in al, dx
        b"\xa8\x20",  # test al, 1 << 5             it takes a character
        b"\x74\xfb",  # jz wait
        b"\x66\xba\xf8\x03",  # mov dx, 0x3f8
        b"\x88\xd8",  # mov al, bl
        b"\xee",  # out dx, al
        b"\xc3",  # ret
    ]
)
COUNTER = b"".join(
    [
        b"\xc7\x05" + struct.pack("<II", MARK, 0xFFFFFFFF),  # mov dword [mark], -1
        *_HELLO,
        b"\x31\xc0",  # xor eax, eax
        b"\x40",  # again: inc eax
        b"\xa3" + struct.pack("<I", COUNT),  # mov [count], eax
        b"\xeb\xf8",  # jmp again
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
