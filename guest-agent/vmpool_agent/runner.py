"""Runner: one run of source in a fork of the warm interpreter.

The source runs as `__main__`; a last expression's value, open figures and an exception are
reported beside what it prints.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import io
import json
import linecache
import os
import site
import socket
import sys
import sysconfig
import threading
import traceback
import types
from typing import TYPE_CHECKING, Any

from vmpool_agent import display, generators, spawn
from vmpool_agent.system import Account

if TYPE_CHECKING:
    from vmpool_agent.system import System

_FILE = "<code>"
_NAME_LIMIT = 256
_TEXT_LIMIT = 32 * 1024
"""Characters of an exception's text, each 12 bytes of JSON at worst: both fit one message."""


def serve(system: System) -> int:
    """Make ready, say so on descriptor 3, wait there for a request and run it; returns its code.

    From a fresh fork. The request comes with what become descriptors 0 to 3, and as a fifth with a
    file that holds it where it is too large for a packet.

    Raises:
        OperationError: The working directory is missing or closed to the account.
    """
    with contextlib.suppress(OSError):
        system.unprotect()
    os.environ.clear()
    os.environ["MPLBACKEND"] = "Agg"
    _rehearse()
    control = socket.socket(fileno=spawn.REPORT)
    ready = {"pid": os.getpid(), "generators": generators.names()}
    control.send(json.dumps(ready).encode("ascii"))
    document, descriptors, _, _ = socket.recv_fds(control, spawn.PACKET, spawn.REPORT + 2)
    if not descriptors:
        return 0  # the agent wants us no longer
    control.detach()
    for target, fd in enumerate(descriptors[: spawn.REPORT + 1]):
        os.dup2(fd, target, inheritable=target < spawn.REPORT)
        os.close(fd)
    for fd in descriptors[spawn.REPORT + 1 :]:
        document = os.pread(fd, os.fstat(fd).st_size, 0)
        os.close(fd)
    return _run(system, json.loads(document))


def _rehearse() -> None:
    """Do what every run does, over a pipe that ends here: a run's first is then not ours."""
    reading, writing = os.pipe()
    for target, fd in enumerate((reading, writing, writing)):
        os.dup2(fd, target)
    os.close(reading)
    os.close(writing)
    generators.reseed()
    _open_streams()
    _run_as_main("print(6 * 7)")


def _run(system: System, request: dict[str, Any]) -> int:
    generators.reseed()
    name, uid, gid, groups, home = request["account"]
    account = Account(name, uid, gid, tuple(groups), home)
    os.environ.update(request["env"])
    spawn.enter(system, spawn.Launch(account, {}, request["cwd"]))
    _set_path(home)
    spawn.tell({"type": "started"})
    code = _exit_code(request["source"])
    return _finish(code)


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
    sys.path[:] = ["", *(path for path in sys.path if not path.endswith("agent.pyz"))]
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
        spawn.tell({"type": "raised", **_describe(err)})
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
            _show(display.bundle(value))
    for bundle in display.figures():
        _show(bundle)


def _show(mime: dict[str, str]) -> None:
    # What was printed before comes before.
    sys.stdout.flush()
    sys.stderr.flush()
    spawn.tell({"type": "result", "mime": mime})


def _describe(err: BaseException) -> dict[str, Any]:
    trace = err.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    if isinstance(err, SyntaxError) and err.filename == _FILE:
        trace = None
    try:
        value = str(err)
    except Exception:  # noqa: BLE001 it is the exception's own code
        value = "<its str raised>"
    text = "".join(traceback.format_exception(type(err), err.with_traceback(trace), trace))
    return {
        "name": display.clean(type(err).__name__[:_NAME_LIMIT]),
        "value": display.clean(value[:_TEXT_LIMIT]),
        "traceback": display.clean(text[-_TEXT_LIMIT:]),
    }


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
