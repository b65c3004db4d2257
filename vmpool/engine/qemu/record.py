"""Record: what a machine's directory says about its process, for a manager that comes later.

A process is named by its pid and its start time in this boot of the kernel, so that the right one
is found or none.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from vmpool.model import MachineSpec

RECORD = "machine.json"

_LIMIT_BYTES = 64 << 10
_ENDED = {"Z", "X"}  # of the states in proc_pid_stat(5)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One QEMU process.

    Attributes:
        start_ticks: Start time since boot, in clock ticks (field 22 of proc_pid_stat(5)).
        boot_id: Of the kernel that these ticks count from.
        cid: The machine's vsock context id; `None` on virtio-serial.
    """

    pid: int
    start_ticks: int
    boot_id: str
    spec: MachineSpec
    cid: int | None = None

    @classmethod
    def of(cls, pid: int, spec: MachineSpec, cid: int | None) -> Record:
        """Record the process `pid`, a child of ours.

        Raises:
            ProcessLookupError: It is gone, and reaped.
        """
        return cls(pid=pid, start_ticks=start_ticks(pid), boot_id=boot_id(), spec=spec, cid=cid)

    @property
    def is_alive(self) -> bool:
        """Whether the very process of this record is there, and has not ended unreaped."""
        try:
            state, ticks = _state(self.pid)
        except ProcessLookupError:
            return False
        return self.boot_id == boot_id() and self.start_ticks == ticks and state not in _ENDED

    def write(self, directory: Path) -> None:
        """Put the record into `directory`, whole or not at all."""
        temporary = directory / f".{RECORD}"
        temporary.write_bytes(msgspec.json.encode(self, enc_hook=str))
        temporary.rename(directory / RECORD)


_DECODER = msgspec.json.Decoder(Record, dec_hook=lambda kind, value: kind(value))
"""Made here, as msgspec crashes when two threads are the first to decode a type."""


def read(directory: Path) -> Record | None:
    """Return the record in `directory`; `None` when there is none that can be read."""
    try:
        with (directory / RECORD).open("rb") as file:
            data = file.read(_LIMIT_BYTES)
        return _DECODER.decode(data)
    except (OSError, msgspec.DecodeError):
        return None


def start_ticks(pid: int) -> int:
    """Return the start time of `pid` in clock ticks since boot.

    Raises:
        ProcessLookupError: There is no such process.
    """
    return _state(pid)[1]


def _state(pid: int) -> tuple[str, int]:
    """Return fields 3 and 22 of proc_pid_stat(5)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError as err:
        raise ProcessLookupError(pid) from err
    fields = stat.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def boot_id() -> str:
    """Return the random name of this boot of the kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
