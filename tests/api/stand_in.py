"""Stand-in: a host whose guests are on paper: they agree to everything and touch nothing.

For requests that a machine makes up. The fake engine's guests are local processes, which would
delete what they are asked to, under whatever account runs the tests.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from vmpool import run
from vmpool.agent.contexts import ContextInfo, Language
from vmpool.agent.watches import ChangeKind, FileChange
from vmpool.clone import RestoreTimings
from vmpool.connecting import NetworkStatus
from vmpool.egress import NetworkPolicy
from vmpool.errors import ConflictError, GuestError, InvalidRequestError, NotFoundError
from vmpool.exposure import Exposure
from vmpool.lifecycle import EndReason
from vmpool.metrics import Metrics
from vmpool.model import (
    Accelerator,
    Exited,
    FileInfo,
    FileKind,
    IdentityReceipt,
    Output,
    Started,
    Stream,
    Transport,
    new_id,
)
from vmpool.network.events import EventLog
from vmpool.ports import Ports
from vmpool.quota import Quota
from vmpool.quotas import Quotas
from vmpool.sandbox import Claim, Sandbox
from vmpool.scope import Role
from vmpool.store import Purpose, TokenRow
from vmpool.vault import Checkpoint

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator

    from vmpool.config import Settings
    from vmpool.errors import VmpoolError
    from vmpool.forking import ForkRequest
    from vmpool.host import CreateRequest

TEMPLATE = "python"
TOKEN = "e2b_paper"
TIMINGS = RestoreTimings(
    spawn_ns=1, load_ns=1, resume_ns=1, hello_ns=1, identify_ns=1, warm_ns=1, rest_ns=1
)
RECEIPT = IdentityReceipt(
    hostname="paper",
    machine_id="0" * 32,
    boot_id="0",
    entropy_bits=256,
    generators=("random",),
    clock_error_ns=0,
)


class PaperContexts:
    """Contexts that run nothing."""

    async def create(self, spec: Any, **_: Any) -> ContextInfo:
        return self._info("c1", spec.language)

    async def list(self) -> tuple[ContextInfo, ...]:
        return (self._info("python", Language.PYTHON),)

    @contextlib.asynccontextmanager
    async def run(self, _: Any, **__: Any) -> AsyncIterator[PaperExecution]:
        yield PaperExecution()

    async def interrupt(self, _: str) -> bool:
        return False

    async def restart(self, id: str) -> ContextInfo:
        return self._info(id, Language.PYTHON)

    async def close(self, _: str) -> None:
        """Close nothing."""

    def _info(self, id: str, language: Language) -> ContextInfo:
        return ContextInfo(
            id=id,
            language=language,
            cwd="/home/user",
            user="user",
            state="idle",
            pid=None,
            executions=0,
            waiting=0,
        )


class PaperProcesses:
    """Processes that are over as soon as they are begun."""

    @contextlib.asynccontextmanager
    async def begin(self, _: Any, **__: Any) -> AsyncIterator[PaperExecution]:
        yield PaperExecution()

    @contextlib.asynccontextmanager
    async def attach(self, _: int, **__: Any) -> AsyncIterator[PaperExecution]:
        yield PaperExecution()

    async def list(self) -> tuple[()]:
        return ()

    async def signal(self, pid: int, signal: int) -> None:
        """Be over."""

    async def resize(self, pid: int, size: Any) -> None:
        """Have no terminal."""

    async def input(self, _: int, data: AsyncIterable[bytes]) -> None:
        async for _chunk in data:
            pass

    async def close_stdin(self, pid: int) -> None:
        """Wait for nothing."""


@dataclass
class PaperWatch:
    """Sees one thing happen, and the directory go."""

    path: str

    async def __aiter__(self) -> AsyncIterator[FileChange]:
        for change in await self.flush():
            yield change

    async def flush(self) -> list[FileChange]:
        return [
            FileChange(kind=ChangeKind.CREATED, path=self.path),
            FileChange(kind=ChangeKind.GONE, path=""),
        ]


class PaperAgent:
    """Agrees to everything and touches nothing."""

    contexts = PaperContexts()
    processes = PaperProcesses()

    @contextlib.asynccontextmanager
    async def execute(self, _: Any) -> AsyncIterator[PaperExecution]:
        yield PaperExecution()

    async def read_file(self, path: str, **_: Any) -> AsyncIterator[bytes]:
        yield path.encode()

    async def write_file(self, path: str, data: AsyncIterable[bytes], **_: Any) -> FileInfo:
        size_bytes = sum([len(chunk) async for chunk in data])
        return self._info(path, FileKind.FILE, size_bytes)

    async def stat(self, path: str, **_: Any) -> FileInfo:
        return self._info(path, FileKind.FILE, len(path.encode()))

    async def list_directory(self, path: str, **_: Any) -> list[FileInfo]:
        return [self._info(f"{path}/x", FileKind.SYMLINK, 0)]

    async def remove(self, path: str, **_: Any) -> None:
        """Remove nothing."""

    async def move(self, _: str, destination: str, **__: Any) -> FileInfo:
        return self._info(destination, FileKind.FILE, 0)

    async def make_directory(self, path: str, **_: Any) -> FileInfo:
        return self._info(path, FileKind.DIRECTORY, 0)

    async def archive(self, path: str, **_: Any) -> AsyncIterator[bytes]:
        yield path.encode()

    async def link(self, path: str, _: str, **__: Any) -> FileInfo:
        return self._info(path, FileKind.SYMLINK, 0)

    async def change(self, path: str, **_: Any) -> FileInfo:
        return self._info(path, FileKind.FILE, 0)

    @contextlib.asynccontextmanager
    async def watch(self, path: str, **_: Any) -> AsyncIterator[PaperWatch]:
        yield PaperWatch(path)

    async def wait_closed(self) -> None:
        await asyncio.Event().wait()

    def _info(self, path: str, kind: FileKind, size_bytes: int) -> FileInfo:
        return FileInfo(
            path=path,
            kind=kind,
            size_bytes=size_bytes,
            mode=0o644,
            owner="user",
            group="user",
            modified_ns=0,
        )


class PaperExecution:
    """Says a word and is over."""

    pid = 1

    async def __aiter__(self) -> AsyncIterator[Started | Output | Exited]:
        yield Started(1)
        yield Output(Stream.STDOUT, b"paper\n")
        yield Exited(exit_code=0)

    async def write_stdin(self, data: bytes) -> None:
        """Read nothing."""

    async def close_stdin(self) -> None:
        """Wait for nothing."""

    async def kill(self, signal: int) -> None:
        """Be over."""


@dataclass
class PaperClone:
    """A guest that is not there."""

    agent: PaperAgent = field(default_factory=PaperAgent)
    timings: RestoreTimings = TIMINGS
    receipt: IdentityReceipt = RECEIPT
    connection: None = None

    def execute(self, what: Any) -> contextlib.AbstractAsyncContextManager[PaperExecution]:
        return self.agent.execute(what)

    async def awake(self) -> None:
        """Be awake."""


class PaperAudit:
    """Knows of nothing that was done."""

    async def entries(self, *_: Any) -> list[Any]:
        return []


_TOKEN_ROW = TokenRow(
    id="paper", name="paper", tenant_id="paper", scopes=Role.ADMIN.scopes, created_ns=0
)


class PaperExposures:
    """Remembers nothing of who may reach what."""

    async def find(self, _: str) -> Exposure:
        return Exposure()

    async def save(self, *_: Any) -> None:
        """Write nothing down."""


class PaperNetworks:
    """Connects nothing: agrees to each policy, and nothing was denied by any."""

    def __init__(self, host: PaperHost) -> None:
        self._host = host

    async def show(self, id: str, *, owner: str) -> NetworkStatus:
        await self._host.sandbox(id, owner=owner)
        return NetworkStatus(policy=NetworkPolicy(), traffic=None)

    async def replace(self, id: str, policy: NetworkPolicy, *, owner: str) -> NetworkStatus:
        await self._host.sandbox(id, owner=owner)
        return NetworkStatus(policy=policy, traffic=None)

    async def denials(self, id: str, *, owner: str) -> EventLog:
        await self._host.sandbox(id, owner=owner)
        log = EventLog(lambda _: None)
        log.close()
        return log

    @contextlib.asynccontextmanager
    async def capture(self, id: str, _: object, *, owner: str) -> AsyncIterator[Any]:
        await self._host.sandbox(id, owner=owner)
        raise ConflictError("there is no network", code="network_none")
        yield


class PaperHost:
    """What the API asks of a host, without machines, pools and journal."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.facts = SimpleNamespace(accelerator=Accelerator.TCG, transport=Transport.SERIAL)
        self.images = SimpleNamespace(list=list)
        self.catalogue = self
        self.derivation = self
        self.store = SimpleNamespace(
            tokens=self,
            audit=PaperAudit(),
            answers=None,
            open_sandboxes=self._none_open,
            checkpoints=SimpleNamespace(all=self._none_open),
            builds=SimpleNamespace(all=self._none_open),
            set_confided=self._confide,
        )
        self.statuses: list[Any] = []
        self.draining = False
        self._live: dict[str, Sandbox] = {}
        self._ended: dict[str, str] = {}
        self.networks = PaperNetworks(self)
        self.quotas = Quotas(Quota(), self.overrides, self.metrics)
        paper: Any = SimpleNamespace(exposures=PaperExposures(), token=lambda *, of: of)
        self.ports = Ports(paper, cast("Any", self))

    def living(self, id: str) -> Any:
        sandbox = self._live.get(id)
        return None if sandbox is None else SimpleNamespace(sandbox=sandbox)

    async def find(self, token: str) -> Any:
        return _TOKEN_ROW if token == TOKEN else None

    def resolve(self, name: str, **_: Any) -> str:
        raise NotFoundError(f"there is no template {name!r}", code="template_not_found")

    async def _confide(self, _: str) -> None:
        """Write nothing down."""

    async def _none_open(self) -> list[Any]:
        return []

    async def overrides(self) -> dict[str, Any]:
        return {}

    def status(self, name: str) -> Any:
        raise NotFoundError(f"there is no template {name!r}", code="template_not_found")

    async def add(self, request: Any, **_: Any) -> Any:
        raise NotFoundError(f"no image {request.image!r}", code="image_not_found")

    async def derive(self, request: Any, *, owner: str) -> Any:
        self.find_checkpoint(request.checkpoint, owner=owner)
        raise GuestError("on paper")

    async def remove(self, name: str) -> None:
        self.status(name)

    async def bases(self) -> dict[str, int]:
        return {}

    def audit(self, *_: Any) -> None:
        """Nothing was done."""

    async def create(self, request: CreateRequest, *, owner: str) -> Sandbox:
        return await self._hold(
            Claim(
                template=request.template or TEMPLATE,
                owner=owner,
                timeout=request.timeout,
                metadata=request.metadata,
                env=request.env,
            )
        )

    async def run(self, request: run.RunRequest, *, owner: str) -> run.RunOutcome:
        sandbox = await self._hold(Claim(template=request.template, owner=owner, timeout=60))
        try:
            return await run.run(sandbox, request)
        finally:
            self._end(sandbox, EndReason.FINISHED)

    def sandboxes(self, *, owner: str) -> list[Sandbox]:
        return [sandbox for sandbox in self._live.values() if sandbox.owner == owner]

    async def sandbox(self, id: str, *, owner: str) -> Sandbox:
        if id in self._live and self._live[id].owner == owner:
            return self._live[id]
        if self._ended.get(id) == owner:
            raise NotFoundError(f"sandbox {id!r} has ended", code="sandbox_ended")
        raise NotFoundError(f"there is no sandbox {id!r}", code="sandbox_not_found")

    async def awake(self, id: str, *, owner: str) -> Sandbox:
        return await self.sandbox(id, owner=owner)

    async def pause(self, id: str, *, owner: str, **_: Any) -> Sandbox:
        return await self.sandbox(id, owner=owner)

    async def resume(self, id: str, *, owner: str, **_: Any) -> Sandbox:
        return await self.sandbox(id, owner=owner)

    async def rollback(self, id: str, *, owner: str, checkpoint: str) -> Sandbox:
        self.find_checkpoint(checkpoint, owner=owner)
        return await self.sandbox(id, owner=owner)

    async def checkpoint(self, id: str, *, owner: str, name: str | None, **_: Any) -> Checkpoint:
        return _kept(await self.sandbox(id, owner=owner), name)

    async def checkpoints(self, *, owner: str, **_: Any) -> list[Checkpoint]:
        return [_kept(sandbox, None) for sandbox in self.sandboxes(owner=owner)]

    def find_checkpoint(self, id_or_name: str, *, owner: str) -> Checkpoint:
        for sandbox in self.sandboxes(owner=owner):
            if sandbox.id == id_or_name:
                return _kept(sandbox, None)
        raise NotFoundError(f"no checkpoint {id_or_name!r}", code="checkpoint_not_found")

    async def export_checkpoint(
        self, id_or_name: str, *, owner: str, **_: Any
    ) -> AsyncGenerator[bytes, None]:
        self.find_checkpoint(id_or_name, owner=owner)
        yield b"parcel"

    async def import_checkpoint(self, chunks: AsyncIterator[bytes], **_: Any) -> Checkpoint:
        async for _chunk in chunks:
            pass
        raise InvalidRequestError("no exported checkpoint", code="parcel_damaged")

    async def remove_checkpoint(self, id_or_name: str, *, owner: str) -> None:
        self.find_checkpoint(id_or_name, owner=owner)

    async def fork(
        self, id: str, request: ForkRequest, *, owner: str
    ) -> list[Sandbox | VmpoolError]:
        if request.count > self.settings.checkpoints.children:
            raise InvalidRequestError("too many children", code="fork_too_wide")
        made: list[Sandbox | VmpoolError] = [await self.sandbox(id, owner=owner)]
        return (made + [GuestError("on paper")] * request.count)[: request.count]

    async def sandbox_by_access_token(self, id: str, token: str) -> Sandbox | None:
        sandbox = self._live.get(id)
        return sandbox if sandbox is not None and sandbox.access_token == token else None

    async def set_timeout(self, id: str, *, owner: str, timeout: float) -> Sandbox:
        sandbox = await self.sandbox(id, owner=owner)
        sandbox.extend(timeout)
        return sandbox

    async def kill(self, id: str, *, owner: str) -> None:
        self._end(await self.sandbox(id, owner=owner), EndReason.KILLED)

    async def _hold(self, claim: Claim) -> Sandbox:
        if claim.template != TEMPLATE:
            self.status(claim.template)
        clone: Any = PaperClone()
        sandbox = Sandbox(id=new_id(), clone=clone, claim=claim, acquire_ns=0)
        self._live[sandbox.id] = sandbox
        return sandbox

    def _end(self, sandbox: Sandbox, reason: EndReason) -> None:
        sandbox.end(reason)
        self._ended[sandbox.id] = self._live.pop(sandbox.id).owner


def _kept(sandbox: Sandbox, name: str | None) -> Checkpoint:
    """Return a checkpoint under the id of its sandbox."""
    return Checkpoint(
        id=sandbox.id,
        name=name,
        owner=sandbox.owner,
        sandbox_id=sandbox.id,
        template=sandbox.template,
        base_id="0",
        created_ns=0,
        dirty_bytes=0,
        size_bytes=0,
        purpose=Purpose.KEPT,
        key=b"",
        saved_ns=0,
    )
