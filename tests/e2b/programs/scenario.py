"""What E2B's documentation shows, in one program: it prints a line for each thing that works.

    python scenario.py [code]

Nothing in it knows where it is pointed. It ends at the first thing that is not as documented.
"""

import sys
import time

from e2b import CommandExitException, Sandbox
from e2b.sandbox.commands.command_handle import PtySize


def check(what, holds):
    """Say that something works, or end."""
    assert holds, what
    print(what, flush=True)


def commands(sandbox):
    """Commands: to their end, as they go, and gone on with."""
    said = sandbox.commands.run("echo hi; whoami; pwd").stdout
    check("command", said == "hi\nuser\n/home/user\n")
    try:
        sandbox.commands.run("echo no >&2; exit 3")
    except CommandExitException as failed:
        check("exit code", (failed.exit_code, failed.stderr) == (3, "no\n"))
    check("environment", sandbox.commands.run("echo $A$B", envs={"B": "2"}).stdout == "12\n")
    heard = []
    sandbox.commands.run("for i in 1 2 3; do echo $i; sleep 0.1; done", on_stdout=heard.append)
    check("stream", "".join(heard) == "1\n2\n3\n")
    process = sandbox.commands.run("cat", background=True, stdin=True)
    check("list", process.pid in [one.pid for one in sandbox.commands.list()])
    again = sandbox.commands.connect(process.pid)
    sandbox.commands.send_stdin(process.pid, "said\n")
    heard = next(text for text, _, _ in again if text)
    check("attach", heard == "said\n")
    check("signal", sandbox.commands.kill(process.pid))
    check("gone", not sandbox.commands.kill(process.pid))


def files(sandbox):
    """Files: written, read, listed, and watched."""
    watch = sandbox.files.watch_dir("/home/user")
    sandbox.files.write("/home/user/a.txt", "text ü")
    check("write", sandbox.files.read("/home/user/a.txt") == "text ü")
    sandbox.files.write("deep/b.bin", b"\x00\xff" * 70000)
    check("bytes", bytes(sandbox.files.read("deep/b.bin", format="bytes")) == b"\x00\xff" * 70000)
    names = [entry.name for entry in sandbox.files.list("/home/user")]
    check("files", {"a.txt", "deep"} <= set(names))
    sandbox.files.rename("a.txt", "c.txt")
    check("rename", not sandbox.files.exists("a.txt"))
    sandbox.files.remove("deep")
    check("remove", not sandbox.files.exists("deep"))
    events = [(event.type.value, event.name) for event in watch.get_new_events()]
    check("watch", ("create", "a.txt") in events and ("rename", "a.txt") in events)
    watch.stop()


def terminal(sandbox):
    """A terminal, of some size."""
    shell = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=240)
    sandbox.pty.resize(shell.pid, PtySize(rows=30, cols=100))
    sandbox.pty.send_stdin(shell.pid, b"stty size; echo 4$((1+1)); exit 0\n")
    shown = b""
    for _, _, data in shell:
        shown += data or b""
    check("terminal", b"30 100" in shown and b"42" in shown)


def sleep(sandbox):
    """Paused and resumed, as it was."""
    sandbox.commands.run("echo here > /dev/shm/memory")
    sandbox.commands.run("sleep 1000", background=True)
    check("paused", sandbox.pause())
    check("paused once", not sandbox.pause())
    check("state", sandbox.get_info().state.value == "paused")
    again = Sandbox.connect(sandbox.sandbox_id)
    check("resume", again.commands.run("cat /dev/shm/memory").stdout == "here\n")
    check("same token", sandbox.commands.run("cat c.txt").stdout == "text ü")
    check("same processes", "sleep" in [one.args[-1][:5] for one in sandbox.commands.list()])


def children(sandbox):
    """Forked, each going on by itself; and kept, to be gone on from."""
    made = sandbox.fork(count=2, timeout=300)
    for number, child in enumerate(made):
        child.files.write("c.txt", str(number))
    check("fork", [child.files.read("c.txt") for child in made] == ["0", "1"])
    check("apart", sandbox.files.read("c.txt") == "text ü")
    kept = made[1].create_snapshot()
    made.append(Sandbox.create(kept.snapshot_id))
    check("snapshot", made[2].files.read("c.txt") == "1")
    check("forgotten", Sandbox.delete_snapshot(kept.snapshot_id))
    for child in made:
        child.kill()


def code():
    """Code that keeps its state, and a figure."""
    from e2b_code_interpreter import Sandbox as Interpreter  # noqa: PLC0415 -- not always there

    interpreter = Interpreter.create(timeout=300)
    interpreter.run_code("x = 20")
    check("code", interpreter.run_code("x + 22").text == "42")
    drawn = interpreter.run_code(
        "import matplotlib.pyplot as plt\nplt.plot([1, 2], [3, 4])\nplt.show()"
    )
    check("figure", drawn.error is None and drawn.results[0].png)
    interpreter.kill()


def end(sandbox):
    """Its time: set, and up."""
    check("running", sandbox.is_running())
    check("metadata", sandbox.get_info().metadata == {"for": "scenario"})
    sandbox.set_timeout(1)
    deadline = time.monotonic() + 240
    while sandbox.is_running() and time.monotonic() < deadline:
        time.sleep(0.1)
    check("timeout", not sandbox.is_running())
    check("kill", not sandbox.kill())


def main():
    """Do all of it."""
    sandbox = Sandbox.create(timeout=600, envs={"A": "1"}, metadata={"for": "scenario"})
    for part in (commands, files, terminal, sleep, children):
        part(sandbox)
    if "code" in sys.argv:
        code()
    end(sandbox)


main()
