"""A real server on loopback, over a real host whose machines are local processes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest

from tests.api.stand_in import TOKEN, PaperHost
from tests.fakes import FakeEngine, Faults
from vmpool.api import make_app, serve
from vmpool.catalogue import TemplateRequest
from vmpool.config import ApiSettings, RequestSettings, Settings
from vmpool.host import Host, HostFacts
from vmpool.image import Defaults, signature
from vmpool.image.manifest import FILES, MANIFEST, FileRecord, Manifest, load
from vmpool.model import Accelerator, Transport
from vmpool.opening import Base, open_host
from vmpool.policy import Limits
from vmpool.scope import Role
from vmpool.trust import HostKey, Keyring
from vmpool_agent.wire import VERSIONS

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = "python"


@dataclass
class Server:
    """A served host and a client of it.

    Attributes:
        owner: Whom `token` stands for; `other_token` is somebody else's.
    """

    host: Any
    url: str
    session: aiohttp.ClientSession
    token: str
    other_token: str
    owner: str

    async def call(self, method: str, path: str, **request: Any) -> tuple[int, Any]:
        """Send a request; return status and decoded answer."""
        async with self.session.request(method, self.url + path, **request) as response:
            if response.content_type in {"application/json", "application/problem+json"}:
                return response.status, await response.json(content_type=None)
            return response.status, await response.read()

    async def make_sandbox(self, **body: Any) -> dict[str, Any]:
        """Create a sandbox."""
        status, answer = await self.call("POST", "/v1/sandboxes", json=body)
        assert status == 201, answer
        return dict(answer)

    async def is_idle(self) -> None:
        """Return once no machine is held: a run's goes behind the run's answer."""
        async with asyncio.timeout(30):
            while self.host.sandboxes(owner=self.owner):
                await self.call("GET", "/healthz")

    def as_other(self) -> dict[str, str]:
        """Return the headers of somebody else."""
        return {"Authorization": f"Bearer {self.other_token}"}


Serve = Callable[..., AbstractAsyncContextManager[Server]]


@pytest.fixture
def serving(tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Serve with other settings: with tokens or without, and what one request may ask for."""

    @contextlib.asynccontextmanager
    async def start(
        *,
        tokens: bool = True,
        faults: Faults | None = None,
        api: ApiSettings | None = None,
        **requests: Any,
    ) -> AsyncIterator[Server]:
        state = tmp_path_factory.mktemp("host")
        settings = Settings(
            state=state,
            run=state / "run",
            insecure_no_tokens=not tokens,
            api=api or ApiSettings(),
            requests=RequestSettings(**requests),
        )
        made = tmp_path_factory.getbasetemp() / "made"
        if made.exists():  # a snapshot is named by what it was made of, and found again
            shutil.copytree(made, state, dirs_exist_ok=True)
        else:
            place_image(state)
        facts = HostFacts(
            accelerator=Accelerator.TCG,
            accelerator_reason="",
            transport=Transport.SERIAL,
            qemu_version=FakeEngine().version,
        )
        base = Base(engine=FakeEngine(faults), facts=facts)
        async with open_host(settings, progress=lambda _: None, base=base) as host:
            await host.catalogue.add(
                TemplateRequest(name=IMAGE, image=IMAGE, limits=Limits(ready=0)),
                progress=lambda _: None,
            )
            if not made.exists():
                shutil.copytree(state / "images", made / "images")
                shutil.copytree(state / "snapshots", made / "snapshots")
                shutil.copy2(state / "host-key", made / "host-key")  # it has signed them
            async with served(host, tokens=tokens) as server:
                yield server

    return start


@contextlib.asynccontextmanager
async def served(host: Host, *, tokens: bool) -> AsyncIterator[Server]:
    """Serve a host on loopback."""
    token, row = await host.store.tokens.add("first", Role.ADMIN.scopes)
    other_token, _ = await host.store.tokens.add("second", Role.USE.scopes)
    headers = {"Authorization": f"Bearer {token}"} if tokens else {}
    async with (
        serve(make_app(host), "127.0.0.1:0") as address,
        aiohttp.ClientSession(headers=headers) as session,
    ):
        owner = row.id if tokens else "local"
        yield Server(host, address.url, session, token, other_token, owner)


@pytest.fixture
async def server(serving: Serve) -> AsyncIterator[Server]:
    """A server that asks for tokens."""
    async with serving() as started:
        yield started


@pytest.fixture
async def paper_server() -> AsyncIterator[Server]:
    """A server whose guests agree to everything and touch nothing."""
    host: Any = PaperHost(Settings())
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        serve(make_app(host), "127.0.0.1:0") as address,
        aiohttp.ClientSession(headers=headers) as session,
    ):
        yield Server(host, address.url, session, TOKEN, "", "paper")


def place_image(state: Path) -> None:
    """Put an image that only a fake engine can boot into a state directory."""
    content = b"bootable by nobody"
    record = FileRecord(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    manifest = msgspec.json.encode(
        Manifest(
            name=IMAGE,
            description="for tests",
            origin="import",
            builder="tests",
            kernel_release="0",
            python="/usr/bin/python3",
            agent_protocol=VERSIONS[1],
            command_line="",
            defaults=Defaults(),
            files=dict.fromkeys(FILES, record),
            packages={},
        )
    )
    digest = hashlib.sha256(manifest).hexdigest()
    directory = state / "images" / digest
    directory.mkdir(parents=True)
    (directory / MANIFEST).write_bytes(manifest)
    for name in FILES:
        (directory / name).write_bytes(content)
    names = state / "images/names"
    names.mkdir()
    (names / IMAGE).write_text(digest)
    HostKey.fresh().save(state / "host-key")
    signature.sign(load(directory), Keyring.open(state), at=state)
