"""Inlay: parts of a file, mapped privately into another process over what it had there.

A child of a fork could be given its pages by copying them, one fault each, or by showing it where
they lie, once for hundreds of them; what children only read they then share. The kernel maps memory
for a process when the process itself asks, so it is stopped (ptrace(2)) and made to ask.

Only done to a process that has run nothing of a guest's yet and waits in a system call. Whoever
does it and is killed takes the process along: it must not run on with registers that are not its
own. It decides nothing about what is mapped where.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import signal
import struct
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmpool.engine.qemu.pagemap import Span

WORTH_BYTES = 8 << 10
"""From here on a piece is mapped much faster than it is copied."""

# linux/ptrace.h
_CONT, _SINGLESTEP, _GETREGS, _SETREGS, _DETACH = 7, 9, 12, 13, 17
_SEIZE, _INTERRUPT = 0x4206, 0x4207
_O_EXITKILL = 1 << 20
_EVENT_STOP = 128
_SIGNAL = 0xFF  # of what a process stopped for; above it is why

_WALL = 0x40000000  # linux/wait.h: whatever kind of child it is
_AT_SYSINFO_EHDR = 33  # linux/auxvec.h: where the kernel's own code is in every process
_VDSO_BYTES = 8192
_SYSCALL = b"\x0f\x05"
_SYS_MMAP, _SYS_MUNMAP = 9, 11  # asm/unistd_64.h
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000  # asm-generic/mman-common.h

_NOTHING = (1 << 64) - 1  # no descriptor, and no system call
_ERRNO_LIMIT = 4095

# linux/user.h: struct user_regs_struct
_REGISTERS = struct.Struct("<27Q")
_RBP, _RBX, _R10, _R9, _R8, _RAX, _RDX, _RSI, _RDI = 4, 5, 7, 8, 9, 10, 12, 13, 14
_ORIG_RAX, _RIP = 15, 16
_ARGUMENTS = (_RDI, _RSI, _RDX, _R10, _R8, _R9)

# A row of what is to be mapped: address, size, offset.
_ROW = struct.Struct("<3Q")

_LOOP = bytes.fromhex(
    "4839eb"  # again: cmp rbx, rbp; the rows are from the one to the other
    "741d"  # je done
    "b809000000"  # mov eax, 9; mmap; what is the same for all is in its registers
    "488b3b"  # mov rdi, [rbx]
    "488b7308"  # mov rsi, [rbx + 8]
    "4c8b4b10"  # mov r9, [rbx + 16]
    "0f05"  # syscall
    "4839f8"  # cmp rax, rdi; where it was to be?
    "7506"  # jne done
    "4883c318"  # add rbx, 24
    "ebde"  # jmp again
    "cc"  # done: int3
)
"""What the process runs: each stop of it costs as much as ten of these calls."""

_AUXILIARY = struct.Struct("<2Q")

_PTRACE = ctypes.CDLL(None, use_errno=True).ptrace
_PTRACE.restype = ctypes.c_long
_PTRACE.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class _OtherStopError(InterruptedError):
    """The process has stopped for a signal that it is to have."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.EINTR, f"it was sent signal {number}")
        self.signal = number


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of a file, and where it is to be; all in whole pages.

    Attributes:
        start: Address in the process.
        offset: In the file.
    """

    start: int
    size_bytes: int
    offset: int


def choose(spans: Sequence[Span], offset: int, *, most: int) -> dict[Span, Piece]:
    """Return which of `spans` are worth being laid in, and where their pieces come from.

    Args:
        spans: Addresses; what belongs there lies in the file one behind the other.
        offset: Of the first in the file.
        most: How many; the largest are chosen.
    """
    pieces: dict[Span, Piece] = {}
    for span in spans:
        size = span[1] - span[0]
        if size >= WORTH_BYTES:
            pieces[span] = Piece(start=span[0], size_bytes=size, offset=offset)
        offset += size
    if len(pieces) > most:
        return dict(nlargest(most, pieces.items(), key=lambda item: item[1].size_bytes))
    return pieces


def lay(pid: int, descriptor: int, pieces: Sequence[Piece]) -> None:
    """Map pieces of a file into the process `pid`, for it to write to without changing the file.

    Blocks. *Idempotent*: on failure some are mapped, and the process is as it was otherwise.

    Args:
        descriptor: The file's number in the process.

    Raises:
        OSError: It may not be done to this process, or the process refused or is gone.
    """
    if platform.machine() != "x86_64":
        raise OSError(f"registers of {platform.machine()!r} are not known")
    table = b"".join(_ROW.pack(each.start, each.size_bytes, each.offset) for each in pieces)
    size = -(-(len(_LOOP) + len(table)) // mmap.PAGESIZE) * mmap.PAGESIZE
    with _Held(pid) as held:
        executable = mmap.PROT_READ | mmap.PROT_EXEC
        place = held.call(
            _SYS_MMAP, 0, size, executable, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, _NOTHING, 0
        )
        try:
            held.write(place, _LOOP + table)
            begin = place + len(_LOOP)
            rows = {_RBX: begin, _RBP: begin + len(table)}
            held.run(
                place,
                rows
                | {
                    _RDX: mmap.PROT_READ | mmap.PROT_WRITE,
                    _R10: mmap.MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE,
                    _R8: descriptor,
                },
            )
        finally:
            held.call(_SYS_MUNMAP, place, size, 0, 0, 0, 0)


class _Held:
    """A process that is held still, and has its own registers again after the block.

    All of it in one thread: the kernel knows who holds a process by the thread.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._syscall = _find_syscall(pid)
        self._own: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        self._trace(_SEIZE, _O_EXITKILL)
        try:
            self._trace(_INTERRUPT)
            self._wait(signal.SIGTRAP | _EVENT_STOP << 8)
            self._own = self._registers()
        except BaseException as err:
            self._let_go(err)
            raise
        return self

    def __exit__(self, _kind: object, err: BaseException | None, _trace: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._set_registers({})
        self._let_go(err)

    def call(self, number: int, *arguments: int) -> int:
        """Have the process make a system call; return its result.

        Raises:
            OSError: The kernel refused it.
        """
        wanted = dict(zip(_ARGUMENTS, arguments, strict=True))
        self._set_registers({_RIP: self._syscall, _RAX: number, **wanted})
        self._trace(_SINGLESTEP)
        self._wait(signal.SIGTRAP)
        return _checked(self._registers()[_RAX])

    def run(self, place: int, registers: dict[int, int]) -> None:
        """Have the process run what ends as `_LOOP` does.

        Raises:
            OSError: The kernel refused one of its calls.
        """
        self._set_registers({_RIP: place, **registers})
        self._trace(_CONT)
        self._wait(signal.SIGTRAP)
        after = self._registers()
        if after[_RBX] != after[_RBP]:
            _checked(after[_RAX])
            raise OSError(errno.EINVAL, "a piece was mapped elsewhere")

    def write(self, place: int, data: bytes) -> None:
        """Write into the process's memory, also where it may not itself."""
        with Path(f"/proc/{self._pid}/mem").open("r+b", buffering=0) as memory:
            if os.pwrite(memory.fileno(), data, place) != len(data):
                raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))

    def _let_go(self, err: BaseException | None) -> None:
        pending = err.signal if isinstance(err, _OtherStopError) else 0  # it shall have it
        with contextlib.suppress(ProcessLookupError):  # it has ended, which others notice
            self._trace(_DETACH, pending)

    def _wait(self, expected: int) -> None:
        """Wait until the process has stopped as expected."""
        # Its end is only looked at: how it ended is for whoever holds it, and its number is
        # nobody else's until then.
        kinds = os.WSTOPPED | os.WEXITED | os.WNOWAIT | _WALL
        change = os.waitid(os.P_PID, self._pid, kinds)
        assert change is not None  # without WNOHANG
        if change.si_code != os.CLD_TRAPPED:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        if change.si_status != expected:
            raise _OtherStopError(change.si_status & _SIGNAL)

    def _registers(self) -> tuple[int, ...]:
        buffer = ctypes.create_string_buffer(_REGISTERS.size)
        self._trace(_GETREGS, ctypes.addressof(buffer))
        return _REGISTERS.unpack(buffer.raw)

    def _set_registers(self, changed: dict[int, int]) -> None:
        """Give the process its own registers, but for some."""
        registers = list(self._own)
        if changed:
            registers[_ORIG_RAX] = _NOTHING  # or the call it waits in would be begun again now
        for register, value in changed.items():
            registers[register] = value
        buffer = ctypes.create_string_buffer(_REGISTERS.pack(*registers), _REGISTERS.size)
        self._trace(_SETREGS, ctypes.addressof(buffer))

    def _trace(self, request: int, data: int = 0) -> None:
        if _PTRACE(request, self._pid, 0, data) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def _checked(result: int) -> int:
    """Return a system call's result, or raise its error."""
    number = (1 << 64) - result
    if number <= _ERRNO_LIMIT:
        raise OSError(number, os.strerror(number))
    return result


def _find_syscall(pid: int) -> int:
    """Return the address of an instruction in the process that enters the kernel."""
    auxiliary = Path(f"/proc/{pid}/auxv").read_bytes()
    whole = len(auxiliary) // _AUXILIARY.size * _AUXILIARY.size
    base: int = dict(_AUXILIARY.iter_unpack(auxiliary[:whole])).get(_AT_SYSINFO_EHDR, 0)
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        code = os.pread(memory.fileno(), _VDSO_BYTES, base) if base else b""
    found = code.find(_SYSCALL)
    if found < 0:
        raise OSError("the process has none of the kernel's code")
    return base + found
