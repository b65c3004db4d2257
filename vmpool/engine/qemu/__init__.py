"""The engine that drives QEMU over QMP."""

from vmpool.engine.qemu.engine import QemuEngine, QemuMachine, QemuShell

__all__ = ["QemuEngine", "QemuMachine", "QemuShell"]
