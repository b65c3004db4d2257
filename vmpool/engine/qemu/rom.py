"""ROM: a guest of a few instructions, run in place of the firmware, byte by byte.

From the reset vector in real mode it enters long mode, moves 64 bits through its registers and
memory, and ends QEMU with an exit code. It shows whether an accelerator runs 64-bit guest code; it
does not know what is concluded from that.
"""

from __future__ import annotations

import struct

_PASSED = 0x2A
EXIT_CODE = _PASSED << 1 | 1
"""What QEMU ends with when the guest passed; see QEMU's hw/misc/debugexit.c."""

_SIZE_BYTES = 64 << 10
_SEGMENT = 0xF0000  # where the ROM also appears below 1 MiB

# Offsets in the ROM.
_PROTECTED = 0x040
_LONG = 0x0A0
_GDT = 0x100
_GDT_POINTER = 0x120
_RESET_VECTOR = 0xFFF0

_REAL_MODE = (
    b"\xfa",  # cli
    b"\x2e\x0f\x01\x16" + struct.pack("<H", _GDT_POINTER),  # lgdt cs:[gdt_pointer]
    b"\x0f\x20\xc0",  # mov eax, cr0
    b"\x0c\x01",  # or al, 1                    protected mode
    b"\x0f\x22\xc0",  # mov cr0, eax
    b"\x66\xea" + struct.pack("<IH", _SEGMENT + _PROTECTED, 0x08),  # jmp 0x08:protected
)

# Page tables at 0x1000: one entry on each of two levels, then one page of 2 MiB.
_PROTECTED_MODE = (
    b"\x66\xb8\x10\x00",  # mov ax, 0x10
    b"\x8e\xd8\x8e\xd0",  # mov ds, ax; mov ss, ax
    b"\xc7\x05" + struct.pack("<II", 0x1000, 0x2003),  # mov dword [0x1000], 0x2000 | present, rw
    b"\xc7\x05" + struct.pack("<II", 0x2000, 0x3003),  # mov dword [0x2000], 0x3000 | present, rw
    b"\xc7\x05" + struct.pack("<II", 0x3000, 0x0083),  # mov dword [0x3000], 0 | 2 MiB page
    b"\x0f\x20\xe0",  # mov eax, cr4
    b"\x0d" + struct.pack("<I", 0x620),  # or eax, PAE | OSFXSR | OSXMMEXCPT
    b"\x0f\x22\xe0",  # mov cr4, eax
    b"\xb8" + struct.pack("<I", 0x1000),  # mov eax, 0x1000
    b"\x0f\x22\xd8",  # mov cr3, eax
    b"\xb9" + struct.pack("<I", 0xC0000080),  # mov ecx, EFER
    b"\x0f\x32",  # rdmsr
    b"\x0d" + struct.pack("<I", 0x100),  # or eax, LME
    b"\x0f\x30",  # wrmsr
    b"\x0f\x20\xc0",  # mov eax, cr0
    b"\x0d" + struct.pack("<I", 0x80000000),  # or eax, PG
    b"\x0f\x22\xc0",  # mov cr0, eax
    b"\xea" + struct.pack("<IH", _SEGMENT + _LONG, 0x18),  # jmp 0x18:long
)

_LONG_MODE = (
    b"\xbc" + struct.pack("<I", 0x8000),  # mov esp, 0x8000
    b"\x49\xb8" + struct.pack("<Q", 0x123456789ABCDEF0),  # mov r8, imm64
    b"\x66\x49\x0f\x6e\xc0",  # movq xmm0, r8
    b"\x66\x0f\x6f\xc8",  # movdqa xmm1, xmm0
    b"\x66\x48\x0f\x7e\xc8",  # movq rax, xmm1
    b"\x50",  # push rax
    b"\x59",  # pop rcx
    b"\x4c\x31\xc1",  # xor rcx, r8             0 if all 64 bits came through
    b"\xb0" + struct.pack("B", _PASSED),  # mov al, passed
    b"\x08\xc8",  # or al, cl
    b"\xe6\xf4",  # out 0xf4, al                QEMU exits with al << 1 | 1
    b"\xf4",  # hlt
)

_DESCRIPTORS = (
    0,
    0x00CF9B000000FFFF,  # 0x08: code, 32 bit, flat
    0x00CF93000000FFFF,  # 0x10: data, flat
    0x00AF9B000000FFFF,  # 0x18: code, 64 bit
)


def assemble() -> bytes:
    """Return the ROM, 64 KiB, to be mapped below 4 GiB and below 1 MiB."""
    gdt = struct.pack(f"<{len(_DESCRIPTORS)}Q", *_DESCRIPTORS)
    image = bytearray(b"\xf4" * _SIZE_BYTES)  # hlt
    for offset, part in (
        (0, b"".join(_REAL_MODE)),
        (_PROTECTED, b"".join(_PROTECTED_MODE)),
        (_LONG, b"".join(_LONG_MODE)),
        (_GDT, gdt),
        (_GDT_POINTER, struct.pack("<HI", len(gdt) - 1, _SEGMENT + _GDT)),
        (_RESET_VECTOR, b"\xea\x00\x00\x00\xf0"),  # jmp 0xf000:0
    ):
        image[offset : offset + len(part)] = part
    return bytes(image)
