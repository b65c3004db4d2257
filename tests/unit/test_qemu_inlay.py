"""Files mapped into another process, asked of a process that is there for it."""

from __future__ import annotations

import os
import platform
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.engine.qemu import huge, inlay
from vmpool.engine.qemu.inlay import WORTH_BYTES, Piece
from vmpool.engine.qemu.pages import Buffer

PAGE = 4096
SIZE = 64 * PAGE

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="what is mapped elsewhere is copied"
)

HOST = """
import ctypes, mmap, os, signal, sys
caught, tell = os.pipe()
os.set_blocking(tell, False)
signal.set_wakeup_fd(tell)  # a byte for each signal
signal.signal(signal.SIGRTMIN, lambda *_: None)
template, other = (os.open(path, os.O_RDONLY) for path in sys.argv[1:])
memory = mmap.mmap(template, 0, flags=mmap.MAP_PRIVATE)
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), other, flush=True)
for line in sys.stdin:  # what it waits in
    if line == "write\\n":
        memory[:] = b"w" * len(memory)
    if line == "caught\\n":
        memory[:8] = len(os.read(caught, 1 << 16)).to_bytes(8, "little")
    sys.stdout.buffer.write(memory[:])
    sys.stdout.flush()
"""

KILLED_MEANWHILE = """
import os, signal, sys
from vmpool.engine.qemu import inlay
inlay._Held.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
inlay.lay(int(sys.argv[1]), 0, [inlay.Piece(start=1 << 20, size_bytes=4096, offset=0)])
"""


class Patient:
    """A process that maps a file of zeros privately, and has another one open."""

    def __init__(self, directory: Path) -> None:
        self.other = directory / "other"
        self.other.write_bytes(b"".join(bytes([page + 1]) * PAGE for page in range(64)))
        template = directory / "template"
        template.write_bytes(bytes(SIZE))
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOST, template, self.other],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.start, self.descriptor = map(int, self.process.stdout.readline().split())

    def memory(self, order: str = "read") -> bytes:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{order}\n".encode())
        self.process.stdin.flush()
        return self.process.stdout.read(SIZE)

    def code_of_no_file(self) -> list[str]:
        lines = Path(f"/proc/{self.process.pid}/maps").read_text().splitlines()
        return [line for line in lines if line.split()[1] == "r-xp" and len(line.split()) == 5]

    def piece(self, page: int, count: int, offset: int) -> Piece:
        start = self.start + page * PAGE
        return Piece(start=start, size_bytes=count * PAGE, offset=offset * PAGE)


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[Patient]:
    patient = Patient(tmp_path)
    yield patient
    patient.process.kill()
    patient.process.communicate()


def test_pieces_lie_where_they_belong_and_the_process_goes_on(patient: Patient) -> None:
    before = patient.other.read_bytes()
    wanted = bytearray(SIZE)
    pieces = []
    for page, count, offset in ((2, 3, 10), (7, 1, 0), (8, 1, 5), (20, 40, 20)):
        pieces.append(patient.piece(page, count, offset))
        wanted[page * PAGE : (page + count) * PAGE] = before[
            offset * PAGE : (offset + count) * PAGE
        ]
    inlay.lay(patient.process.pid, patient.descriptor, pieces)
    assert patient.memory() == wanted
    inlay.lay(patient.process.pid, patient.descriptor, pieces)
    assert patient.memory() == wanted
    assert not patient.code_of_no_file()
    assert patient.memory("write") == b"w" * SIZE
    assert patient.other.read_bytes() == before


def test_more_pieces_than_a_page_of_rows_holds_are_laid(patient: Patient) -> None:
    pieces = [patient.piece(page % 64, 1, page % 64) for page in range(300)]
    inlay.lay(patient.process.pid, patient.descriptor, pieces)
    assert patient.memory() == patient.other.read_bytes()


def test_a_process_that_cannot_map_it_goes_on_as_it_was(patient: Patient) -> None:
    good = patient.piece(1, 1, 0)
    for descriptor, piece in (
        (200, good),  # it has no such file
        (patient.descriptor, Piece(start=good.start, size_bytes=PAGE, offset=1)),
        (patient.descriptor, Piece(start=good.start + 1, size_bytes=PAGE, offset=0)),
    ):
        with pytest.raises(OSError, match=r"Bad file descriptor|Invalid argument"):
            inlay.lay(patient.process.pid, descriptor, [piece])
        assert patient.memory() == bytes(SIZE)
        assert not patient.code_of_no_file()


def test_no_signal_is_lost_that_comes_just_then(patient: Patient) -> None:
    pid, sent, over = patient.process.pid, 0, threading.Event()

    def send() -> None:
        nonlocal sent
        while not over.is_set() and sent < 50_000:
            os.kill(pid, signal.SIGRTMIN)  # of which the kernel keeps each in line
            sent += 1

    sender = threading.Thread(target=send)
    sender.start()
    met = 0
    for _ in range(2000):
        try:
            inlay.lay(pid, patient.descriptor, [patient.piece(1, 1, 0)])
        except InterruptedError:
            met += 1
        if met >= 3:
            break
    over.set()
    sender.join()
    caught = int.from_bytes(patient.memory("caught")[:8], "little")
    assert caught == sent


def test_a_signal_meanwhile_is_not_lost(patient: Patient) -> None:
    os.kill(patient.process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, patient.process.pid, os.WSTOPPED | os.WNOWAIT)
    with pytest.raises(InterruptedError):
        inlay.lay(patient.process.pid, patient.descriptor, [patient.piece(1, 1, 0)])
    os.kill(patient.process.pid, signal.SIGCONT)
    assert patient.memory() == bytes(SIZE)


def test_a_process_that_is_gone_is_told(patient: Patient) -> None:
    patient.process.kill()
    patient.process.wait()
    with pytest.raises(FileNotFoundError):
        inlay.lay(patient.process.pid, patient.descriptor, [])


def test_a_process_that_ends_meanwhile_leaves_its_end_to_whoever_started_it(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = inlay._Held._trace

    def ended_after(held: inlay._Held, request: int, data: int = 0) -> None:
        trace(held, request, data)
        if request == inlay._CONT:
            end = os.pidfd_open(patient.process.pid)
            signal.pidfd_send_signal(end, signal.SIGKILL)
            assert select.select([end], [], [], 10)[0]
            os.close(end)

    monkeypatch.setattr(inlay._Held, "_trace", ended_after)
    with pytest.raises(ProcessLookupError):
        inlay.lay(patient.process.pid, patient.descriptor, [patient.piece(1, 1, 0)])
    ended = os.waitid(os.P_PID, patient.process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    assert ended is not None
    assert ended.si_status == signal.SIGKILL


def test_who_is_killed_meanwhile_takes_the_process_along(patient: Patient) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_MEANWHILE, str(patient.process.pid)], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert patient.process.wait(10) == -signal.SIGKILL


sizes = st.lists(st.integers(1, 2 * WORTH_BYTES // PAGE).map(lambda pages: pages * PAGE))


@given(sizes=sizes, most=st.integers(0, 5), offset=st.integers(0, 9))
def test_the_longest_stretches_are_chosen_with_what_belongs_there(
    sizes: list[int], most: int, offset: int
) -> None:
    spans, at = [], 0
    for size in sizes:
        at += PAGE
        spans.append((at, at + size))
        at += size
    chosen = inlay.choose(spans, offset, most=most)
    assert len(chosen) == min(most, sum(size >= WORTH_BYTES for size in sizes))
    left_out = {span[1] - span[0] for span in spans if span not in chosen}
    for span, piece in chosen.items():
        assert (piece.start, piece.start + piece.size_bytes) == span
        assert piece.offset == offset + sum(sizes[: spans.index(span)])
        assert piece.size_bytes >= WORTH_BYTES
        assert most > len(chosen) or piece.size_bytes >= max(left_out - {0}, default=0)


def test_a_copy_can_be_mapped_by_others_and_not_written_by_them() -> None:
    buffer = Buffer(3 * PAGE)
    if buffer.file is None:
        buffer.close()
        pytest.skip("this account may not mount")
    with buffer.view(PAGE) as view:
        view[:4] = b"copy"
    assert os.pread(buffer.file, 5, 0) == b"copy\0"
    assert os.fstat(buffer.file).st_size == 3 * PAGE
    assert os.fstat(buffer.file).st_mode & 0o777 == 0o600  # by another account, that is
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(buffer.file, b"x", 0)
    buffer.close()
    buffer.close()


def made(size_bytes: int) -> int:
    try:
        return huge.create(size_bytes)
    except OSError as err:
        pytest.skip(f"there are no such files here: {err}")


def test_a_copy_that_can_be_mapped_is_never_swapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "swaps").write_text("Filename Type\n/dev/vda2 partition\n")
    monkeypatch.setattr(huge, "_SWAPS", tmp_path / "swaps")

    def kept_bytes() -> int:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Unevictable"))

    before, size = kept_bytes(), 256 << 20
    file = made(size)
    taken = kept_bytes() - before
    os.close(file)
    assert taken > size // 2


@pytest.mark.parametrize("swaps", ["Filename Type\n", "Filename Type\n/dev/vda2 partition\n"])
def test_where_it_could_be_swapped_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: str
) -> None:
    os.close(made(PAGE))
    call = huge._call

    def older(number: int, *arguments: int | bytes | None) -> int:
        if b"noswap" in arguments:
            raise OSError(22, "Invalid argument")
        return call(number, *arguments)

    monkeypatch.setattr(huge, "_call", older)
    monkeypatch.setattr(huge, "_SWAPS", tmp_path / "swaps")
    (tmp_path / "swaps").write_text(swaps)
    if "vda2" in swaps:
        with pytest.raises(OSError, match="Invalid argument"):
            huge.create(PAGE)
    else:
        os.close(huge.create(PAGE))


def test_a_copy_is_had_where_no_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(size_bytes: int) -> int:
        raise PermissionError(1, "no")

    monkeypatch.setattr(huge, "create", refused)
    buffer = Buffer(3 * PAGE)
    assert buffer.file is None
    with buffer.view(3 * PAGE) as view:
        view[:4] = b"copy"
    buffer.close()
