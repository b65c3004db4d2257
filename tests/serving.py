"""Serving: a real server as a process, and a client of it.

What the rings that boot machines have in common. They differ in how a server is started, in what
its machines run on, and in the image of its template.
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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest

from tests import kept

START_SECONDS = 900.0
"""Cold: packages, image, boot, snapshot."""

CALL_SECONDS = 240.0


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
        """The token that `up` made for the command line on this host; empty when it did not."""
        file = self.state / "local-token"
        return file.read_text().strip() if file.exists() else ""

    @contextlib.contextmanager
    def beside(self, suffix: str) -> Iterator[Ground]:
        """Yield a state directory for another server, over the same images and snapshots.

        It has the key that has signed them: a server with another would make the template anew, at
        the place of the one that is in use here.
        """
        state = Path(f"{self.state}-{suffix}")
        state.mkdir()
        for name in (kept.IMAGES, kept.SNAPSHOTS):
            (state / name).symlink_to((self.state / name).resolve())
        shutil.copy2(self.state / kept.KEY, state)
        try:
            yield Ground(state)
        finally:
            shutil.rmtree(state)

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


@contextlib.contextmanager
def opened_ground(*names: str) -> Iterator[Ground]:
    """Yield a new state directory, in which those of `names` hold what earlier runs made.

    Images and snapshots are named by what they are made of, so they may be kept.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmpool/tests"
    # Short: the paths of sockets in it have to fit into a socket's address.
    state = Path(tempfile.mkdtemp(prefix="vmpool-", dir="/tmp"))
    try:
        with kept.lent(cache, state, *names):
            yield Ground(state)
    finally:
        shutil.rmtree(state)


class Server:
    """A `vmpool` that serves, as a process; `url` is known once it does.

    Args:
        ground: Where it keeps its things.
        template: What its clients ask for when they do not say.
        arguments: The command and its options, without `--state` and `--listen`.
        environment: Variables beside this process's own.
        listen: Where it serves.
        program: What serves; `vmpool` when empty.
    """

    def __init__(
        self,
        ground: Ground,
        template: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        listen: str = "127.0.0.1:0",
        program: tuple[str, ...] = (),
    ) -> None:
        self.ground = ground
        self.template = template
        self.lines: list[str] = []
        program = program or (os.fspath(Path(sys.executable).with_name("vmpool")),)
        where = ("--listen", listen, "--state", os.fspath(ground.state))
        self.process = subprocess.Popen(
            [*program, *arguments, *where],
            env={**os.environ, "PYTHONFAULTHANDLER": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.url = ""
        self._served = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        self._served.wait(START_SECONDS)
        if not self.url:
            code = self.stop()
            pytest.fail(f"the server did not come up ({code}):\n" + "".join(self.lines))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            print(line, end="", flush=True)
            if line.lower().startswith("serving on "):
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


class Api:
    """A client of a server.

    Args:
        session: To the server, with a token.
        template: What machines are made of when a call does not say.
    """

    def __init__(self, session: aiohttp.ClientSession, template: str) -> None:
        self.session = session
        self.template = template

    async def call(self, method: str, path: str, **request: Any) -> tuple[int, Any]:
        """Send a request; return status and decoded answer."""
        async with self.session.request(method, path, **request) as response:
            body = await response.read()
            decoded = body and response.content_type.endswith("json")
            return response.status, json.loads(body) if decoded else body

    async def run(self, **body: Any) -> dict[str, Any]:
        """Run once in a machine of its own; the request must succeed."""
        status, answer = await self.call(
            "POST", "/v1/run", json={"template": self.template, **body}
        )
        assert status == 200, answer
        return dict(answer)

    @contextlib.asynccontextmanager
    async def sandbox(self, **body: Any) -> AsyncIterator[str]:
        """Yield the id of a sandbox that is killed afterwards, if it still lives."""
        status, made = await self.call(
            "POST", "/v1/sandboxes", json={"template": self.template, **body}
        )
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


@contextlib.asynccontextmanager
async def client(server: Server) -> AsyncIterator[Api]:
    """A client of `server`, on the token of its host."""
    token = server.ground.token
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    limits = aiohttp.ClientTimeout(total=CALL_SECONDS)
    async with aiohttp.ClientSession(server.url, headers=headers, timeout=limits) as session:
        yield Api(session, server.template)
