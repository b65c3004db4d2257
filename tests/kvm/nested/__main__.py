"""The program behind `make test-kvm`."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

from tests.kvm.capability import query_lacking
from tests.kvm.nested import cargo, image, machine, report, verdict
from tests.kvm.nested.inside import RING
from tests.kvm.nested.place import REPORT, ROOT, cache
from vmpool.errors import VmpoolError
from vmpool.image import Image, Step, work

_WORK = cache() / "nested/work"


def main() -> int:
    """Run the ring where it can be run; return the exit code."""
    arguments = sys.argv[1:]
    try:
        if lacking := asyncio.run(query_lacking()):
            for what in lacking:
                say(f"this machine has {what}")
            return asyncio.run(run_nested(arguments))
        asyncio.run(image.build_guest(progress))
        return run_here(arguments)
    except (VmpoolError, OSError, subprocess.CalledProcessError) as err:
        say(f"failed: {err}")
        return 1
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells have it


def run_here(arguments: list[str]) -> int:
    """Run the ring on this machine."""
    say("running the ring on this machine's own KVM")
    REPORT.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "pytest", *RING, f"--junitxml={REPORT}", *arguments]
    try:
        code = subprocess.run(argv, check=False, cwd=ROOT, timeout=machine.RING_SECONDS).returncode
    except subprocess.TimeoutExpired:
        return conclude(report.Tally(), ["the ring did not end in time"])
    tally = report.read(REPORT.read_text(encoding="utf-8") if REPORT.exists() else "")
    return conclude(tally, report.objections(code, tally))


async def run_nested(arguments: list[str]) -> int:
    """Run the ring in a host that is a machine."""
    work.sweep(_WORK)
    host = await image.build_host(progress)
    guest = await image.build_guest(progress)
    ending, record = await _run_once(host, guest, arguments)
    if verdict.has_died(ending, record):
        say("the host's kernel died, which says nothing of the ring: starting it once more")
        ending, record = await _run_once(host, guest, arguments)
    junit = record.report.junit if record.report is not None else ""
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(junit, encoding="utf-8")
    say("times above are of an emulated processor: function, not speed")
    return conclude(report.read(junit), verdict.objections(ending, record))


async def _run_once(
    host: Image, guest: Image, arguments: list[str]
) -> tuple[machine.Ending, machine.Record]:
    async with work.workspace(_WORK) as directory:
        disk = await asyncio.to_thread(cargo.pack, guest, arguments, at=directory)
        say("booting a host with KVM and vhost-vsock under software emulation")
        began = time.monotonic()
        record = machine.Record()
        ending = await machine.run(host, disk, machine.Limits(), record, show)
    say(f"{ending} after {time.monotonic() - began:.0f} s")
    return ending, record


def conclude(tally: report.Tally, objections: list[str]) -> int:
    """Print how the ring ended; return the exit code."""
    for line in tally.lines:
        say(line)
    for objection in objections:
        say(f"failed: {objection}")
    if not objections:
        say(f"passed; the report is {REPORT.relative_to(ROOT)}")
    return 1 if objections else 0


def progress(step: Step) -> None:
    """Print what the builder does and how long it took."""
    if step.seconds is None:
        say(step.text)
    elif step.seconds >= 1:
        say(f"{step.text}: {step.seconds:.0f} s")


def show(text: str) -> None:
    """Print what the machine prints."""
    sys.stdout.write(text)
    sys.stdout.flush()


def say(text: str) -> None:
    """Print a line of our own."""
    print(f"-- kvm: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
