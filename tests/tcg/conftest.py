"""A real server as a newcomer starts it, over a real image, under whatever this host can run.

Images and snapshots are named by what they are made of, so they are kept between test runs in
`$XDG_CACHE_HOME/vmpool/tests`; everything else is new each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

TEMPLATE = "python"
UP_SECONDS = 900.0
"""Cold: packages, image, boot, snapshot."""


@dataclass(frozen=True)
class Ground:
    """Where a server keeps its things."""

    state: Path

    @property
    def clones(self) -> list[Path]:
        """Directories of machines."""
        return sorted((self.state / "run/clones").iterdir())

    @property
    def token(self) -> str:
        """The token that `up` made for the command line on this host."""
        return (self.state / "local-token").read_text().strip()

    def hypervisors(self) -> list[int]:
        """Return the process ids of QEMUs that were started from here."""
        names = {directory.name for directory in self.clones}
        found = []
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                argv = (process / "cmdline").read_bytes().split(b"\0")
                if b"qemu-system" in argv[0] and names & {word.decode() for word in argv}:
                    found.append(int(process.name))
        return found


class UpServer:
    """`vmpool up` as a process; `url` is known once it serves."""

    def __init__(self, ground: Ground, *options: str) -> None:
        self.ground = ground
        self.lines: list[str] = []
        program = os.fspath(Path(sys.executable).with_name("vmpool"))
        argv = [program, "up", "--template", TEMPLATE, "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(
            [*argv, "--state", os.fspath(ground.state), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.url = ""
        self._served = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> UpServer:
        self._served.wait(UP_SECONDS)
        if not self.url:
            self.stop()
            pytest.fail("the server did not come up:\n" + "".join(self.lines))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            print(line, end="", flush=True)
            if line.startswith("Serving on "):
                self.url = line.split()[2]
                self._served.set()
        self._served.set()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the server with a signal, wait for it, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


async def until(condition: Callable[[], Awaitable[bool]], timeout: float = 30.0) -> None:
    """Return once `condition` holds; what other processes do has no event to wait on here."""
    async with asyncio.timeout(timeout):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
def ground() -> Iterator[Ground]:
    """A state directory of this run, with the images and snapshots of earlier ones."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmpool/tests"
    # Short: the paths of sockets in it have to fit into a socket's address.
    state = Path(tempfile.mkdtemp(prefix="vmpool-", dir="/tmp"))
    for name in ("images", "snapshots"):
        (cache / name).mkdir(parents=True, exist_ok=True)
        (state / name).symlink_to(cache / name)
    yield Ground(state)
    shutil.rmtree(state)


@pytest.fixture(scope="session")
def server(ground: Ground) -> Iterator[UpServer]:
    """A server that all tests of the ring share; those that kill one start their own."""
    with UpServer(ground, "--ready", "2") as running:
        yield running


class Api:
    """A client of a server."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def call(self, method: str, path: str, **request: Any) -> tuple[int, Any]:
        """Send a request; return status and decoded answer."""
        async with self.session.request(method, path, **request) as response:
            body = await response.read()
            decoded = body and response.content_type.endswith("json")
            return response.status, json.loads(body) if decoded else body

    async def run(self, **body: Any) -> dict[str, Any]:
        """Run once in a machine of its own; the request must succeed."""
        status, answer = await self.call("POST", "/v1/run", json={"template": TEMPLATE, **body})
        assert status == 200, answer
        return dict(answer)

    @contextlib.asynccontextmanager
    async def sandbox(self, **body: Any) -> AsyncIterator[str]:
        """Yield the id of a sandbox that is killed afterwards, if it still lives."""
        status, made = await self.call("POST", "/v1/sandboxes", json={"template": TEMPLATE, **body})
        assert status == 201, made
        try:
            yield made["id"]
        finally:
            status, answer = await self.call("DELETE", f"/v1/sandboxes/{made['id']}")
            assert status in {204, 410}, answer

    async def execute(self, sandbox: str, **body: Any) -> dict[str, Any]:
        """Execute in a sandbox; return output and exit as one object."""
        out: dict[str, Any] = {"stdout": "", "stderr": "", "results": []}
        async with self.session.post(f"/v1/sandboxes/{sandbox}/exec", json=body) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                event = json.loads(line)
                match kind := event.pop("type"):
                    case "stdout" | "stderr":
                        out[kind] += event["data"]
                    case "result":
                        out["results"].append(event["mime"])
                    case "error":
                        out["error"] = event
                    case "exit" | "problem":
                        out |= event
                    case "started":
                        out["pid"] = event["pid"]
                    case _:
                        pytest.fail(f"an event {kind!r} that nobody documented: {event}")
        return out


@pytest_asyncio.fixture
async def api(server: UpServer) -> AsyncIterator[Api]:
    """A client of the shared server."""
    async with client(server) as connected:
        yield connected


@contextlib.asynccontextmanager
async def client(server: UpServer) -> AsyncIterator[Api]:
    """A client of `server`, on the token of its host."""
    headers = {"Authorization": f"Bearer {server.ground.token}"}
    limits = aiohttp.ClientTimeout(total=240)
    async with aiohttp.ClientSession(server.url, headers=headers, timeout=limits) as session:
        yield Api(session)
