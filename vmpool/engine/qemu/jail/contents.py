"""Contents: the files of the host that a program needs to run.

Found by asking: the program's own loader says which libraries it takes, and QEMU where its firmware
is. Nothing is guessed from what one distribution has where.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vmpool.errors import HostError

_TIMEOUT = 10.0  # seconds for a program to answer; milliseconds are usual

_ELF64 = b"\x7fELF\x02\x01"  # elf.h: 64 bits, little endian
_PROGRAM_HEADERS = struct.Struct("<Q14xHH")  # e_phoff, e_phentsize, e_phnum; from 32 on
_PROGRAM_HEADER = struct.Struct("<I4xQ16xQ")  # p_type, p_offset, p_filesz
_PT_INTERP = 3
_HEADER_LIMIT_BYTES = 4096

_LIBRARIES = ("lib/x86_64-linux-gnu", "lib64", "lib")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Files and directories of the host, absolute.

    Attributes:
        code: What may be executed or mapped to be.
        data: What may be read.
        devices: What may be opened as the device that it is.
    """

    code: tuple[Path, ...]
    data: tuple[Path, ...] = ()
    devices: tuple[Path, ...] = ()

    @property
    def readable(self) -> tuple[Path, ...]:
        """All that are no devices."""
        return (*self.code, *self.data)


def of_qemu(binary: str) -> Contents:
    """Return what QEMU needs. Blocks, for a few hundredths of a second.

    Raises:
        HostError: It is missing (`qemu_missing`), or a script or otherwise not to be seen through
            (`contents_unknown`).
    """
    found = of_program(binary)
    program = found.code[0]
    data = [Path(line.strip()) for line in _said(str(program), "-L", "help").splitlines()]
    prefix = program.resolve().parent.parent
    modules = [prefix / libraries / "qemu" for libraries in _LIBRARIES]
    return Contents(
        code=(*found.code, *(path for path in modules if path.is_dir())),
        data=tuple(path for path in dict.fromkeys(data) if path.is_absolute() and path.is_dir()),
    )


def of_program(binary: str) -> Contents:
    """Return what a program needs that is an ELF file: itself, its loader and its libraries.

    Raises:
        HostError: As `of_qemu`.
    """
    found = shutil.which(binary)
    if found is None:
        raise HostError(
            f"{binary!r} is missing", code="qemu_missing", remedy="vmpool doctor --install"
        )
    try:
        loader = _loader(Path(found))
    except (OSError, struct.error, ValueError, OverflowError) as err:
        raise _unknown(binary, str(err)) from err
    if loader is None:
        return Contents(code=(Path(found),))
    listed = re.findall(r"(/\S+) \(0x[0-9a-f]+\)$", _said(loader, "--list", found), re.MULTILINE)
    paths = dict.fromkeys(Path(path) for path in (found, loader, *listed))
    return Contents(code=tuple(paths))


def _loader(program: Path) -> str | None:
    """Return the loader that an ELF program names; `None` for one that needs none."""
    with program.open("rb") as file:
        head = file.read(_HEADER_LIMIT_BYTES)
        if not head.startswith(_ELF64):
            raise _unknown(str(program), "it is no 64-bit ELF program")
        start, size, count = _PROGRAM_HEADERS.unpack_from(head, 32)
        for number in range(count):
            kind, _, offset, _, _, length = struct.unpack_from(
                "<IIQQQQ", head, start + number * size
            )
            if kind == _PT_INTERP:
                file.seek(offset)
                return file.read(min(length, _HEADER_LIMIT_BYTES)).rstrip(b"\0").decode()
    return None


def _said(*argv: str) -> str:
    """Return what a program of the host prints."""
    try:
        return subprocess.run(
            argv,
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_TIMEOUT,
        ).stdout
    except (OSError, subprocess.SubprocessError) as err:
        raise _unknown(argv[-1], str(err)) from err


def _unknown(program: str, why: str) -> HostError:
    return HostError(
        f"cannot tell what {program!r} needs to run: {why}",
        code="contents_unknown",
        remedy="have the qemu-system-x86_64 on PATH be the program itself, not a script",
    )
