"""Processor: what QEMU can make a guest's virtual CPUs here, and what it has made them.

The names of features are QEMU's own, asked of it each time: a later version knows more of them. It
does not decide which processor fits which snapshot.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from vmpool.engine.qemu.answers import malformed
from vmpool.errors import HostError
from vmpool.model import Accelerator, Processor

if TYPE_CHECKING:
    from vmpool.engine.qemu.monitor import Monitor
    from vmpool.model import MachineSpec

_ALL = {
    Accelerator.KVM: "host",
    Accelerator.TCG: "max",
}
"""The model that is all that an accelerator has."""


async def offered(monitor: Monitor, spec: MachineSpec) -> Processor:
    """Return all that `spec`'s accelerator can give a guest of this QEMU, which has no machine yet.

    A machine's own `-cpu` would change the answer.

    Raises:
        HostError: The spec's CPU model is not among it; code `cpu_model_unfit`.
        EngineError: As `Monitor.execute`.
    """
    await _require_model(monitor, spec)
    properties = await _expand(monitor, _ALL[spec.accelerator])
    return Processor(vendor=properties["vendor"], features=frozenset(_features(properties)))


async def of_guest(monitor: Monitor) -> Processor:
    """Return what the first virtual CPU is; the others are its equals.

    Raises:
        EngineError: As `Monitor.execute`.
    """
    path = (await monitor.execute("query-cpus-fast"))[0]["qom-path"]

    async def value(name: str) -> Any:
        return await monitor.execute("qom-get", path=path, property=name)

    # No guest has more than the model that has all; which of it this one has, only its CPU knows.
    names = _features(await _expand(monitor, "max"))
    vendor, *values = await asyncio.gather(value("vendor"), *map(value, names))
    if not isinstance(vendor, str):
        raise malformed("qom-get", "no vendor")
    features = frozenset(name for name, has in zip(names, values, strict=True) if has)
    return Processor(vendor=vendor, features=features)


async def _require_model(monitor: Monitor, spec: MachineSpec) -> None:
    model = spec.cpu_model.partition(",")[0]
    definitions = await monitor.execute("query-cpu-definitions")
    found = next((one for one in definitions if one["name"] == model), None)
    if found is None:
        what = f"QEMU {spec.qemu_version} does not know the CPU model {model!r}"
    elif lacking := found.get("unavailable-features"):
        accelerator = spec.accelerator.value
        what = f"the CPU model {model!r} needs what {accelerator!r} lacks here: "
        what += ", ".join(lacking)
    else:
        return
    raise HostError(
        what,
        code="cpu_model_unfit",
        remedy="choose another cpu_model, or none for all that this host has; "
        "`qemu-system-x86_64 -cpu help` lists them",
    )


def _features(properties: dict[str, Any]) -> list[str]:
    return [name for name, value in properties.items() if value is True]


async def _expand(monitor: Monitor, model: str) -> dict[str, Any]:
    """Return all properties of a model that say what it is, each under one name."""
    what = {"type": "static", "model": {"name": model}}
    answer = await monitor.execute("query-cpu-model-expansion", **what)
    properties: dict[str, Any] = answer["model"]["props"]
    if not isinstance(properties.get("vendor"), str):
        raise malformed("query-cpu-model-expansion", "no vendor")
    return properties
