"""Pauses and snapshots that keep the files alone, and what is made of them.

Prints a line for each thing that is as documented, like the scenario.
"""

import sys

from e2b import Sandbox

PATIENCE = 600


def told(what: str, holds: bool) -> None:
    """Print what is as it should be; end at what is not."""
    if not holds:
        sys.exit(f"not as documented: {what}")
    print(what, flush=True)


def boot_id(sandbox: Sandbox) -> str:
    """Return what the guest's kernel calls this boot of it."""
    return sandbox.commands.run("cat /proc/sys/kernel/random/boot_id").stdout


def processes(sandbox: Sandbox) -> list[str]:
    """Return what runs."""
    return [each.cmd for each in sandbox.commands.list(request_timeout=PATIENCE)]


first = Sandbox.create("disked", timeout=3600, request_timeout=PATIENCE)
first.files.write("/home/user/notes.txt", "kept")
first.commands.run("sleep 3600", background=True)
before = boot_id(first)
snapshot = first.create_snapshot(mode="filesystem", request_timeout=PATIENCE)
# It runs on, and writes to its disk.
first.files.write("/home/user/notes.txt", "later")
told("runs on", first.commands.run("sync").exit_code == 0 and len(processes(first)) == 1)
told("paused", first.pause(mode="filesystem", request_timeout=PATIENCE))
told("gone", first.kill(request_timeout=PATIENCE))

# A boot: what takes long here.
sandbox = Sandbox.create(snapshot.snapshot_id, timeout=3600, request_timeout=PATIENCE)
told("file", sandbox.files.read("/home/user/notes.txt") == "kept")
told("boot", boot_id(sandbox) != before)
told("processes", processes(sandbox) == [])
told("command", sandbox.commands.run("hostname && id -un").exit_code == 0)
told("forgotten", Sandbox.delete_snapshot(snapshot.snapshot_id))

# It is a sandbox as any: its memory can be kept.
sandbox.files.write("/home/user/more.txt", "more")
sandbox.commands.run("sleep 3600", background=True)
told("paused with memory", sandbox.pause(request_timeout=PATIENCE))
sandbox.connect(request_timeout=PATIENCE)
told("memory", len(processes(sandbox)) == 1)
told("files", sandbox.files.read("/home/user/more.txt") == "more")
told("kill", sandbox.kill(request_timeout=PATIENCE))
