"""Making a template: what it is named by, what it leaves, and what its author learns."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import fake_host, stepping
from tests.api.conftest import IMAGE, place_image
from tests.fakes import FakeEngine, Faults
from tests.small_disk import mounted
from vmpool import template
from vmpool.errors import DiskFullError, EngineError, GuestError
from vmpool.image import Image, Library
from vmpool.model import MIB, MachineSpec
from vmpool_agent import wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool.snapshot import Snapshot

FAILED = EngineError("as the test wants it", code="qmp_refused")


@dataclass
class Bench:
    """An engine, an image, and places for what is made of it."""

    engine: FakeEngine
    image: Image
    spec: MachineSpec
    state: Path
    said: list[str]

    async def make(
        self, *, boot_timeout: float = 60.0, progress: Callable[[str], None] | None = None
    ) -> Snapshot:
        return await template.make(
            self.engine,
            self.image,
            self.spec,
            snapshots=self.state / "snapshots",
            run=self.state / "clones",
            boot_timeout=boot_timeout,
            progress=progress or self.said.append,
        )

    @property
    def left(self) -> list[Path]:
        """What is in the two directories."""
        return [path for name in ("snapshots", "clones") for path in (self.state / name).iterdir()]


@pytest.fixture
def bench(engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    state = tmp_path_factory.mktemp("t")
    place_image(state)
    for name in ("snapshots", "clones"):
        (state / name).mkdir()
    image = Library(state).load(IMAGE)
    return Bench(engine, image, fake_host.spec_of(state, engine, image.digest), state, [])


def test_a_snapshot_is_named_by_what_it_is_made_of(bench: Bench) -> None:
    spec = bench.spec
    others = [
        template.snapshot_id("other", spec),
        template.snapshot_id("image", replace(spec, memory_bytes=512 * MIB)),
        template.snapshot_id("image", replace(spec, vcpus=2)),
        template.snapshot_id("image", replace(spec, qemu_version="11.0.0")),
    ]
    name = template.snapshot_id("image", spec)
    assert len({name, *others}) == 1 + len(others)
    assert template.snapshot_id("image", replace(spec, root=Path("/elsewhere"))) == name


async def test_a_template_leaves_its_snapshot_and_nothing_else(bench: Bench) -> None:
    made = await bench.make()
    assert bench.left == [made.directory]
    assert made.directory.name == template.snapshot_id(bench.image.digest, bench.spec)
    assert made.spec == bench.spec
    made.verify()
    assert not made.manifest.spec.root.is_absolute()  # the state directory can be moved


@pytest.mark.parametrize(
    "faults",
    [Faults(boot=FAILED), Faults(pause=FAILED), Faults(save=FAILED)],
    ids=["boot", "pause", "save"],
)
async def test_a_step_of_the_engine_that_fails_leaves_nothing(bench: Bench, faults: Faults) -> None:
    bench.engine.faults = faults
    with pytest.raises(EngineError, match="as the test wants it"):
        await bench.make()
    assert not bench.left
    assert bench.engine.boots == 1


async def test_a_guest_that_ends_as_it_boots_is_quoted_to_the_images_author(bench: Bench) -> None:
    bench.engine.faults = Faults(
        guest=("--lie", "panic"),
        death=GuestError("the guest's kernel panicked", code="guest_panicked"),
    )
    with pytest.raises(EngineError) as raised:
        await bench.make()
    assert raised.value.error_code == "guest_boot_failed"
    assert "the guest's kernel panicked" in raised.value.message
    assert "Kernel panic - not syncing: no working init" in raised.value.message
    assert raised.value.message.isprintable()
    assert not bench.left


async def test_a_disk_that_fills_while_a_guest_boots_is_not_the_images_fault(bench: Bench) -> None:
    full = DiskFullError("no space left for the guest's memory")
    bench.engine.faults = Faults(guest=("--lie", "panic"), death=full)
    with pytest.raises(DiskFullError) as raised:
        await bench.make()
    assert raised.value is full
    assert not bench.left


async def test_a_guest_that_never_answers_is_tried_once_more_and_then_given_up(
    bench: Bench,
) -> None:
    bench.engine.faults = Faults(guest=("--lie", "silence"))
    with pytest.raises(GuestError) as raised:
        await bench.make(boot_timeout=0.3)
    assert raised.value.error_code == "guest_unreachable"
    assert bench.engine.boots == template.BOOT_ATTEMPTS
    assert any("once more" in word for word in bench.said)
    assert not bench.left


async def test_a_guest_that_answers_at_the_second_try_makes_a_template(bench: Bench) -> None:
    bench.engine.faults = Faults(guest=("--lie", "hostname"))

    def mend(word: str) -> None:
        bench.said.append(word)
        if "once more" in word:
            bench.engine.faults = Faults()

    made = await template.make(
        bench.engine,
        bench.image,
        bench.spec,
        snapshots=bench.state / "snapshots",
        run=bench.state / "clones",
        boot_timeout=60.0,
        progress=mend,
    )
    assert bench.left == [made.directory]
    assert bench.engine.boots == 2


class Watched(ThreadPoolExecutor):
    """Threads of which one knows whether they still work."""

    def __init__(self) -> None:
        super().__init__()
        self._begun: list[Future[Any]] = []

    def submit(self, *work: Any, **arguments: Any) -> Future[Any]:
        self._begun.append(super().submit(*work, **arguments))
        return self._begun[-1]

    @property
    def idle(self) -> bool:
        """Whether all that was begun is done."""
        return all(work.done() for work in self._begun)


@pytest.mark.parametrize("insistence", stepping.Insistence)
async def test_a_template_cancelled_at_any_step_leaves_nothing_or_all_of_it(
    bench: Bench, insistence: stepping.Insistence
) -> None:
    threads = Watched()
    asyncio.get_running_loop().set_default_executor(threads)
    places, made = await stepping.places(bench.make())
    before = asyncio.all_tasks()
    for place in places:
        made.remove()
        await stepping.cancel_at(place, bench.make(), insistence)
        assert threads.idle, place
        assert bench.left in ([], [made.directory]), place
        if bench.left:
            made.verify()
        assert asyncio.all_tasks() == before, place


@pytest.mark.parametrize("options", [("size=4k",), ("size=8k",), ("nr_inodes=1",)])
async def test_a_full_disk_is_told_as_such_and_holds_nothing_of_it(
    bench: Bench, options: tuple[str, ...]
) -> None:
    with mounted(bench.state / "snapshots", *options):
        with pytest.raises(DiskFullError):
            await bench.make()
        assert not bench.left


async def test_a_template_obeys_nobody_yet_when_it_is_saved(bench: Bench) -> None:
    obeyed = []

    def progress(step: str) -> None:
        if step.startswith("saving"):
            (machine,) = (bench.state / "clones").iterdir()
            host = wire.Connection(wire.Role.HOST)
            host.synchronise(bytes(wire.NONCE_SIZE), bytes(wire.KEY_SIZE))
            with socket.socket(socket.AF_UNIX) as stream:
                stream.settimeout(10)
                stream.connect(str(machine / "agent"))
                stream.sendall(host.take())
                host.receive(stream.recv(4096))
            obeyed.append(host.synchronised)

    await bench.make(progress=progress)
    assert obeyed == [True]
