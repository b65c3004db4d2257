"""Local host: one whose guests are local processes, for what is tried of the server alone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from tests.api.conftest import IMAGE, place_image
from tests.fakes import FakeEngine
from vmpool.catalogue import TemplateRequest
from vmpool.config import Settings
from vmpool.host import Host, HostFacts
from vmpool.model import Accelerator, Transport
from vmpool.opening import Base, open_host
from vmpool.policy import Limits


@contextlib.asynccontextmanager
async def local_host(
    settings: Settings, *, engine: FakeEngine, limits: Limits
) -> AsyncIterator[Host]:
    """Yield a host that has one template."""
    place_image(settings.state)
    facts = HostFacts(
        accelerator=Accelerator.TCG,
        accelerator_reason="",
        transport=Transport.SERIAL,
        qemu_version=engine.version,
    )
    base = Base(engine=engine, facts=facts)
    async with open_host(settings, progress=lambda _: None, base=base) as host:
        request = TemplateRequest(name=IMAGE, image=IMAGE, limits=limits)
        await host.catalogue.add(request, progress=lambda _: None)
        yield host
