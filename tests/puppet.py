"""Puppet: a running process that is made to do system calls, as whoever had broken into it would.

What it may do then is what the process may do: its account, its namespaces, its root directory, its
seccomp filter. The process is stopped meanwhile, and goes on afterwards.
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from typing import Self

# linux/ptrace.h
_CONTINUE, _SINGLESTEP, _GETREGS, _SETREGS, _DETACH = 7, 9, 12, 13, 17
_SEIZE, _INTERRUPT = 0x4206, 0x4207
_WALL = 0x40000000  # linux/wait.h: __WALL
_SYSCALL = b"\x0f\x05"
_INTERRUPTED = -4  # what the call that the process waits in returns then; it asks again

_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_RED_ZONE_BYTES = 128  # of the ABI, below the stack's pointer
_SPACE_BYTES = 1024

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.restype = ctypes.c_long
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Killed(Exception):  # noqa: N818 -- that is what became of it
    """The kernel ended the process for what it did."""


class _Registers(ctypes.Structure):
    """struct user_regs_struct of sys/user.h."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx"),
            *("rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss"),
            *("fs_base", "gs_base", "ds", "es", "fs", "gs"),
        )
    ]


class Puppet:
    """The first thread of the process `pid`, in a block; use it from one thread alone."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = _Registers()
        self._memory = -1
        self._gone = False

    def __enter__(self) -> Self:
        self._memory = os.open(f"/proc/{self._pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        self._trace(_SEIZE)
        self._interrupt()
        # It waits for events nearly all the time, in a system call.
        while os.pread(self._memory, len(_SYSCALL), self._before.rip - len(_SYSCALL)) != _SYSCALL:
            self._trace(_CONTINUE)
            self._interrupt()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._memory)
        if not self._gone:
            self._before.rax = ctypes.c_uint64(_INTERRUPTED).value
            self._before.orig_rax = ctypes.c_uint64(-1).value
            self._trace(_SETREGS, ctypes.byref(self._before))
            self._trace(_DETACH)

    def call(self, number: int, *arguments: int | bytes) -> int:
        """Have it do a system call; return its result, below zero an error's number.

        Args:
            arguments: Bytes are put into its memory, with a zero behind, and their address passed.

        Raises:
            Killed: It is no more.
        """
        registers = _Registers.from_buffer_copy(self._before)
        space = self._before.rsp - _RED_ZONE_BYTES - _SPACE_BYTES
        kept = os.pread(self._memory, _SPACE_BYTES, space)
        place = space
        for name, argument in zip(_ARGUMENTS, arguments, strict=False):
            if isinstance(argument, bytes):
                os.pwrite(self._memory, argument + b"\0", place)
                setattr(registers, name, place)
                place += len(argument) + 1
            else:
                setattr(registers, name, ctypes.c_uint64(argument).value)
        assert place - space < _SPACE_BYTES
        registers.rax = number
        registers.orig_rax = ctypes.c_uint64(-1).value
        registers.rip -= len(_SYSCALL)
        self._trace(_SETREGS, ctypes.byref(registers))
        self._trace(_SINGLESTEP)
        self._wait()
        self._trace(_GETREGS, ctypes.byref(registers))
        os.pwrite(self._memory, kept, space)
        return ctypes.c_int64(registers.rax).value

    def read(self, address: int, length: int) -> bytes:
        """Return what is in its memory."""
        return os.pread(self._memory, length, address)

    def _interrupt(self) -> None:
        self._trace(_INTERRUPT)
        self._wait()
        self._trace(_GETREGS, ctypes.byref(self._before))

    def _wait(self) -> None:
        status = None
        while status is None:
            found, answer = os.waitpid(self._pid, _WALL | os.WNOHANG)
            if found:
                status = answer
            elif self._has_lost_its_first_thread:
                break
            else:
                os.sched_yield()
        if status is None or not os.WIFSTOPPED(status):
            self._gone = True
            assert status is None or os.WTERMSIG(status) == signal.SIGSYS, status
            raise Killed

    @property
    def _has_lost_its_first_thread(self) -> bool:
        """Whether the kernel ended that alone, which nobody is told of while there are others."""
        stat = Path(f"/proc/{self._pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "Z"

    def _trace(self, request: int, data: object = None) -> None:
        if _LIBC.ptrace(request, self._pid, None, data) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise OSError(ctypes.get_errno(), f"ptrace {request}: {reason}")
