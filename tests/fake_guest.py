"""The real agent as an ordinary process on a Unix socket, on a machine that it does not change.

    python -m tests.fake_guest SOCKET [--home DIR] [--user ACCOUNT] [--warm-up SCRIPT]
        [--lie WHAT] [--ignore OPERATION] [--recorded PID]

It serves one connection at a time, again and again, like QEMU's character device, and ends on
SIGTERM. Needs no root; `user` in the guest is the account that it runs as (or `--user`).

A guest that lies says of one thing that it took when it did not; `silence` never answers, `panic`
ends with last words when it is first connected to, `reset` hangs up on its first requests,
`metadata` passes over those of files as agents did that knew of none. One that is to be recorded by
the process PID goes on only when it is, and ends when that process is gone before.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "guest-agent"))

from vmpool_agent.machine import Machine
from vmpool_agent.system import Account, acting_as, become_subreaper, oom_kills
from vmpool_agent.transports import Listener

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmpool_agent.session import Channel, Operation

DEFAULT_USER = "user"
KEY = bytes(range(32))
"""What hosts in tests present, so that one after the other is obeyed."""


@contextlib.contextmanager
def running(directory: Path, *options: str) -> Iterator[Path]:
    """Run a fake guest for the length of a block; yields the path of its agent's socket.

    Args:
        directory: Holds the socket and, as `home`, the home of `user`.
        options: More of the command line.
    """
    path = directory / "agent.sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fake_guest", str(path), *options],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process.stdout as ready:
        try:
            assert ready.readline() == b"ready\n"
            yield path
        finally:
            process.terminate()
            assert process.wait(90) == 0


class FakeSystem:
    """A machine that remembers what it was told, and is not changed by it.

    Args:
        home: The home of `user`.
        account: The account of this machine that stands for `user`.
    """

    def __init__(self, home: Path, account: str | None) -> None:
        self._home = home
        self._entry = pwd.getpwnam(account) if account else pwd.getpwuid(os.getuid())
        self._clock_offset_ns = 0

    def account(self, name: str) -> Account:
        if name == "root" and os.getuid() == 0:
            return Account("root", 0, 0, (0,), str(self._home))
        if name != DEFAULT_USER:
            raise KeyError(name)
        entry = self._entry
        groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
        return Account(DEFAULT_USER, entry.pw_uid, entry.pw_gid, groups, str(self._home))

    def become(self, account: Account) -> None:
        if os.getuid() == 0:
            os.setgroups(account.groups)
            os.setresgid(account.gid, account.gid, account.gid)
            os.setresuid(account.uid, account.uid, account.uid)

    def acting_as(self, account: Account) -> contextlib.AbstractContextManager[None]:
        return acting_as(account) if os.getuid() == 0 else contextlib.nullcontext()

    def protect(self) -> None:
        """Leave the killer's choice to the machine."""

    def unprotect(self) -> None:
        """Leave the killer's choice to the machine."""

    def oom_kills(self) -> int:
        return oom_kills()

    def cid(self) -> int | None:
        return None

    def set_clock(self, clock_ns: int) -> None:
        self._clock_offset_ns = clock_ns - time.time_ns()

    def clock(self) -> int:
        return time.time_ns() + self._clock_offset_ns

    def add_entropy(self, seed: bytes) -> int:
        return len(seed) * 8

    def set_hostname(self, name: str) -> str:
        return name

    def set_machine_id(self, machine_id: str) -> str:
        return machine_id

    def renew_boot_id(self) -> str:
        return str(uuid.uuid4())

    def settle(self) -> None:
        """Leave the machine's caches alone."""

    def clear_free_memory(self) -> None:
        """Leave the machine's memory alone."""


class LyingSystem(FakeSystem):
    """A machine on which one thing does not take.

    Args:
        lie: Which one; `clock-later` from the second time on that the clock is read, and
            `clock-at-first` until then.
    """

    def __init__(self, home: Path, account: str | None, lie: str) -> None:
        super().__init__(home, account)
        self._lie = lie
        self._clock_was_read = False

    def clock(self) -> int:
        lies = {"clock", "clock-later" if self._clock_was_read else "clock-at-first"}
        off = self._lie in lies
        self._clock_was_read = True
        return super().clock() + off * 3600 * 10**9

    def add_entropy(self, seed: bytes) -> int:
        return 0 if self._lie == "entropy" else super().add_entropy(seed)

    def set_hostname(self, name: str) -> str:
        return "localhost" if self._lie == "hostname" else name

    def set_machine_id(self, machine_id: str) -> str:
        return "0" * 32 if self._lie == "machine-id" else machine_id

    def renew_boot_id(self) -> str:
        return "" if self._lie == "boot-id" else super().renew_boot_id()


RESETS = 2
LIES = (
    "boot-id",
    "clock",
    "clock-at-first",
    "clock-later",
    "entropy",
    "generators",
    "hostname",
    "machine-id",
    "metadata",
    "reset",
    "rng",
)


class LyingMachine(Machine):
    """A guest that leaves an operation unanswered, or its interpreter's generators as they were."""

    def __init__(self, system: FakeSystem, warm_up: str, *, lie: str, ignored: str) -> None:
        super().__init__(system, warm_up)
        self._ignored = ignored
        self._lie = lie
        self._resets = RESETS if lie == "reset" else 0
        if lie == "generators":
            self.interpreter.tell_generators = (  # type: ignore[method-assign]
                lambda answer: answer([])
            )

    def start(self, channel: Channel, request: dict[str, Any]) -> Operation | None:
        if request.get("op") == self._ignored:
            return None
        if self._lie == "rng" and request.get("op") == "identify":
            request["rng"] = "unique" if request["rng"] != "unique" else "preserve"
        if self._lie == "metadata":
            request.pop("metadata", None)
        if self._resets:
            self._resets -= 1
            channel._session._hang_up()
            return None
        return super().start(channel, request)


def wait_for_record(directory: Path, manager: int) -> None:
    """Return once this process is on record; end when its manager has died before."""
    while not (directory / "machine.json").exists():
        if os.getppid() != manager:
            sys.exit(1)
        time.sleep(0.001)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("socket", type=Path)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--user")
    parser.add_argument("--warm-up", default="")
    parser.add_argument("--lie", default="", choices=("", "silence", "panic", *LIES))
    parser.add_argument("--ignore", default="")
    parser.add_argument("--recorded", type=int)
    options = parser.parse_args()
    if options.recorded is not None:
        wait_for_record(options.socket.parent, options.recorded)
    home = options.home or options.socket.parent / "home"
    home.mkdir(exist_ok=True)
    become_subreaper()
    system = LyingSystem(home.resolve(), options.user, options.lie)
    machine = LyingMachine(system, options.warm_up, lie=options.lie, ignored=options.ignore)
    machine.interpreter.start()
    with contextlib.suppress(FileNotFoundError):
        options.socket.unlink()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(options.socket))
    listening.listen()
    if options.lie == "silence":
        signal.pause()
    if options.lie == "panic":
        with listening.accept()[0]:
            sys.exit("\x1b[1mKernel panic - not syncing\x1b[0m: no working init\r\n\a\n")
    print("ready", flush=True)
    listener = Listener(machine.reactor, listening, machine.service, 1)
    machine.reactor.run()
    listener.close()
    options.socket.unlink(missing_ok=True)
    _see_children_end()


def _see_children_end() -> None:
    """Let the warm interpreter and its spares see that the agent is gone, and reap them."""
    signal.set_wakeup_fd(-1)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    signal.alarm(60)  # which ends us, and is told by our exit code
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


if __name__ == "__main__":
    main()
