"""The agent as a program: the first process of a guest."""

from __future__ import annotations

import contextlib
import gc
import os

from vmpool_agent import boot, transports
from vmpool_agent.machine import Machine
from vmpool_agent.system import LinuxSystem, become_subreaper

WARM_UP = "/usr/lib/vmpool/warm.py"


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
    transports.open_streams(machine.reactor, machine.service, system.cid)
    boot.say("vmpool-agent: ready")
    gc.collect()
    gc.freeze()
    machine.reactor.run()


if __name__ == "__main__":
    main()
