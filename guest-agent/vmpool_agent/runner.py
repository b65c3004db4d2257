"""Runner: one run of source in a fork of the warm interpreter.

The source runs as `__main__`; a last expression's value, open figures and an exception are
reported beside what it prints.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import fcntl
import io
import json
import linecache
import os
import site
import socket
import sys
import sysconfig
import threading
import types
from typing import TYPE_CHECKING, Any

from vmpool_agent import display, failure, generators, spawn
from vmpool_agent.session import OperationError
from vmpool_agent.system import Account

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmpool_agent.system import System

_WRITTEN = (1, 2, spawn.REPORT)
_FILE = "<code>"


def serve(system: System, warm: generators.States) -> int:
    """Rehearse a run, then say so on descriptor 4 and run what comes there; returns its code.

    From a fresh fork, whose 0 to 3 are already those of the run.

    Args:
        warm: Where the warm interpreter's generators stand; this fork's do no longer.

    Raises:
        OperationError: The working directory is missing or closed to the account.
    """
    _open_streams()
    with _aside():
        _rehearse(system, warm)
    return serve_at_once(system, warm)


def serve_at_once(system: System, warm: generators.States) -> int:
    """As `serve`, for a request that waits already: a rehearsal would only be in its way."""
    with contextlib.suppress(OSError):
        system.unprotect()
    control = socket.socket(fileno=spawn.CONTROL)
    _open_streams()
    _clear_environment()
    ready = {"pid": os.getpid(), "generators": generators.names()}
    control.send(json.dumps(ready).encode("ascii"))
    request = _receive(control)
    if request is None:
        return 0  # the agent wants us no longer
    return _finish(_run(system, request, warm))


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """Write into a pipe that ends here, for the time of a block."""
    kept = [(fd, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, spawn.CONTROL)) for fd in _WRITTEN]
    reading, writing = os.pipe()
    for fd in _WRITTEN:
        os.dup2(writing, fd, inheritable=fd < spawn.REPORT)
    try:
        yield
    finally:
        for fd, copy in kept:
            os.dup2(copy, fd, inheritable=fd < spawn.REPORT)
            os.close(copy)
        os.close(reading)
        os.close(writing)


def _rehearse(system: System, warm: generators.States) -> None:
    """Do all that a run does, from its request to its output: its first touch is then not ours."""
    _clear_environment()
    us = Account("root", os.getuid(), os.getgid(), tuple(os.getgroups()), "/")
    environment = spawn.environment(us, {"VMPOOL_SANDBOX_ID": "", "VMPOOL_TEMPLATE": ""})
    rng = {"epoch": 0, "seed": None, "preserve": False}
    request = {
        "source": "print(6 * 7)",
        "account": us,
        "env": environment,
        "cwd": None,
        "rng": rng,
    }
    agent, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with agent:
        agent.send(json.dumps(request).encode("ascii"))
    received = _receive(ours)
    assert received is not None
    _run(system, received, warm)


def _clear_environment() -> None:
    os.environ.clear()
    os.environ["MPLBACKEND"] = "Agg"


def _receive(control: socket.socket) -> dict[str, Any] | None:
    """Return the request that comes over a connection, `None` at its end; closes it.

    With it come, each where there is one, a file that holds it and the run's stdin.
    """
    with control:
        document, descriptors, _, _ = socket.recv_fds(control, spawn.PACKET, 2)
    if not document:
        return None
    if document == spawn.ENCLOSED:
        file = descriptors.pop(0)
        document = os.pread(file, os.fstat(file).st_size, 0)
        os.close(file)
    for stdin in descriptors:
        os.dup2(stdin, 0)
        os.close(stdin)
    request: dict[str, Any] = json.loads(document)
    return request


def _run(system: System, request: dict[str, Any], warm: generators.States) -> int:
    generators.reseed(request["rng"], warm)
    name, uid, gid, groups, home = request["account"]
    account = Account(name, uid, gid, tuple(groups), home)
    os.environ.update(request["env"])
    spawn.enter(system, spawn.Launch(account, {}, request["cwd"]))
    _set_path(home)
    if "source" not in request:
        return _serve_context()
    spawn.tell({"type": "started"})
    return _exit_code(request["source"])


def _serve_context() -> int:
    """Be the interpreter of a context until the agent wants it no longer; return the exit code.

    Raises:
        OperationError: `language_unavailable`: the image has no IPython.
    """
    try:
        from vmpool_agent import notebook  # noqa: PLC0415 the image may have no IPython
    except ModuleNotFoundError as err:
        missing = (err.name or "").partition(".")[0]
        raise OperationError(
            "language_unavailable", f"no contexts of Python here: the image has no {missing}"
        ) from err
    return notebook.serve()


def _open_streams() -> None:
    """Make stdin, stdout and stderr anew over the pipes; lines are flushed as they end."""
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(
            io.BufferedWriter(io.FileIO(fd, "w", closefd=False)),
            "utf-8",
            errors,
            line_buffering=True,
        )
        for fd, errors in ((1, "surrogateescape"), (2, "backslashreplace"))
    )


def _set_path(home: str) -> None:
    """Find what `python -c` would find: the working directory's modules and the account's."""
    sys.argv = [""]
    kept = [path for path in sys.path if path and not path.endswith("agent.pyz")]
    sys.path[:] = ["", *kept]
    version = sysconfig.get_python_version()
    packages = os.path.join(home, ".local", "lib", f"python{version}", "site-packages")  # noqa: PTH118
    if os.path.isdir(packages):  # noqa: PTH112
        site.addsitedir(packages)


def _exit_code(source: str) -> int:
    """Run the source; return the exit code that Python would have given."""
    try:
        _run_as_main(source)
    except SystemExit as err:
        return _code_of(err)
    except BaseException as err:  # noqa: BLE001 it is the code's, and told to the caller
        spawn.tell({"type": "raised", **failure.describe(err, _is_ours)})
        return 1
    return 0


def _run_as_main(source: str) -> None:
    lines = source.splitlines(keepends=True)
    linecache.cache[_FILE] = (len(source), None, lines, _FILE)
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    tree = ast.parse(source, _FILE)
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        tree.body.pop()
    exec(compile(tree, _FILE, "exec"), main.__dict__)  # noqa: S102 it is what we are for
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), _FILE, "eval"), main.__dict__)  # noqa: S307
        if value is not None:
            _show(display.bundle(value), is_main=True)
    for bundle in display.figures():
        _show(bundle, is_main=False)


def _show(mime: dict[str, str], *, is_main: bool) -> None:
    # What was printed before comes before.
    sys.stdout.flush()
    sys.stderr.flush()
    spawn.tell({"type": "result", "mime": mime, "is_main": is_main})


def _is_ours(filename: str) -> bool:
    return filename in (__file__, ast.__file__)


def _code_of(err: SystemExit) -> int:
    if err.code is None:
        return 0
    if isinstance(err.code, int):
        return err.code & 0xFF
    print(err.code, file=sys.stderr)
    return 1


def _finish(code: int) -> int:
    """Do what an interpreter does at its end, but for tearing itself down."""
    for step in (getattr(threading, "_shutdown", None), getattr(atexit, "_run_exitfuncs", None)):
        if step is not None:
            step()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 120  # as Python, when what was printed cannot be written
    return code
