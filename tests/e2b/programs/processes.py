"""Commands and terminals, as a program written for E2B uses them; prints what it went through."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from e2b import (
    AuthenticationException,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    PtySize,
    Sandbox,
    TimeoutException,
)


def error_of(kind: Any, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Return the error that a call must end with."""
    try:
        call(*arguments, **named)
    except kind as error:
        return error
    raise AssertionError(f"{call} went well")


def commands(sandbox: Sandbox) -> None:
    """What runs in the foreground tells all that it writes, and how it ended."""
    out: list[str] = []
    err: list[str] = []
    result = sandbox.commands.run(
        "echo $WORD $E2B_SANDBOX; pwd; whoami; echo oops >&2",
        envs={"WORD": "said"},
        cwd="/tmp",
        on_stdout=out.append,
        on_stderr=err.append,
    )
    assert result.stdout == "said true\n/tmp\nuser\n", result
    assert (result.stderr, result.exit_code, result.error) == ("oops\n", 0, None)
    assert ("".join(out), "".join(err)) == (result.stdout, result.stderr)
    assert sandbox.commands.run("pwd; cat").stdout == "/home/user\n"
    assert sandbox.commands.run("id -un; pwd", user="root").stdout == "root\n/root\n"
    failed = error_of(CommandExitException, sandbox.commands.run, "echo before; exit 3")
    assert (failed.exit_code, failed.stdout, failed.error) == (3, "before\n", "exit status 3")
    error_of(AuthenticationException, sandbox.commands.run, "true", user="nobody-here")
    error_of(InvalidArgumentException, sandbox.commands.run, "true", cwd="/no/where")


def background(sandbox: Sandbox) -> None:
    """What runs in the background is listed, followed by others and killed."""
    handle = sandbox.commands.run("echo up; sleep 1000", background=True)
    listed = {process.pid: process for process in sandbox.commands.list()}
    assert listed[handle.pid].cmd == "/bin/bash"
    assert listed[handle.pid].args == ["-l", "-c", "echo up; sleep 1000"]
    other = sandbox.commands.connect(handle.pid)
    handle.disconnect()
    assert sandbox.commands.kill(handle.pid)
    error_of(CommandExitException, sandbox.commands.run, f"kill -0 {handle.pid}")
    killed = error_of(CommandExitException, other.wait)
    assert (killed.exit_code, killed.error) == (-1, "signal: killed")
    assert not sandbox.commands.kill(handle.pid)
    error_of(NotFoundException, sandbox.commands.connect, 4_000_000)


def stdin(sandbox: Sandbox) -> None:
    """Input goes in piece by piece, and as a stream, and has an end."""
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.commands.send_stdin(handle.pid, "one\n")
    if hasattr(sandbox.commands, "stream_input"):

        def more() -> Iterator[str]:
            yield "two\n"
            yield "three\n"

        sandbox.commands.stream_input(handle.pid, more())
    else:
        sandbox.commands.send_stdin(handle.pid, "two\nthree\n")
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "one\ntwo\nthree\n"


def terminal(sandbox: Sandbox) -> None:
    """A terminal is typed at, resized and left."""
    handle = sandbox.pty.create(PtySize(rows=10, cols=60), envs={"WORD": "said"}, timeout=240)
    seen: list[bytes] = []
    typed = iter((b"echo $WORD $TERM; tput cols\n", b"exit 0\n"))
    sandbox.pty.resize(handle.pid, PtySize(rows=20, cols=77))
    sandbox.pty.send_stdin(handle.pid, next(typed))

    def look(data: bytes) -> None:
        seen.append(data)
        if b"\r\n77\r\n" in b"".join(seen):
            for line in typed:
                sandbox.pty.send_stdin(handle.pid, line)

    assert handle.wait(on_pty=look).exit_code == 0
    assert b"said xterm-256color\r\n" in b"".join(seen), seen


def time_is_up(sandbox: Sandbox) -> None:
    """A command that takes too long is killed."""
    line = "exec -a overdue sleep 1000"
    error_of(TimeoutException, sandbox.commands.run, line, timeout=2)
    deadline = time.monotonic() + 240  # the client keeps the time by itself, too, and may be first
    while any(line in each.args for each in sandbox.commands.list()):
        assert time.monotonic() < deadline, f"it goes on, among {sandbox.commands.list()}"
        time.sleep(0.1)


def flood(sandbox: Sandbox) -> None:
    """Twenty megabytes come through whole."""
    result = sandbox.commands.run("head -c 20000000 /dev/zero | tr '\\0' x", timeout=240)
    assert result.stdout == "x" * 20_000_000, len(result.stdout)


def killed(sandbox: Sandbox) -> None:
    """Who follows a command of a sandbox that is killed is told so."""
    handle = sandbox.commands.run("echo up; sleep 1000", background=True)
    events = iter(handle)
    assert (first := next(events))[0] == "up\n", first
    threading.Thread(target=sandbox.kill).start()
    error = error_of(TimeoutException, list, events)
    assert "was killed or reached its end of life" in str(error), error
    assert not sandbox.is_running()


def main() -> None:
    """Go through all of it in one sandbox."""
    sandbox = Sandbox.create(timeout=600)
    try:
        for step in (commands, background, stdin, terminal, time_is_up, flood, killed):
            step(sandbox)
            print(step.__name__.replace("_", " "), flush=True)
    finally:
        sandbox.kill()


if __name__ == "__main__":
    main()
