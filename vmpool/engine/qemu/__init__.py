"""The engine that drives QEMU over QMP."""

from vmpool.engine.qemu.access import require_access
from vmpool.engine.qemu.engine import QemuEngine
from vmpool.engine.qemu.machine import QemuMachine, QemuShell
from vmpool.engine.qemu.orphan import reap
from vmpool.engine.qemu.probe import Probe, probe_accelerator, probe_transport

__all__ = [
    "Probe",
    "QemuEngine",
    "QemuMachine",
    "QemuShell",
    "probe_accelerator",
    "probe_transport",
    "reap",
    "require_access",
]
