"""Blocking: the client and its things for code without asyncio.

Each is the asynchronous one behind it, called through a portal; what a call does, takes and raises
is said there.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Unpack

from vmpool.client.asynchronous import AsyncClient
from vmpool.client.blocking_files import Files
from vmpool.client.blocking_network import Network
from vmpool.client.blocking_ports import Ports
from vmpool.client.blocking_processes import Processes
from vmpool.client.portal import Portal, entered, iterated
from vmpool.errors import VmpoolError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from vmpool.client.checkpoints import AsyncCheckpoints, Cargo, Confidence, IfTaken, Keep
    from vmpool.client.contexts import AsyncContext, AsyncContexts, ContextInfo
    from vmpool.client.events import Event
    from vmpool.client.execution import AsyncExecution, AsyncInteraction
    from vmpool.client.options import (
        CellOptions,
        ContextOptions,
        ExecOptions,
        ForkOptions,
        RunOptions,
        SandboxOptions,
        TaskOptions,
        TemplateOptions,
    )
    from vmpool.client.ports import Forward
    from vmpool.client.result import Result
    from vmpool.client.sandbox import AsyncSandbox
    from vmpool.client.values import (
        CheckpointInfo,
        Health,
        ImageInfo,
        SandboxInfo,
        TemplateInfo,
        UsageInfo,
    )


class Client:
    """A client of one server; arguments as those of `AsyncClient`.

    Close it when done, or use it in `with`. Threads may share it; processes may not.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        token: str | None = None,
        token_file: Path | None = None,
        state: Path | None = None,
        timeout: float | None = None,
    ) -> None:
        self._behind = AsyncClient(
            server, token=token, token_file=token_file, state=state, timeout=timeout
        )
        self._portal = Portal(self._behind.close)
        self.checkpoints = Checkpoints(self._portal, self._behind.checkpoints)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    @property
    def url(self) -> str:
        """The server's address."""
        return self._behind.url

    def __enter__(self) -> Self:
        """Return it; nothing is connected before the first call."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """As `AsyncClient.close`; calls that other threads are in are cancelled. *Idempotent.*"""
        self._portal.close()

    def run(self, code: str | None = None, **options: Unpack[RunOptions]) -> Result:
        """As `AsyncClient.run`."""
        return self._portal.call(self._behind.run(code, **options))

    def create(self, **options: Unpack[SandboxOptions]) -> Sandbox:
        """As `AsyncClient.create`."""
        return Sandbox(self._portal, self._portal.call(self._behind.create(**options)))

    @contextlib.contextmanager
    def sandbox(self, **options: Unpack[SandboxOptions]) -> Iterator[Sandbox]:
        """As `AsyncClient.sandbox`."""
        with entered(self._portal, self._behind.sandbox(**options)) as behind:
            yield Sandbox(self._portal, behind)

    def attach(self, id: str) -> Sandbox:
        """As `AsyncClient.attach`."""
        return Sandbox(self._portal, self._behind.attach(id))

    def sandboxes(self, metadata: Mapping[str, str] | None = None) -> Iterator[SandboxInfo]:
        """As `AsyncClient.sandboxes`."""
        return iterated(self._portal, self._behind.sandboxes(metadata))

    def templates(self) -> tuple[TemplateInfo, ...]:
        """As `AsyncClient.templates`."""
        return self._portal.call(self._behind.templates())

    def template(self, name: str) -> TemplateInfo:
        """As `AsyncClient.template`."""
        return self._portal.call(self._behind.template(name))

    def create_template(
        self, name: str, image: str | None = None, **options: Unpack[TemplateOptions]
    ) -> TemplateInfo:
        """As `AsyncClient.create_template`."""
        return self._portal.call(self._behind.create_template(name, image, **options))

    def remove_template(self, name: str) -> None:
        """As `AsyncClient.remove_template`."""
        self._portal.call(self._behind.remove_template(name))

    def images(self) -> tuple[ImageInfo, ...]:
        """As `AsyncClient.images`."""
        return self._portal.call(self._behind.images())

    def usage(self, tenant: str | None = None) -> UsageInfo:
        """As `AsyncClient.usage`."""
        return self._portal.call(self._behind.usage(tenant))

    def health(self) -> Health:
        """As `AsyncClient.health`."""
        return self._portal.call(self._behind.health())


class Sandbox:
    """One sandbox of a server, as `AsyncSandbox`. Made by a client."""

    def __init__(self, portal: Portal, behind: AsyncSandbox) -> None:
        self.id = behind.id
        self.created = behind.created
        self.files = Files(portal, behind.files)
        self.processes = Processes(portal, behind.processes)
        self.contexts = Contexts(portal, behind.contexts)
        self.ports = Ports(portal, behind.ports)
        self.network = Network(portal, behind.network)
        self._portal = portal
        self._behind = behind

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def run(self, code: str | None = None, **options: Unpack[ExecOptions]) -> Result:
        """As `AsyncSandbox.run`."""
        return self._portal.call(self._behind.run(code, **options))

    def run_code(
        self, code: str, *, language: str = "python", **options: Unpack[CellOptions]
    ) -> Result:
        """As `AsyncSandbox.run_code`."""
        return self._portal.call(self._behind.run_code(code, language=language, **options))

    @contextlib.contextmanager
    def exec(self, code: str | None = None, **options: Unpack[ExecOptions]) -> Iterator[Execution]:
        """As `AsyncSandbox.exec`."""
        with entered(self._portal, self._behind.exec(code, **options)) as behind:
            yield Execution(self._portal, behind)

    @contextlib.contextmanager
    def interact(
        self, code: str | None = None, **options: Unpack[TaskOptions]
    ) -> Iterator[Interaction]:
        """As `AsyncSandbox.interact`."""
        with entered(self._portal, self._behind.interact(code, **options)) as behind:
            yield Interaction(self._portal, behind)

    def forward(self, port: int, local_port: int = 0) -> contextlib.AbstractContextManager[Forward]:
        """As `AsyncSandbox.forward`."""
        return self.ports[port].forward(local_port)

    def look(self) -> SandboxInfo:
        """As `AsyncSandbox.look`."""
        return self._portal.call(self._behind.look())

    def pause(self, *, keep: Keep = "memory") -> SandboxInfo:
        """As `AsyncSandbox.pause`."""
        return self._portal.call(self._behind.pause(keep=keep))

    def resume(self, *, timeout: float | None = None, keep: Keep = "memory") -> SandboxInfo:
        """As `AsyncSandbox.resume`."""
        return self._portal.call(self._behind.resume(timeout=timeout, keep=keep))

    def checkpoint(
        self,
        name: str | None = None,
        *,
        if_taken: IfTaken = "refuse",
        keep: Keep = "memory",
    ) -> CheckpointInfo:
        """As `AsyncSandbox.checkpoint`."""
        return self._portal.call(self._behind.checkpoint(name, if_taken=if_taken, keep=keep))

    def rollback(self, checkpoint: CheckpointInfo | str) -> SandboxInfo:
        """As `AsyncSandbox.rollback`."""
        return self._portal.call(self._behind.rollback(checkpoint))

    def fork(self, count: int = 1, **options: Unpack[ForkOptions]) -> list[Sandbox]:
        """As `AsyncSandbox.fork`."""
        made = self._portal.call(self._behind.fork(count, **options))
        return [Sandbox(self._portal, child) for child in made]

    def try_fork(
        self, count: int = 1, **options: Unpack[ForkOptions]
    ) -> list[Sandbox | VmpoolError]:
        """As `AsyncSandbox.try_fork`."""
        found = self._portal.call(self._behind.try_fork(count, **options))
        return [
            child if isinstance(child, VmpoolError) else Sandbox(self._portal, child)
            for child in found
        ]

    def set_timeout(self, timeout: float) -> SandboxInfo:
        """As `AsyncSandbox.set_timeout`."""
        return self._portal.call(self._behind.set_timeout(timeout))

    def kill(self) -> None:
        """As `AsyncSandbox.kill`. *Idempotent.*"""
        self._portal.call(self._behind.kill())

    def detach(self) -> None:
        """As `AsyncSandbox.detach`."""
        self._behind.detach()


class Checkpoints:
    """The checkpoints of one server, as `AsyncCheckpoints`."""

    def __init__(self, portal: Portal, behind: AsyncCheckpoints) -> None:
        self._portal = portal
        self._behind = behind

    def list(self, sandbox: Sandbox | str | None = None) -> tuple[CheckpointInfo, ...]:
        """As `AsyncCheckpoints.list`."""
        wanted = sandbox if sandbox is None or isinstance(sandbox, str) else sandbox.id
        return self._portal.call(self._behind.list(wanted))

    def look(self, checkpoint: CheckpointInfo | str) -> CheckpointInfo:
        """As `AsyncCheckpoints.look`."""
        return self._portal.call(self._behind.look(checkpoint))

    def remove(self, checkpoint: CheckpointInfo | str) -> None:
        """As `AsyncCheckpoints.remove`."""
        self._portal.call(self._behind.remove(checkpoint))

    def export_to(
        self,
        checkpoint: CheckpointInfo | str,
        target: Path | str,
        *,
        cargo: Cargo = "delta",
        secrets: Confidence = "keep",
    ) -> None:
        """As `AsyncCheckpoints.export_to`."""
        self._portal.call(self._behind.export_to(checkpoint, target, cargo=cargo, secrets=secrets))

    def import_from(
        self, source: Path | str, *, name: str | None = None, trust: str | None = None
    ) -> CheckpointInfo:
        """As `AsyncCheckpoints.import_from`."""
        return self._portal.call(self._behind.import_from(source, name=name, trust=trust))


class Contexts:
    """The contexts of one sandbox, as `AsyncContexts`."""

    def __init__(self, portal: Portal, behind: AsyncContexts) -> None:
        self._portal = portal
        self._behind = behind

    def __getitem__(self, id: str) -> Context:
        """As `AsyncContexts.__getitem__`."""
        return Context(self._portal, self._behind[id])

    def create(self, **options: Unpack[ContextOptions]) -> Context:
        """As `AsyncContexts.create`."""
        return Context(self._portal, self._portal.call(self._behind.create(**options)))

    def list(self) -> tuple[ContextInfo, ...]:
        """As `AsyncContexts.list`."""
        return self._portal.call(self._behind.list())


class Context:
    """One interpreter, as `AsyncContext`."""

    def __init__(self, portal: Portal, behind: AsyncContext) -> None:
        self.id = behind.id
        self.created = behind.created
        self._portal = portal
        self._behind = behind

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def run(self, code: str, **options: Unpack[CellOptions]) -> Result:
        """As `AsyncContext.run`."""
        return self._portal.call(self._behind.run(code, **options))

    @contextlib.contextmanager
    def exec(self, code: str, **options: Unpack[CellOptions]) -> Iterator[Execution]:
        """As `AsyncContext.exec`."""
        with entered(self._portal, self._behind.exec(code, **options)) as behind:
            yield Execution(self._portal, behind)

    def interrupt(self) -> bool:
        """As `AsyncContext.interrupt`."""
        return self._portal.call(self._behind.interrupt())

    def restart(self) -> ContextInfo:
        """As `AsyncContext.restart`."""
        return self._portal.call(self._behind.restart())

    def close(self) -> None:
        """As `AsyncContext.close`. *Idempotent.*"""
        self._portal.call(self._behind.close())


class Execution:
    """A running program, as `AsyncExecution`; iterate over it for its events."""

    def __init__(self, portal: Portal, behind: AsyncExecution) -> None:
        self._portal = portal
        self._behind = behind

    def __iter__(self) -> Iterator[Event]:
        """Yield what happens, up to and with the end, as `AsyncExecution`."""
        return iterated(self._portal, aiter(self._behind))

    def result(self) -> Result:
        """As `AsyncExecution.result`."""
        return self._portal.call(self._behind.result())


class Interaction:
    """A running program that takes input while it runs, as `AsyncInteraction`."""

    def __init__(self, portal: Portal, behind: AsyncInteraction) -> None:
        self.execution = Execution(portal, behind.execution)
        self._portal = portal
        self._behind = behind

    def __iter__(self) -> Iterator[Event]:
        """Yield what happens, up to and with the end, as `AsyncExecution`."""
        return iter(self.execution)

    def result(self) -> Result:
        """As `AsyncExecution.result`."""
        return self.execution.result()

    def write(self, data: bytes | str) -> None:
        """As `AsyncInteraction.write`."""
        self._portal.call(self._behind.write(data))

    def close_stdin(self) -> None:
        """As `AsyncInteraction.close_stdin`."""
        self._portal.call(self._behind.close_stdin())

    def signal(self, number: int) -> None:
        """As `AsyncInteraction.signal`."""
        self._portal.call(self._behind.signal(number))
