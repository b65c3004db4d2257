"""A real host whose machines are local processes, and images that only a fake engine can boot."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from typing import TYPE_CHECKING, Any

from tests.api.conftest import IMAGE, place_image
from tests.fakes import FakeEngine
from vmpool.catalogue import TemplateRequest
from vmpool.config import CheckpointSettings, Settings
from vmpool.host import CreateRequest, Host, HostFacts
from vmpool.model import Accelerator, MachineSpec, Transport
from vmpool.opening import Base, open_host
from vmpool.policy import Limits
from vmpool.run import RunRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from vmpool.model import Code, Command

OWNER = "local"

SPARELESS = Limits(ready=0)
"""Restores when somebody asks, so that a test knows what runs."""


def furnish(state: Path, made: Path) -> None:
    """Put an image and, once one was made, its snapshot into a state directory.

    Args:
        made: What `keep` has kept.
    """
    if made.exists():
        shutil.copytree(made, state, dirs_exist_ok=True)
    else:
        place_image(state)


def keep(state: Path, made: Path) -> None:
    """Keep image and snapshot for other tests: they are named by what they were made of."""
    if not made.exists():
        for name in ("images", "snapshots"):
            shutil.copytree(state / name, made / name)
        shutil.copy2(state / "host-key", made / "host-key")


@contextlib.asynccontextmanager
async def opened(
    state: Path,
    engine: FakeEngine,
    *,
    progress: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> AsyncIterator[Host]:
    """Open a host on `state` over a fake engine."""
    facts = HostFacts(
        accelerator=Accelerator.TCG,
        accelerator_reason="",
        transport=Transport.SERIAL,
        qemu_version=engine.version,
    )
    quiet = {"checkpoints": CheckpointSettings(waiting=0)}  # so that a test knows what runs
    wanted = Settings(**{"state": state, "run": state / "run"} | quiet | settings)
    async with open_host(wanted, progress=progress, base=Base(engine=engine, facts=facts)) as host:
        yield host


async def add_template(
    host: Host, name: str = IMAGE, *, limits: Limits = SPARELESS, **request: Any
) -> None:
    """Make a template of the image ready."""
    await host.catalogue.add(
        TemplateRequest(name=name, image=IMAGE, limits=limits, **request), progress=lambda _: None
    )


async def until(condition: Callable[[], object]) -> None:
    """Return once `condition` holds, for what happens behind everybody's back."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - neither has an event that a test could wait on
            await asyncio.sleep(0.001)


def wanted(**request: Any) -> CreateRequest:
    """Return a request for a sandbox that is patient in all that it does not say."""
    patient: dict[str, Any] = {"template": IMAGE, "timeout": 600.0, "wait": 60.0}
    return CreateRequest(**patient | request)


def spec_of(state: Path, engine: FakeEngine, digest: str, **fields: Any) -> MachineSpec:
    """Return a machine for the image."""
    return MachineSpec(
        root=state / "images" / digest / "root.erofs",
        memory_bytes=256 << 20,
        accelerator=Accelerator.TCG,
        transport=Transport.SERIAL,
        qemu_version=engine.version,
        **fields,
    )


def run_request(what: Command | Code, **fields: Any) -> RunRequest:
    """Return a request for a run that is patient and generous in all that it does not say."""
    limits = {"output_limit_bytes": 1 << 20, "result_limit_bytes": 1 << 20}
    return RunRequest(
        template=IMAGE, what=what, wait=60.0, **limits | {"file_limit_bytes": 1 << 20} | fields
    )
