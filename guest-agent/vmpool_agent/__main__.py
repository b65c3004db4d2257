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
_PORT_WAIT = 10.0
_PORT_POLL = 0.02


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
    vsock = transports.listen_on_vsock(machine.reactor, machine.start)
    # The driver announces its ports by and by; nothing tells of it but udev, which is not here.
    deadline = time.monotonic() + (0 if vsock else _PORT_WAIT)
    while not transports.open_serial_port(machine.reactor, machine.start):
        if time.monotonic() >= deadline:
            break
        time.sleep(_PORT_POLL)
    boot.say("vmpool-agent: ready")
    gc.collect()
    gc.freeze()
    machine.reactor.run()


if __name__ == "__main__":
    main()
