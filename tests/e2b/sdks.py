"""SDKs: E2B's own, each in a directory of its own, unmodified, as its registry has it.

They are kept between test runs beside the images, by what was asked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).with_name("programs")
INSTALL_SECONDS = 600.0
RUN_SECONDS = 600.0
"""A whole program; machines that several runs share are slow."""

_DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sdk:
    """One release, with what goes with it.

    Attributes:
        packages: As its package manager takes them.
        has_code: Whether its code interpreter can be pointed at an address without TLS.
    """

    name: str
    packages: tuple[str, ...]
    has_code: bool = True

    def program(self, name: str) -> list[str]:
        """Return the command that runs a file of `programs` with it; installed first if need be.

        Skips the test where the language is not there.
        """
        return [str(self._home() / "bin/python"), str(PROGRAMS / f"{name}.py")]

    def _home(self) -> Path:
        with _kept(self.name, self.packages) as home:
            if not (home / _DONE).exists():
                _run([sys.executable, "-m", "venv", "--clear", str(home)])
                pip = [str(home / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
                _run([*pip, *self.packages])
                (home / _DONE).touch()
            return home


@dataclass(frozen=True, slots=True, kw_only=True)
class JavaScriptSdk(Sdk):
    """One release for Node."""

    def program(self, name: str) -> list[str]:
        """Return the command that runs a file of `programs` with it, as `Sdk.program`."""
        if shutil.which("npm") is None or shutil.which("node") is None:
            pytest.skip("node is not here")
        with _kept(self.name, self.packages) as home:
            if not (home / _DONE).exists():
                shutil.rmtree(home, ignore_errors=True)
                home.mkdir()
                quiet = ["--no-audit", "--no-fund", "--loglevel=error"]
                _run(["npm", "install", "--prefix", str(home), *quiet, *self.packages])
                (home / _DONE).touch()
            # A module finds its packages beside itself, whatever the working directory.
            copy = home / f"{name}.mjs"
            copy.write_bytes((PROGRAMS / f"{name}.mjs").read_bytes())
            return ["node", str(copy)]


NEWEST = Sdk(name="python-2.63", packages=("e2b==2.63.0", "e2b-code-interpreter==2.11.5"))
OLDER = (
    Sdk(name="python-2.51", packages=("e2b==2.51.0",), has_code=False),
    Sdk(name="python-2.45", packages=("e2b==2.45.1",), has_code=False),
)
JAVASCRIPT = JavaScriptSdk(
    name="javascript-2.51", packages=("e2b@2.51.0", "@e2b/code-interpreter@2.8.0")
)
ALL = (NEWEST, *OLDER, JAVASCRIPT)


def run(argv: list[str], environment: Mapping[str, str], *arguments: str) -> str:
    """Run a program to its end and return what it wrote; what went wrong fails the test."""
    try:
        ended = subprocess.run(
            [*argv, *arguments],
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
        )
    except subprocess.TimeoutExpired as late:
        said = "\n".join(map(_text, (late.stdout, late.stderr)))
        pytest.fail(f"{argv[-1]} did not end in {RUN_SECONDS} s:\n{said}")
    if ended.returncode:
        pytest.fail(f"{argv[-1]} ended with {ended.returncode}:\n{ended.stdout}\n{ended.stderr}")
    return ended.stdout


def _text(said: str | bytes | None) -> str:
    """Return what a process that was cut off had said by then."""
    return said if isinstance(said, str) else (said or b"").decode(errors="replace")


@contextlib.contextmanager
def _kept(name: str, packages: tuple[str, ...]) -> Iterator[Path]:
    """Lend a release's directory, to one at a time."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmpool/tests/sdks"
    cache.mkdir(parents=True, exist_ok=True)
    words = "+".join(package.replace("/", "_") for package in packages)
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield cache / f"{name}+{words}"


def _run(argv: list[str]) -> None:
    ended = subprocess.run(
        argv, check=False, capture_output=True, text=True, timeout=INSTALL_SECONDS
    )
    if ended.returncode:
        pytest.fail(f"{' '.join(argv)}:\n{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}")
