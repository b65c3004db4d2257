"""Inside: the ring in the host in the machine, started by its process 1 (`host/init.py`).

It says what the host lacks, or runs the ring once and sends its report.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests.kvm.capability import query_lacking
from tests.kvm.nested import message
from tests.kvm.nested.place import GUEST, GUEST_VARIABLE

_LACKING_CODE = 70  # pytest's own are 0 to 5
RING = ("-m", "kvm", "-v", "-o", "testpaths=tests/kvm")
"""What pytest is told in any case; a path among the caller's own arguments narrows it."""
_PLAIN = ("--color=no", "-p", "no:cacheprovider")


class Witness:
    """A plugin of pytest that tells of each test that fails, as it fails."""

    def __init__(self, port: int) -> None:
        self._port = port

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """See one phase of one test."""
        if report.failed:
            tell(self._port, message.Failed(test=report.nodeid))


def main() -> int:
    """Run the ring; return the exit code of the process.

    Its arguments are the port's descriptor, which it inherits, and pytest's own.
    """
    port = int(sys.argv[1])
    if lacking := asyncio.run(query_lacking()):
        tell(port, message.Lacking(what=lacking))
        return _LACKING_CODE
    os.environ[GUEST_VARIABLE] = GUEST
    tell(port, message.Began())
    with tempfile.TemporaryDirectory() as at:
        junit = Path(at, "junit.xml")
        arguments = [*RING, *_PLAIN, f"--junitxml={junit}", *sys.argv[2:]]
        code = pytest.main(arguments, plugins=[Witness(port)])
        written = junit.read_text(encoding="utf-8") if junit.exists() else ""
    tell(port, message.Report(code=int(code), junit=written))
    return int(code)


def tell(port: int, told: message.Any) -> None:
    """Send a message; blocks until it is taken."""
    left = message.encode(told)
    while left:
        left = left[os.write(port, left) :]


if __name__ == "__main__":
    sys.exit(main())
