"""Pauses that keep the files alone, and what wakes from them.

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


sandbox = Sandbox.create(
    "disked",
    timeout=3600,
    request_timeout=PATIENCE,
    lifecycle={"on_timeout": "pause", "auto_resume": True},
)
sandbox.files.write("/home/user/notes.txt", "kept")
sandbox.commands.run("sleep 3600", background=True)


def boot_id() -> str:
    """Return what the guest's kernel calls this boot of it."""
    return sandbox.commands.run("cat /proc/sys/kernel/random/boot_id").stdout


def processes() -> list[str]:
    """Return what runs."""
    return [each.cmd for each in sandbox.commands.list(request_timeout=PATIENCE)]


first = boot_id()
told("paused", sandbox.pause(mode="filesystem", request_timeout=PATIENCE))
# Whatever is asked of it wakes it.
content = sandbox.files.read("/home/user/notes.txt", request_timeout=PATIENCE)
told("file", content == "kept")
told("boot", boot_id() != first)
told("processes", processes() == [])
told("command", sandbox.commands.run("hostname && id -un").exit_code == 0)

# It is a sandbox as any: its memory can be kept.
sandbox.files.write("/home/user/more.txt", "more")
sandbox.commands.run("sleep 3600", background=True)
told("paused with memory", sandbox.pause(request_timeout=PATIENCE))
sandbox.connect(request_timeout=PATIENCE)
told("memory", len(processes()) == 1)
told("files", sandbox.files.read("/home/user/more.txt") == "more")
told("kill", sandbox.kill(request_timeout=PATIENCE))
