"""Sizing: the base of a build, in a machine as large as its client wants.

A machine's size is fixed when its image is booted. So a base that is of an image is booted once
more in another size, as a template of the tenant's own that later builds find; one that was made of
a checkpoint, or is one, keeps the size that it had.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Final

from vmpool.api.e2b import naming
from vmpool.api.e2b.templates.build import Level
from vmpool.catalogue import TemplateRequest, TemplateState
from vmpool.derivation import number_of
from vmpool.errors import NotFoundError, VmpoolError
from vmpool.model import MIB
from vmpool.policy import Limits
from vmpool.quota import Usage
from vmpool.template_key import name_of, owner_of

if TYPE_CHECKING:
    from vmpool.api.e2b.templates.build import Build
    from vmpool.entry import TemplateStatus
    from vmpool.host import Host

log = logging.getLogger(__name__)

SIZED: Final = "sized."
"""Begins the name of a base that was booted in another size."""

SIZED_MOST: Final = 4
"""Of one tenant; the oldest go first."""


async def sized(host: Host, build: Build, source: naming.Source) -> naming.Source:
    """Return what a build is to begin with: its base, or that in the size that is wanted.

    Raises:
        QuotaError: The tenant may not have a machine of that size.
        VmpoolError: It could not be booted.
    """
    if (build.vcpus, build.memory_bytes) == (None, None):
        return source
    status = None if source.checkpoint is not None else await _settled(host, build, source)
    if status is None or status.snapshot is None or number_of(status.snapshot) is not None:
        build.say(
            "cpuCount and memoryMB do nothing here: a base that was made of a sandbox keeps its"
            " size",
            Level.WARN,
        )
        return source
    wanted = Usage(
        vcpus=build.vcpus or status.spec.vcpus,
        memory_bytes=build.memory_bytes or status.spec.memory_bytes,
    )
    if wanted == Usage(vcpus=status.spec.vcpus, memory_bytes=status.spec.memory_bytes):
        return source
    # No sandbox of a size that the tenant may not have: nor is it booted for one.
    await host.quotas.refresh()
    host.quotas.take(build.owner, wanted).give_back()
    return await _booted(host, build, status, wanted)


async def _settled(host: Host, build: Build, source: naming.Source) -> TemplateStatus:
    key = host.catalogue.resolve(source.template, owner=build.owner)
    return await host.catalogue.settled(key)


async def _booted(host: Host, build: Build, base: TemplateStatus, wanted: Usage) -> naming.Source:
    """Return the base's image in another size, booted unless an earlier build has done it."""
    memory_mib = wanted.memory_bytes // MIB
    name = f"{SIZED}{base.image[:16]}.{wanted.vcpus}x{memory_mib}"
    build.say(f"[base] a machine of {wanted.vcpus} processors and {memory_mib} MiB")
    request = TemplateRequest(
        name=name,
        image=base.image,
        owner=build.owner,
        limits=Limits(ready=0),
        memory_bytes=wanted.memory_bytes,
        vcpus=wanted.vcpus,
        disk_bytes=base.spec.disk_bytes,
    )
    with contextlib.suppress(NotFoundError):
        if (await host.catalogue.settled(request.key)).state is TemplateState.READY:
            return naming.Source(template=name)
    await host.catalogue.add(request, progress=lambda step: log.info("%s: %s", name, step))
    host.audit(build.owner, "template.create", request.key, {"build": build.id})
    await _make_room(host, build.owner, but=request.key)
    return naming.Source(template=name)


async def _make_room(host: Host, owner: str, *, but: str) -> None:
    every = [
        each
        for each in host.catalogue.statuses
        if owner_of(each.name) == owner
        and name_of(each.name).startswith(SIZED)
        and each.name != but
    ]
    every.sort(key=lambda each: each.created_ns, reverse=True)
    for each in every[SIZED_MOST - 1 :]:
        try:
            await host.catalogue.remove(each.name)
        except VmpoolError as err:  # somebody makes or removes it at this moment
            log.info("template=%s stays: %s", each.name, err)
