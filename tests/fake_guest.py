"""The real agent as an ordinary process on a Unix socket, on a machine that it does not change.

    python -m tests.fake_guest SOCKET [--home DIR] [--user ACCOUNT] [--warm-up SCRIPT]

It serves one connection at a time, again and again, like QEMU's character device, and ends on
SIGTERM. Needs no root; `user` in the guest is the account that it runs as (or `--user`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1] / "guest-agent"))

from vmpool_agent.machine import Machine
from vmpool_agent.system import Account, become_subreaper, oom_kills
from vmpool_agent.transports import Listener

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_USER = "user"


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
            assert process.wait(10) == 0


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

    def protect(self) -> None:
        """Leave the killer's choice to the machine."""

    def unprotect(self) -> None:
        """Leave the killer's choice to the machine."""

    def oom_kills(self) -> int:
        return oom_kills()

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


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("socket", type=Path)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--user")
    parser.add_argument("--warm-up", default="")
    options = parser.parse_args()
    home = options.home or options.socket.parent / "home"
    home.mkdir(exist_ok=True)
    become_subreaper()
    machine = Machine(FakeSystem(home.resolve(), options.user), options.warm_up)
    machine.interpreter.start()
    with contextlib.suppress(FileNotFoundError):
        options.socket.unlink()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(options.socket))
    listening.listen()
    print("ready", flush=True)
    listener = Listener(machine.reactor, listening, machine.start, 1)
    machine.reactor.run()
    listener.close()
    options.socket.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
