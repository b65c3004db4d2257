"""The contract of an engine about disks that are kept without memory."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from msgspec import structs

from tests.contract.benches import Bench
from vmpool import snapshot
from vmpool.engine.qemu import QemuEngine
from vmpool.errors import EngineError, InvalidRequestError, SnapshotError


async def test_a_machine_is_booted_on_a_disk_and_is_of_its_template_like_any(
    bench: Bench,
) -> None:
    template = await bench.template()
    parent = await bench.restored(template, template)
    await parent.resume()
    if not bench.spec.disk_bytes:
        with pytest.raises(InvalidRequestError) as missing:
            parent.capture_disk(bench.attachment().directory)
        assert missing.value.error_code == "disk_missing"
        await parent.kill()
        return
    disk = await bench.disk(parent, template, "disk")
    assert not disk.has_memory
    assert disk.manifest.files.keys() == {"layer-00"}
    await parent.kill()
    shell = await bench.engine.prepare(template, bench.attachment())
    with pytest.raises(SnapshotError) as caught:
        await shell.load(disk)
    assert caught.value.error_code == "snapshot_unfit"
    at = bench.attachment()
    booted = await bench.engine.reboot(template, disk, bench.kernel, at)
    assert booted.spec == template.spec
    child = await bench.restored(template, await bench.checkpoint(booted, template, "whole"))
    again = await bench.disk(booted, template, "again")
    if isinstance(bench.engine, QemuEngine):
        assert len(again.layers) == len(disk.layers) + 2  # as for any: one for each capture
    await booted.release()
    adopted = await bench.engine.adopt(template, at)
    for machine in (child, adopted):
        await machine.resume()
        os.kill(machine.pid, 0)
        await machine.kill()
    for each in (template, disk, again):
        each.verify()


async def test_a_machine_is_booted_on_no_strangers_disk(bench: Bench) -> None:
    template = await bench.template()
    remade = snapshot.Base(id="template", memory="another")
    stranger = replace(
        template, manifest=structs.replace(template.manifest, id="disk", base=remade)
    )
    with pytest.raises(SnapshotError) as caught:
        await bench.engine.reboot(template, stranger, bench.kernel, bench.attachment())
    assert caught.value.error_code == "snapshot_unfit"


async def test_only_a_paused_machines_disk_is_captured(bench: Bench) -> None:
    if not bench.spec.disk_bytes:
        pytest.skip("it has none")
    template = await bench.template()
    machine = await bench.restored(template, template)
    await machine.resume()
    directory = bench.attachment().directory
    with pytest.raises(EngineError) as caught:
        async with machine.capture_disk(directory) as capture:
            await capture.take()
    assert caught.value.error_code == "machine_running"
    assert list(directory.iterdir()) == []
    await machine.kill()
