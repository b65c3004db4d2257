"""The census finds what a test leaves, and is silent about what it does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests import leftovers
from tests.seclusion import NAMES


def spawn_an_orphan() -> int:
    """Start a process whose parent ends at once; return its id."""
    source = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=2).pid)"
    return int(subprocess.check_output([sys.executable, "-c", source]))


def test_nothing_came_when_nothing_happened() -> None:
    before = leftovers.Census.take()
    assert leftovers.since(before) == []


def test_an_open_descriptor_is_found() -> None:
    before = leftovers.Census.take()
    with Path("/dev/null").open("rb") as file:
        (line,) = leftovers.since(before)
        assert line == f"descriptor {file.fileno()} -> /dev/null"


def test_a_descriptor_that_was_replaced_is_found() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    before = leftovers.Census.take()
    os.close(fd)
    assert os.open("/dev/zero", os.O_RDONLY) == fd
    (line,) = leftovers.since(before)
    os.close(fd)
    assert line == f"descriptor {fd} -> /dev/zero"


def test_a_file_outside_of_the_tests_directory_is_found() -> None:
    before = leftovers.Census.take()
    with tempfile.NamedTemporaryFile() as file:
        assert f"file {Path(file.name).name} in {tempfile.gettempdir()}" in leftovers.since(before)


def test_a_child_that_nobody_reaps_is_found() -> None:
    before = leftovers.Census.take()
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays to be reaped
    left = leftovers.since(before)
    os.waitpid(pid, 0)
    assert any(line.startswith(f"process {pid}") for line in left)


def test_a_child_that_lives_on_is_found_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "GRACE_SECONDS", 0.0)
    before = leftovers.Census.take()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        assert f"process {child.pid}: cat" in leftovers.since(before)
        assert child.wait() == -signal.SIGKILL


def test_an_orphan_is_found_although_it_is_nobodys_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "GRACE_SECONDS", 0.0)
    before = leftovers.Census.take()
    pid = spawn_an_orphan()
    assert leftovers.since(before) == [f"process {pid}: sleep 60"]


def test_a_process_that_is_just_dying_does_not_count() -> None:
    before = leftovers.Census.take()
    pid = spawn_an_orphan()
    os.kill(pid, signal.SIGKILL)
    assert leftovers.since(before) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces are root's to name")
def test_a_network_namespace_of_this_run_is_found() -> None:
    before = leftovers.Census.take()
    made = NAMES / f"vmpool-test-{os.getpid()}"
    made.touch()
    left = leftovers.since(before)
    made.unlink()
    assert left == [f"network namespace {made.name}"]


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces are root's to name")
def test_a_network_namespace_of_another_run_is_not() -> None:
    before = leftovers.Census.take()
    # Where whoever started us is, as any run beside this one.
    elsewhere = Path(f"/proc/{os.getppid()}/root{NAMES}")
    made = elsewhere / f"vmpool-test-{os.getpid()}-elsewhere"
    made.touch()
    left = leftovers.since(before)
    made.unlink()
    assert left == []
