"""Limits: how much of the host one QEMU may use, however hostile it is.

What a process can be held to by itself is set the moment it exists: it has not read a byte of its
guest by then. What only a control group can hold it to, `cgroup` sets.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmpool.engine.qemu.jail import calls
from vmpool.errors import HostError
from vmpool.model import MIB, Accelerator

if TYPE_CHECKING:
    from vmpool.model import MachineSpec

OVERHEAD_BYTES = 128 * MIB
"""What a QEMU takes beside its guest's memory; measured are 20 to 60 MB, and a read or a commit of
its disk's layers takes some more for a while."""

TRANSLATIONS_BYTES = 80 * MIB
"""What emulation takes beside that: a cache of 64 MiB, and what describes its contents."""

_THREADS = 96  # its pool for disk requests grows to 64; the rest is its own
_DESCRIPTORS = 1024
_FILE_SLACK_BYTES = 64 * MIB  # what describes a disk's clusters, and states of devices

_TMPFS = 0x01021994  # linux/magic.h

_OOM_SCORE = 500
"""Of 1000: when the host runs out of memory a machine goes, not the server of all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that one QEMU may use.

    Attributes:
        memory_bytes: Its guest's, its own, and the page cache that it fills.
        tasks: Processes and threads.
        cpus: Of processor time, for each second.
        file_bytes: Of any file that it writes.
    """

    memory_bytes: int
    tasks: int
    cpus: int
    file_bytes: int

    @classmethod
    def of(cls, spec: MachineSpec, *, disk_in_memory_bytes: int = 0) -> Limits:
        """Return those of a machine.

        Args:
            disk_in_memory_bytes: What its disk can take where files are memory.
        """
        emulated = spec.accelerator is Accelerator.TCG
        own = OVERHEAD_BYTES + (TRANSLATIONS_BYTES if emulated else 0)
        return cls(
            memory_bytes=spec.memory_bytes + own + disk_in_memory_bytes,
            tasks=_THREADS + spec.vcpus,
            # One more than its guest's: what serves disk and agent runs beside them.
            cpus=spec.vcpus + 1,
            file_bytes=spec.disk_bytes + spec.disk_bytes // 64 + _FILE_SLACK_BYTES,
        )


SMALL = Limits(memory_bytes=OVERHEAD_BYTES, tasks=_THREADS, cpus=1, file_bytes=_FILE_SLACK_BYTES)
"""Those of a process that holds no machine."""


def is_in_memory(directory: Path) -> bool:
    """Whether files in `directory` are memory, which counts as that of who writes them."""
    return calls.file_system(directory) == _TMPFS


def impose(limits: Limits, pid: int, *, own_account: bool) -> None:
    """Hold the process `pid` to what a process can be held to, for good.

    Whoever has its account may, as the thread that made it has: being root is not enough where
    that comes without CAP_SYS_RESOURCE.

    Args:
        own_account: Whether nobody else runs as its user id, for whose processes all together
            some of the limits are.

    Raises:
        HostError: The kernel refused; `isolation_failed`.
    """
    hard = {
        resource.RLIMIT_CORE: 0,  # its guest's memory, on the host's disk
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NOFILE: _DESCRIPTORS,
    }
    if own_account:
        hard[resource.RLIMIT_NPROC] = limits.tasks
    try:
        for kind, most in hard.items():
            allowed = resource.prlimit(pid, kind)[1]
            value = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
            resource.prlimit(pid, kind, (value, value))
    except OSError as err:
        raise HostError(
            f"cannot limit process {pid}: {err.strerror}", code="isolation_failed"
        ) from err


def give_way(pid: int) -> None:
    """Have the kernel end the process `pid` sooner than this one, when memory runs out.

    Raises:
        OSError: The kernel refused.
    """
    Path(f"/proc/{pid}/oom_score_adj").write_text(str(_OOM_SCORE))
