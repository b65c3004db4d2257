"""Spawn: children of the agent, from fork to the program or function that they run.

A child speaks through four descriptors: 0, 1 and 2, and on 3 a pipe for reports, one JSON object
a line. It starts a session and process group of its own, takes on an account, and holds nothing
else of the agent's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmpool_agent.system import Account, System

REPORT = 3
CONTROL = 4
"""A spare's own: where its request comes from."""
ENCLOSED = b" "
"""What is sent of a request that comes in a file; nothing at all would be the agent's end."""
FORK = b"f"
"""Asks the warm interpreter for a spare on the connection and pipes that come with it."""
FORK_AT_ONCE = b"o"
"""The same for a run that waits already: it is to make ready for nothing but that."""
COLLECT = b"c"
"""Asks it to collect garbage, and to say when it has."""
TAKEN = b"\n"
"""Answers a report of a context that says `wait`: what is written from now on goes after it."""
PACKET = 32 * 1024
"""Bytes of a request that goes to a spare in one packet; a larger one goes in a file."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OUT_OF_THE_WAY = 10
_NAME_SHOWN = 256
_AGENT_FILES = 8192  # 256 channels with four pipes each, and room
_CHILD_FILES = 1024  # what every Linux login starts with
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM)
"""What Python or the agent ignores, and a program it starts must not."""


class Launch(NamedTuple):
    """How a program or source is run."""

    account: Account
    env: dict[str, str]
    cwd: str | None


def environment(account: Account, extra: dict[str, str]) -> dict[str, str]:
    """Return an account's login environment with more on top."""
    return {
        "PATH": PATH,
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        **extra,
    }


def resolve(path: str, account: Account) -> str:
    """Return an absolute path: `~` is the account's home, and what is relative is relative to it.

    Raises:
        OperationError: The path holds a zero byte.
    """
    if "\0" in path:
        raise OperationError("bad_request", f"path {path!r} holds a zero byte")
    if path == "~" or path.startswith("~/"):
        path = path[2:]
    return os.path.normpath(os.path.join(account.home, path))  # noqa: PTH118


def fork(descriptors: Sequence[int], body: Callable[[], int]) -> int:
    """Run `body` in a child and return the child's process id.

    Args:
        descriptors: What become the child's 0, 1, 2, 3 and so on; the caller closes its own.
        body: Returns the exit code. An exception from it is the agent's fault, reported as such.
    """
    pid = os.fork()
    if not pid:
        be_child(descriptors, body)
    return pid


def be_child(descriptors: Sequence[int], body: Callable[[], int]) -> NoReturn:
    """Run `body` in a process that was just forked, as `fork` says, and end with it."""
    code = 127
    try:
        settle(descriptors)
        code = body()
    except OperationError as err:
        tell({"type": "error", "code": err.code, "message": str(err)})
    except BaseException as err:  # noqa: BLE001 the child's top: it must not return into the loop
        tell({"type": "error", "code": "internal", "message": f"{type(err).__name__}: {err}"})
    finally:
        os._exit(code)
    raise AssertionError("unreachable")


def widen_limits() -> None:
    """Let the agent hold as many descriptors as its channels may need."""
    _limit_files(_AGENT_FILES)


def settle(descriptors: Sequence[int]) -> None:
    """Put a new child on its own feet: descriptors, signals, session, umask."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    # First all out of the way, so that none is overwritten before it has been moved.
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY) for fd in descriptors]
    for target, fd in enumerate(moved):
        os.dup2(fd, target, inheritable=target < REPORT)
    close_others(len(moved))
    _limit_files(_CHILD_FILES)
    os.setsid()
    os.umask(0o022)


def _limit_files(most: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def close_others(lowest: int) -> None:
    """Close all descriptors from `lowest` on."""
    if sys.version_info >= (3, 10):  # noqa: UP036 the guest's Python; one system call there
        os.closerange(lowest, _AGENT_FILES)
        return
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 a child touches little
        if int(name) >= lowest:
            # One of them is the listing itself, already closed.
            with contextlib.suppress(OSError):
                os.close(int(name))


def tell(*values: dict[str, Any]) -> None:
    """Write reports, all at once; from the child."""
    told = "".join(f"{json.dumps(value, separators=(',', ':'))}\n" for value in values)
    line = memoryview(told.encode("ascii"))
    # A child whose report nobody reads any more is about to be killed.
    with contextlib.suppress(OSError):
        while line:
            line = line[os.write(REPORT, line) :]


def enter(system: System, launch: Launch) -> None:
    """Take on the account, its environment and the working directory; from the child.

    Raises:
        OperationError: The directory is missing or closed to the account.
    """
    system.become(launch.account)
    _change_directory(launch)


def _change_directory(launch: Launch) -> None:
    cwd = resolve(launch.cwd or "", launch.account)
    try:
        os.chdir(cwd)
    except (FileNotFoundError, NotADirectoryError) as err:
        raise OperationError("cwd_not_found", f"cwd '{launch.cwd or cwd}' does not exist") from err
    except OSError as err:
        raise OperationError("permission_denied", f"cwd '{cwd}': {err.strerror}") from err


def start(system: System, launch: Launch, argv: list[str], descriptors: Sequence[int]) -> int:
    """Start a program in a session of its own and return its process id.

    The agent takes on what the program is to have, and puts it off again. So the child needs no
    step of ours before it is the program, and none of the agent's memory is copied for it: for a
    fork alone the kernel writes as many page table entries as the agent has pages.

    Args:
        descriptors: What become the child's 0, 1 and 2; the caller closes its own.

    Raises:
        OperationError: It cannot be run.
    """
    os.umask(0o022)
    with system.acting_as(launch.account):
        try:
            _change_directory(launch)
            _limit_files(_CHILD_FILES)
            return _spawned(launch, argv, descriptors)
        finally:
            _limit_files(_AGENT_FILES)
            os.chdir("/")


def _spawned(launch: Launch, argv: list[str], descriptors: Sequence[int]) -> int:
    """Start the first of what the name may stand for, as execvp(3) finds it."""
    env = environment(launch.account, launch.env)
    name, refusal = argv[0], OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    for place in [""] if "/" in name else env["PATH"].split(":"):
        path = os.path.join(place, name)  # noqa: PTH118
        if not os.access(path, os.F_OK):
            continue  # spares a child that would find the same
        try:
            return os.posix_spawn(
                path,
                argv,
                env,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(descriptors)
                ],
                setsid=True,
                setsigdef=_IGNORED,
            )
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as err:
            refusal = err if refusal.errno == errno.ENOENT else refusal
    raise _refused(name, refusal) from refusal


def execute(system: System, launch: Launch, argv: list[str]) -> NoReturn:
    """Become a program; from the child.

    Raises:
        OperationError: It cannot be run.
    """
    with contextlib.suppress(OSError):
        system.unprotect()
    enter(system, launch)
    try:
        os.execvpe(argv[0], argv, environment(launch.account, launch.env))  # noqa: S606
    except OSError as err:
        raise _refused(argv[0], err) from err


def _refused(name: str, err: OSError) -> OperationError:
    code = {
        errno.ENOENT: "program_not_found",
        errno.ENOTDIR: "program_not_found",
        errno.EACCES: "permission_denied",
        errno.E2BIG: "argument_list_too_long",
        errno.EAGAIN: "no_resources",  # the account has as many processes as it may
        errno.ENOMEM: "no_resources",
    }.get(err.errno or 0, "program_not_executable")
    return OperationError(code, f"{name[:_NAME_SHOWN]!r}: {err.strerror}")
