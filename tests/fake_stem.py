"""Stem: a process that fake guests are forked from, with all that they import in place.

A guest that is forked costs a tenth of one that is started; soaks make them by the thousand. Stems
end with the process that started them, and their guests live on, as fake guests do.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

ROOM = 256
"""Bytes of a command line: who looks for guests finds them by their socket in it."""

_LIMIT_BYTES = 4096


class Stem:
    """The process, for who has guests forked; it is started when the first one is wanted."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._asking = threading.Lock()
        self.pid = 0

    def fork(self, arguments: tuple[str, ...], log: Path) -> int:
        """Fork a guest and return its process id. Blocks, for some milliseconds.

        Args:
            arguments: Of `tests.fake_guest`; `{stem}` in one stands for the stem's process id.
            log: Where it writes.
        """
        with self._asking:
            ours = self._socket or self._start()
            words = [each.replace("{stem}", str(self.pid)) for each in arguments]
            ours.send(json.dumps([os.fspath(log), *words]).encode())
            return int(ours.recv(_LIMIT_BYTES))

    def close(self) -> None:
        """End the process, when no guest of its is left. *Idempotent.*"""
        if self._socket is not None:
            self._socket.close()
            os.waitpid(self.pid, 0)
            self._socket = None

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.fake_stem", str(theirs.fileno()), "." * ROOM],
                cwd=Path(__file__).parents[1],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self.pid = process.pid
        process.returncode = 0  # not waited for: it ends after us
        self._socket = ours
        return ours


def _serve(asked: socket.socket) -> None:
    """Fork a guest for each message, until whoever sends them is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    while message := asked.recv(_LIMIT_BYTES):
        log, *arguments = json.loads(message)
        pid = os.fork()
        if pid == 0:
            asked.close()
            _become(Path(log), arguments)
        asked.send(str(pid).encode())


def _become(log: Path, arguments: list[str]) -> None:
    """Be a fake guest, and end as one."""
    from tests import fake_guest  # noqa: PLC0415 -- was imported by the stem

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    with log.open("ab") as file:
        for fd in (1, 2):
            os.dup2(file.fileno(), fd)
    sys.argv = ["fake_guest", *arguments]
    _call_itself(arguments)
    code = 0
    try:
        fake_guest.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def _call_itself(arguments: list[str]) -> None:
    """Write over the command line that the kernel shows of this process."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, proc_pid_stat(5)
    line = b"fake_guest\0" + b"\0".join(map(os.fsencode, arguments))
    ctypes.memmove(start, line[: end - start].ljust(end - start, b"\0"), end - start)


def main() -> None:
    """Import what guests are made of, and fork them."""
    from tests import fake_guest  # noqa: F401, PLC0415 -- here, and in nobody who only asks

    with socket.socket(fileno=int(sys.argv[1])) as asked:
        _serve(asked)


if __name__ == "__main__":
    main()
