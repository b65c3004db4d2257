"""The agent as a program: the first process of a guest."""

from __future__ import annotations

import contextlib
import gc
import os
import time

from vmpool_agent import boot, transports
from vmpool_agent.machine import Machine
from vmpool_agent.system import LinuxSystem, become_subreaper

WARM_UP = "/usr/lib/vmpool/warm.py"
_DEVICE_WAIT = 10.0
_DEVICE_POLL = 0.02


def main() -> None:
    """Boot the guest when we are its first process, then serve for ever."""
    if os.getpid() == 1:
        boot.boot()
    else:
        become_subreaper()
    system = LinuxSystem()
    with contextlib.suppress(OSError):
        system.protect()
    machine = Machine(system, WARM_UP)
    machine.interpreter.start()
    transports.listen_on_vsock(machine.reactor, machine.service)
    # Drivers announce their devices by and by; nothing tells of it but udev, which is not here.
    # That the kernel lets us listen says nothing: it does so without a device, too.
    deadline = time.monotonic() + _DEVICE_WAIT
    while not transports.open_serial_port(machine.reactor, machine.service):
        if system.cid() is not None or time.monotonic() >= deadline:
            break
        time.sleep(_DEVICE_POLL)
    boot.say("vmpool-agent: ready")
    gc.collect()
    gc.freeze()
    machine.reactor.run()


if __name__ == "__main__":
    main()
