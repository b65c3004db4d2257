"""Leftovers: what a test may not leave behind on the host.

A census lists what lives now: descriptors of this process, processes that descend from it, network
interfaces and namespaces, temporary files outside the test's own directory. Two of them tell what
came and stayed. It knows next to nothing of vmpool, so that it finds what vmpool forgets.

Other runs of tests, and servers, may be on the same machine. Processes carry the mark of their
run; temporary files, and the names of network namespaces (`tests/seclusion.py`), have a place for
each run; a server's network interface counts when its host's tag has been seen in a namespace's
name here.
"""

from __future__ import annotations

import gc
import os
import secrets
import select
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.seclusion import NAMES

MARK_NAME = "VMPOOL_TEST_RUN"
"""Environment variable that every process started by this test run inherits."""

MARK = secrets.token_hex(8)

SERVERS = "vmpool-"
"""What a server's interface and its namespaces are called by; the tag of its host follows."""

GRACE_SECONDS = 30.0
"""How long a killed process may take to disappear; an orphan's end is not ours to await."""

_tags: set[str] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """What lives at one moment, each thing under a key that is not used twice."""

    descriptors: frozenset[str]
    processes: frozenset[tuple[int, str]]
    links: frozenset[str]
    namespaces: frozenset[str]
    files: frozenset[str]

    @classmethod
    def take(cls) -> Census:
        """Count everything now."""
        namespaces = _entries(NAMES)
        return cls(
            descriptors=_descriptors(),
            processes=_processes(),
            links=_links(namespaces),
            namespaces=namespaces,
            files=_entries(Path(tempfile.gettempdir())),
        )


def since(before: Census) -> list[str]:
    """Return what came since `before` and is still there, one line each; end such processes.

    Descriptors that only garbage still holds, and processes that are just dying, do not count.
    """
    now = Census.take()
    if now.descriptors - before.descriptors:
        gc.collect()
        now = Census.take()
    processes = [entry for entry in now.processes - before.processes if not _ends(entry[0])]
    for pid, _ in processes:
        os.kill(pid, signal.SIGKILL)
    return sorted(
        [f"descriptor {name}" for name in now.descriptors - before.descriptors]
        + [f"process {pid}: {command}" for pid, command in processes]
        + [f"network interface {name}" for name in now.links - before.links]
        + [f"network namespace {name}" for name in now.namespaces - before.namespaces]
        + [f"file {name} in {tempfile.gettempdir()}" for name in now.files - before.files]
    )


def _descriptors() -> frozenset[str]:
    names = set()
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208 - iterdir's own descriptor is not listed
        try:
            names.add(f"{fd} -> {os.readlink(f'/proc/self/fd/{fd}')}")  # noqa: PTH115
        except FileNotFoundError:
            continue  # the one that listed the directory
    return frozenset(names)


def _processes() -> frozenset[tuple[int, str]]:
    """Return children of this process and all that carry its mark, whoever their parent is now."""
    mine = str(os.getpid())
    mark = f"{MARK_NAME}={MARK}".encode()
    found = set()
    for directory in Path("/proc").iterdir():
        if not directory.name.isdecimal() or directory.name == mine:
            continue
        try:
            parent = (directory / "stat").read_text().rpartition(")")[2].split()[1]
            if parent == mine or mark in (directory / "environ").read_bytes():
                command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.add((int(directory.name), command.strip()))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # gone meanwhile, or another user's and so not ours
    return frozenset(found)


def _ends(pid: int) -> bool:
    """Wait for a process that may be dying; a child that nobody reaps counts as living."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        ended = bool(poll.poll(GRACE_SECONDS * 1000))
    finally:
        os.close(fd)
    return ended and not _is_our_child(pid)


def _is_our_child(pid: int) -> bool:
    """Whether a dead process still waits for us to reap it; orphans are init's, in its own time."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[1] == str(os.getpid())


def _links(namespaces: frozenset[str]) -> frozenset[str]:
    """Return interfaces of the machine, without those of servers that are not this run's."""
    _tags.update(name.split("-")[1] for name in namespaces if name.startswith(SERVERS))
    return frozenset(
        name
        for name in _entries(Path("/sys/class/net"))
        if not name.startswith(SERVERS) or name.removeprefix(SERVERS) in _tags
    )


def _entries(directory: Path) -> frozenset[str]:
    try:
        return frozenset(path.name for path in directory.iterdir())
    except FileNotFoundError:
        return frozenset()
