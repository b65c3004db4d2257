"""What QEMU alone promises: what a clone sees of others, how a guest ends, who is an orphan."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from tests import tiny_guest, watch
from tests.small_disk import mounted
from vmpool import snapshot
from vmpool.engine.qemu import QemuEngine, monitor, probe, reap, record, rom, sparse
from vmpool.engine.qemu.console import LIMIT_BYTES
from vmpool.errors import EngineError, HostError, InvalidRequestError
from vmpool.model import MIB, Accelerator, Attachment, MachineSpec, SerialAddress, Transport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from vmpool.snapshot import Snapshot


@pytest.fixture
def run() -> Iterator[Path]:
    """A directory with a short name: a socket's path has at most 107 bytes."""
    directory = Path(f"/tmp/vmpool-{secrets.token_hex(4)}")
    directory.mkdir(mode=0o700)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
async def engine() -> AsyncIterator[QemuEngine]:
    found = await QemuEngine.detect()
    yield found
    found.close()


@pytest.fixture
def spec(engine: QemuEngine, tmp_path: Path) -> MachineSpec:
    root = tmp_path / "root"
    root.write_bytes(bytes(4096))
    return MachineSpec(
        root=root,
        memory_bytes=32 * MIB,
        accelerator=Accelerator.TCG,
        transport=Transport.SERIAL,
        qemu_version=engine.version,
    )


def attachment(run: Path) -> Attachment:
    directory = run / secrets.token_hex(4)
    directory.mkdir(mode=0o700)
    return Attachment(directory=directory)


async def template_of(engine: QemuEngine, spec: MachineSpec, run: Path, code: bytes) -> Snapshot:
    at = attachment(run)
    machine = await engine.boot(spec, tiny_guest.kernel(run, code), at)
    await watch.holds(at.directory / "console", tiny_guest.UP)
    await machine.pause()
    processor = await machine.processor()
    partial = snapshot.begin(run)
    await machine.save(partial)
    await machine.kill()
    manifest = snapshot.describe(
        partial, id="template", image="none", spec=spec, processor=processor, created_ns=1
    )
    return snapshot.publish(partial, manifest, run)


async def test_a_clone_learns_of_its_restore_and_sees_no_other_clones_memory(
    engine: QemuEngine, spec: MachineSpec, run: Path
) -> None:
    template = await template_of(engine, spec, run, tiny_guest.WITNESS)
    for _ in range(2):  # the second would panic if it saw what the first wrote
        clone = await (await engine.prepare(template, attachment(run))).load(template)
        await clone.resume()
        async with asyncio.timeout(30):
            error = await clone.obituary()
        assert error.error_code == "guest_powered_off"
        assert await clone.wait() == 0
        await clone.kill()
    template.verify()


async def test_no_clone_announces_that_it_has_moved(
    engine: QemuEngine, spec: MachineSpec, run: Path
) -> None:
    template = await template_of(engine, spec, run, tiny_guest.IDLE)
    shell = await engine.prepare(template, attachment(run))
    parameters = await shell._hypervisor.execute("query-migrate-parameters")
    await shell.kill()
    assert parameters["announce-rounds"] == 0


async def test_a_guests_panic_ends_the_machine_and_is_told(
    engine: QemuEngine, spec: MachineSpec, run: Path
) -> None:
    machine = await engine.boot(spec, tiny_guest.kernel(run, tiny_guest.PANIC), attachment(run))
    async with asyncio.timeout(30):
        error = await machine.obituary()
    assert error.error_code == "guest_panicked"
    assert await machine.wait() == 1
    await machine.kill()


async def test_a_guest_that_floods_the_control_socket_is_cut_off_and_the_loop_goes_on(
    engine: QemuEngine, spec: MachineSpec, run: Path
) -> None:
    machine = await engine.boot(spec, tiny_guest.kernel(run, tiny_guest.FLOOD), attachment(run))
    try:
        async with asyncio.timeout(30):
            error = await machine.obituary()
    finally:
        await machine.kill()
    assert error.error_code == "guest_event_flood"
    with pytest.raises(EngineError) as caught:
        await machine.pause()
    assert caught.value.error_code == "qemu_died"


async def test_a_disk_that_fills_as_a_guest_writes_to_its_memory_is_told_as_such(
    engine: QemuEngine, spec: MachineSpec, run: Path
) -> None:
    kernel = tiny_guest.kernel(run, tiny_guest.IDLE)
    at = attachment(run)
    with mounted(at.directory, "size=300k", "mode=700"):
        machine = await engine.boot(spec, kernel, at)
        try:
            async with asyncio.timeout(30):
                error = await machine.obituary()
        finally:
            await machine.kill()
    assert error.error_code == "host_disk_full"


async def test_a_guest_that_floods_its_console_fills_no_disk_and_has_its_last_word(
    engine: QemuEngine, spec: MachineSpec, run: Path
) -> None:
    at = attachment(run)
    machine = await engine.boot(spec, tiny_guest.kernel(run, tiny_guest.CHATTER), at)
    try:
        async with asyncio.timeout(60):
            assert (await machine.obituary()).error_code == "guest_panicked"
    finally:
        await machine.kill()
    said = (at.directory / "console").read_bytes()
    assert said.rstrip(tiny_guest.LAST_WORD).endswith(b"....")
    assert said.endswith(tiny_guest.LAST_WORD)
    assert LIMIT_BYTES // 2 <= len(said) <= LIMIT_BYTES < tiny_guest.CHATTER_BYTES


async def test_an_error_carries_the_command_and_what_qemu_said(
    engine: QemuEngine, spec: MachineSpec, run: Path
) -> None:
    unknown = replace(spec, cpu_model="no-such-cpu")
    began = time.monotonic()
    with pytest.raises(EngineError) as caught:
        await engine.boot(unknown, tiny_guest.kernel(run, tiny_guest.IDLE), attachment(run))
    assert caught.value.error_code == "qemu_died"
    assert time.monotonic() - began < 10  # noticed at once, not by a deadline
    assert any(part.startswith("no-such-cpu") for part in caught.value.argv)
    assert "no-such-cpu" in caught.value.log_tail


async def test_qemu_runs_as_another_account_behind_a_seccomp_filter(
    engine: QemuEngine, spec: MachineSpec, run: Path
) -> None:
    machine = await engine.boot(spec, tiny_guest.kernel(run, tiny_guest.IDLE), attachment(run))
    lines = Path(f"/proc/{machine.pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines)
    await machine.kill()
    assert status["Seccomp"] == "2"
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapEff"], 16) == 0
    if engine.isolation.uids:
        (uid,) = {*status["Uid"].split(), *status["Gid"].split()}
        assert int(uid) in engine.isolation.uids
        assert status["Groups"].split() == []


_OPEN_AS = """
import os, sys
uid, path = int(sys.argv[1]), sys.argv[2]
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
try:
    os.open(path, os.O_RDWR)
except PermissionError:
    sys.exit(13)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives its children user ids")
async def test_a_qemu_cannot_open_the_memory_of_its_sibling(
    engine: QemuEngine, spec: MachineSpec, run: Path
) -> None:
    kernel = tiny_guest.kernel(run, tiny_guest.IDLE)
    siblings = [await engine.boot(spec, kernel, attachment(run)) for _ in range(2)]
    one, other = (Path(f"/proc/{machine.pid}") for machine in siblings)
    uid = str(one.stat().st_uid)  # whom QEMU runs as

    async def opened(path: Path) -> int:
        argv = ("/usr/bin/python3", "-c", _OPEN_AS, uid, str(path))
        return await (await asyncio.create_subprocess_exec(*argv)).wait()

    codes = [await opened(process / "mem") for process in (one, other)]
    for machine in siblings:
        await machine.kill()
    assert codes == [0, 13]  # what opens its own is what is refused the other's


@pytest.mark.parametrize("change", [{"memory_bytes": 2**63 - MIB}, {"disk_bytes": 2**63 - MIB}])
async def test_a_machine_larger_than_any_file_is_refused_in_words(
    engine: QemuEngine, spec: MachineSpec, run: Path, change: dict[str, Any]
) -> None:
    huge = replace(spec, **change)
    with pytest.raises(InvalidRequestError) as caught:
        await engine.boot(huge, tiny_guest.kernel(run, tiny_guest.IDLE), attachment(run))
    assert caught.value.error_code == "machine_too_large"


async def test_a_snapshot_of_another_version_is_not_even_started(
    engine: QemuEngine, spec: MachineSpec, run: Path
) -> None:
    other = replace(spec, qemu_version="9.9.9")
    with pytest.raises(EngineError) as caught:
        await engine.boot(other, tiny_guest.kernel(run, tiny_guest.IDLE), attachment(run))
    assert caught.value.error_code == "qemu_version_differs"


async def test_a_run_directory_too_deep_for_sockets_is_refused_in_words(
    engine: QemuEngine, spec: MachineSpec, run: Path
) -> None:
    deep = run / ("d" * 100)
    deep.mkdir()
    with pytest.raises(HostError, match="107") as caught:
        await engine.boot(spec, tiny_guest.kernel(run, tiny_guest.IDLE), Attachment(directory=deep))
    assert caught.value.error_code == "run_path_too_long"


# Orphans: exactly the process that a dead manager left, and no other.


async def test_what_a_dead_manager_left_is_reaped_once(
    engine: QemuEngine, spec: MachineSpec, run: Path
) -> None:
    at = attachment(run)
    machine = await engine.boot(spec, tiny_guest.kernel(run, tiny_guest.IDLE), at)
    assert machine.agent_address == SerialAddress(path=at.directory / "agent")
    assert await reap(at.directory)
    await machine.wait()
    assert not await reap(at.directory)
    await machine.kill()


async def test_an_orphan_without_a_record_is_found_by_its_socket(
    engine: QemuEngine, spec: MachineSpec, run: Path
) -> None:
    at = attachment(run)
    machine = await engine.boot(spec, tiny_guest.kernel(run, tiny_guest.IDLE), at)
    await machine._hypervisor.monitor.close()  # as the end of a manager would
    (at.directory / record.RECORD).unlink()
    assert await reap(at.directory)
    assert await machine.wait() == 0
    assert not await reap(at.directory)
    await machine.kill()


@pytest.mark.parametrize("change", [{"start_ticks": 1}, {"boot_id": "another boot"}])
async def test_a_stranger_with_an_orphans_pid_is_left_alone(
    spec: MachineSpec, run: Path, change: dict[str, object]
) -> None:
    at = attachment(run)
    stranger = await asyncio.create_subprocess_exec("sleep", "60")
    true = record.Record.of(stranger.pid, spec, None)
    assert true.is_alive
    structs.replace(true, **change).write(at.directory)
    assert not await reap(at.directory)
    assert stranger.returncode is None
    stranger.kill()
    await stranger.wait()


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b'{"pid": "x"}'])
async def test_a_record_that_is_none_reaps_nobody(run: Path, data: bytes) -> None:
    (run / record.RECORD).write_bytes(data)
    assert not await reap(run)


# The probe.


def test_the_probes_guest_is_64_bit_code_that_runs(tmp_path: Path, engine: QemuEngine) -> None:
    """Under TCG, which can: so what it finds under KVM is KVM's."""
    file = tmp_path / "rom"
    file.write_bytes(rom.assemble())
    with file.open("rb") as opened:
        argv = [
            part.replace("fd/4", f"fd/{opened.fileno()}") for part in probe.guest_argv("tcg", "max")
        ]
        argv = [part for part in argv if part not in {"-add-fd", "fd=3,set=3"}]
        done = subprocess.run(
            ["qemu-system-x86_64", *argv], check=False, pass_fds=[opened.fileno()], timeout=60
        )
    assert done.returncode == rom.EXIT_CODE


async def test_an_accelerator_is_chosen_with_a_reason(engine: QemuEngine) -> None:
    found = await probe.probe_accelerator("qemu-system-x86_64", engine.isolation)
    assert (found.accelerator is Accelerator.KVM) == (found.reason == "")
    assert bool(found.reason) == bool(found.remedy)


async def test_without_kvm_the_reason_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: QemuEngine
) -> None:
    monkeypatch.setattr(probe, "KVM", str(tmp_path / "kvm"))
    found = await probe.probe_accelerator("qemu-system-x86_64", engine.isolation)
    assert found.accelerator is Accelerator.TCG
    assert "there is no" in found.reason


async def test_a_kvm_that_only_opens_is_not_chosen_and_qemus_own_words_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, engine: QemuEngine
) -> None:
    monkeypatch.setattr(probe, "KVM", "/dev/zero")
    caplog.set_level(logging.INFO, logger=probe.__name__)
    found = await probe.probe_accelerator("qemu-system-x86_64", engine.isolation)
    assert found.accelerator is Accelerator.TCG
    assert found.reason == "/dev/zero opens but cannot run 64-bit guest code"
    assert "qemu-system-x86_64: " in caplog.text


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n", "10.0.2"),
        ("QEMU emulator version 8.2.50\n", "8.2.50"),
    ],
)
def test_a_version_is_read(output: str, version: str) -> None:
    assert probe.read_version("qemu", output) == version


@pytest.mark.parametrize(
    ("output", "code"),
    [("QEMU emulator version 7.2.17 (Debian)", "qemu_too_old"), ("bash: no", "qemu_unfit")],
)
def test_a_qemu_that_will_not_do_is_refused_with_a_remedy(output: str, code: str) -> None:
    with pytest.raises(HostError) as caught:
        probe.read_version("qemu", output)
    assert caught.value.error_code == code
    assert ("vmpool doctor" in caught.value.remedy) == (code == "qemu_too_old")


async def test_a_qemu_that_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(HostError) as caught:
        await QemuEngine.detect(binary="qemu-system-none")
    assert caught.value.error_code == "qemu_missing"


# Sockets and files.


def test_a_socket_is_bound_and_reached_whatever_its_path(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    server = monitor.listen(deep, "qmp")
    client = monitor.dial(deep, "qmp")
    client.close()
    server.close()
    with pytest.raises(OSError, match="refused"):
        monitor.dial(deep, "qmp")


@pytest.mark.parametrize("size_bytes", [0, 1, 4096, 3 * MIB, 3 * MIB + 5])
def test_a_sparse_copy_is_equal_and_holds_no_zero_page(tmp_path: Path, size_bytes: int) -> None:
    source = tmp_path / "source"
    data = bytearray(size_bytes)
    for offset in range(0, size_bytes, 64 << 10):
        data[offset] = 1
    source.write_bytes(data)  # every zero page written out
    with source.open("rb") as opened:
        sparse.copy(opened.fileno(), tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == data
    pages = -(-size_bytes // (64 << 10))
    assert (tmp_path / "target").stat().st_blocks * 512 <= pages * 4096 + 4096


def test_a_sparse_copy_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(EngineError), Path("/proc/self/mem").open("rb") as unreadable:
        sparse.copy(unreadable.fileno(), tmp_path / "target")
    assert not (tmp_path / "target").exists()
