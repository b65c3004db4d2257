"""Sibling: a fork that is not the child of whoever forks, but of its parent.

The agent is to learn of a spare's end by itself, so a spare must be the agent's child and not the
warm interpreter's. A fork of a fork, the first of which ends at once, leaves an orphan for the
agent; but each of the two copies the page tables of a large process. clone(2) makes a sibling in
one step. Neither Python nor the C library knows that step: what `os.fork` does around it is done
here through Python's own interface, and what fork(3) does, as far as a single thread needs it.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_PARENT_OF_CALLER = 0x00008000  # linux/sched.h: CLONE_PARENT, _CHILD_CLEARTID, _CHILD_SETTID
_CLEAR_THREAD_ID = 0x00200000
_SET_THREAD_ID = 0x01000000
_THREAD_ID_ADDRESS = 40  # linux/prctl.h: PR_GET_TID_ADDRESS
_TASKS = "/proc/self/task"


class _Numbers(NamedTuple):
    """Of system calls."""

    clone: int
    set_robust_list: int
    get_robust_list: int


_NUMBERS = {
    "x86_64": _Numbers(56, 273, 274),  # asm/unistd_64.h
    "aarch64": _Numbers(220, 99, 100),  # asm-generic/unistd.h
}


def forking() -> Callable[[], bool]:
    """Return what makes a sibling of this process, and is true in that.

    It raises `OSError` where there is no room for one.
    """
    numbers = _NUMBERS.get(os.uname().machine)
    if numbers is not None and _is_alone():
        cloning = _Cloning.prepared(numbers)
        if cloning is not None:
            return cloning.fork
    return _fork_twice


def _is_alone() -> bool:
    """Whether this thread is the only one: what others hold, fork(3) knows to let go of."""
    try:
        return len(os.listdir(_TASKS)) == 1  # noqa: PTH208 no more is touched than has to be
    except OSError:
        return False


def _fork_twice() -> bool:
    between = os.fork()
    if between:
        os.waitpid(between, 0)
        return False
    try:
        if not os.fork():
            return True
    except OSError:
        pass  # whoever waits for it finds its connection closed
    os._exit(0)


class _Cloning:
    """Forks by clone(2).

    Args:
        thread_id: Address at which the C library keeps the id of this thread.
        held: Address and size of its list of locks that outlive their holder.
    """

    def __init__(
        self, numbers: _Numbers, thread_id: ctypes.c_void_p, held: tuple[ctypes.c_void_p, int]
    ) -> None:
        self._numbers = numbers
        self._thread_id = thread_id
        self._held = held
        # With Python's lock, which the child is born with: it is this very thread there.
        self._system_call = ctypes.PyDLL(None, use_errno=True).syscall
        self._system_call.restype = ctypes.c_long

    @classmethod
    def prepared(cls, numbers: _Numbers) -> _Cloning | None:
        """Return one, `None` where the kernel does not tell what it takes."""
        libc = ctypes.CDLL(None)
        thread_id, head, size = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_size_t()
        unknown = libc.prctl(_THREAD_ID_ADDRESS, ctypes.byref(thread_id), 0, 0, 0) or libc.syscall(
            numbers.get_robust_list, 0, ctypes.byref(head), ctypes.byref(size)
        )
        return None if unknown else cls(numbers, thread_id, (head, size.value))

    def fork(self) -> bool:
        """Make a sibling; true in that.

        Raises:
            OSError: There is no room for one.
        """
        flags = ctypes.c_ulong(
            _PARENT_OF_CALLER | _CLEAR_THREAD_ID | _SET_THREAD_ID | signal.SIGCHLD
        )
        ctypes.pythonapi.PyOS_BeforeFork()
        # The fourth or the fifth is that address, as the architecture has it; nothing the other.
        pid = self._system_call(
            self._numbers.clone, flags, None, None, self._thread_id, self._thread_id
        )
        if pid == 0:
            head, size = self._held
            self._system_call(self._numbers.set_robust_list, head, ctypes.c_size_t(size))
            ctypes.pythonapi.PyOS_AfterFork_Child()
            return True
        code = ctypes.get_errno()
        ctypes.pythonapi.PyOS_AfterFork_Parent()
        if pid < 0:
            raise OSError(code, os.strerror(code))
        return False
