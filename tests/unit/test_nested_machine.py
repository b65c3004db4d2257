"""One run of the nested host, with a program in QEMU's place that does what the test says."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kvm.nested import machine, message
from tests.kvm.nested.machine import Ending, Limits, Record
from vmpool.image import Defaults, Image, Manifest

QEMU = f"""#!{sys.executable}
import json, os, re, signal, socket, sys

fd = int(re.search(r"socket,id=port,fd=(\\d+)", " ".join(sys.argv))[1])

def tell(**message):
    os.write(fd, json.dumps(message).encode() + b"\\n")

"""

Program = Callable[[str], None]


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Put a program in QEMU's place."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def write(source: str) -> None:
        path = tmp_path / "qemu-system-x86_64"
        path.write_text(QEMU + source)
        path.chmod(0o755)

    return write


def image_in(directory: Path) -> Image:
    """Return an image that nothing reads."""
    manifest = Manifest(
        name="host",
        description="",
        origin="recipe",
        builder="",
        kernel_release="6.12",
        python="/usr/bin/python3",
        agent_protocol=2,
        command_line="console=ttyS0 panic=-1",
        defaults=Defaults(),
        files={},
        packages={},
    )
    return Image(name="host", digest="d", directory=directory, manifest=manifest)


async def run(at: Path, limits: Limits) -> tuple[Ending, Record, str]:
    """Run the program; return how it ended, what it told and what it printed."""
    record = Record()
    shown: list[str] = []
    ending = await machine.run(image_in(at), at / "cargo", limits, record, shown.append)
    return ending, record, "".join(shown)


async def test_a_ring_that_ends_is_heard_to_its_end(qemu: Program, tmp_path: Path) -> None:
    qemu("""
tell(event="up", kernel="6.12")
tell(event="began")
print("a line of the console", flush=True)
tell(event="failed", test="a")
tell(event="report", code=1, junit="<x/>")
tell(event="halted", code=1)
""")
    ending, record, shown = await run(tmp_path, Limits())
    assert ending is Ending.HALTED
    assert record == Record(
        up=message.Up(kernel="6.12"),
        began=True,
        failed=["a"],
        report=message.Report(code=1, junit="<x/>"),
        halted=message.Halted(code=1),
    )
    assert shown == "a line of the console\n"


async def test_what_the_console_shows_is_never_taken_for_a_message(
    qemu: Program, tmp_path: Path
) -> None:
    qemu("""print('{"event": "halted", "code": 0}')""")
    ending, record, _ = await run(tmp_path, Limits())
    assert ending is Ending.DIED
    assert record == Record()


async def test_lines_that_are_no_messages_are_counted_and_hearing_goes_on(
    qemu: Program, tmp_path: Path
) -> None:
    qemu(f"""
os.write(fd, b"no message\\n")
socket.socket(fileno=os.dup(fd)).sendall(json.dumps(
    {{"event": "report", "code": 0, "junit": "x" * {3 * message.MAX_BYTES}}}
).encode() + b"\\n")
tell(event="halted", code=0)
""")
    ending, record, _ = await run(tmp_path, Limits())
    assert ending is Ending.HALTED
    assert record.malformed >= 2
    assert record.report is None, "a line of any length was taken"


@pytest.mark.timeout(60)  # a fraction of the limit that does not count
@pytest.mark.parametrize(
    ("told", "limits", "ending"),
    [
        ("", Limits(boot=0.3, ring=900.0), Ending.STUCK_AT_BOOT),
        ('tell(event="up", kernel="6.12")', Limits(boot=0.3, ring=900.0), Ending.STUCK_AT_BOOT),
        ('tell(event="began")', Limits(boot=900.0, ring=0.3), Ending.STUCK_IN_RING),
    ],
)
async def test_a_machine_that_hangs_is_ended(
    qemu: Program, tmp_path: Path, told: str, limits: Limits, ending: Ending
) -> None:
    qemu(f"{told}\nsignal.pause()")
    assert (await run(tmp_path, limits))[0] is ending


def test_a_killed_runner_leaves_no_machine(qemu: Program, tmp_path: Path) -> None:
    qemu("print(os.getpid(), flush=True)\nsignal.pause()")
    source = (
        "import asyncio, sys\nfrom pathlib import Path\n"
        "from tests.unit.test_nested_machine import image_in\n"
        "from tests.kvm.nested.machine import Limits, Record, run\n"
        "at = Path(sys.argv[1])\n"
        "def show(text): print(text, end='', flush=True)\n"
        "asyncio.run(run(image_in(at), at / 'cargo', Limits(), Record(), show))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", source, tmp_path], stdout=subprocess.PIPE, text=True
    ) as runner:
        assert runner.stdout is not None
        pidfd = os.pidfd_open(int(runner.stdout.readline()))
        runner.send_signal(signal.SIGKILL)
    try:
        # Readable once the process has ended, see pidfd_open(2).
        assert machine_ended(pidfd)
    finally:
        os.close(pidfd)


def machine_ended(pidfd: int) -> bool:
    """Wait for a process that is not our child."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(10_000))


def test_the_machine_has_one_processor_and_no_network(tmp_path: Path) -> None:
    argv = machine.argv_of(image_in(tmp_path), tmp_path / "cargo", 7)
    assert argv[argv.index("-smp") + 1] == "1"
    assert "thread=single" in argv[argv.index("-accel") + 1]
    assert "-nodefaults" in argv
    assert not [word for word in argv if "net" in word]
