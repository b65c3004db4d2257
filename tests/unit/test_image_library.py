"""Images are built once, published whole, checked, and leave nothing behind when they fail.

mmdebstrap is played by a script, run as the real one is: it copies archives made here.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import stat
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.erofs_reader import Reader
from tests.mirror import RELEASE, ROOT, World, kernel_files, mirrored, write_archive
from vmpool.errors import DiskFullError, HostError, ImageError, InvalidRequestError, NotFoundError
from vmpool.image import Freshness, Library, Step, mmdebstrap, signature
from vmpool.trust import Keyring


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return mirrored(tmp_path, monkeypatch)


async def test_an_image_holds_its_root_its_kernel_and_what_it_is(world: World) -> None:
    image = await world.library.build(world.recipe, agent=b"agent")
    signature.require(image, Keyring.open(world.state))
    assert image.directory == world.state / "images" / image.digest
    assert (
        image.digest == hashlib.sha256((image.directory / "manifest.json").read_bytes()).hexdigest()
    )
    assert image.kernel.read_bytes() == b"kernel"
    assert image.defaults.memory_bytes == 384 << 20
    assert image.command_line.endswith("vmpool.python=/usr/bin/python3.13")
    assert image.manifest.kernel_release == RELEASE
    found = Reader(image.root.read_bytes()).files()
    assert found["usr/lib/vmpool/agent.pyz"].content == b"agent"
    assert "usr/share/doc" not in found
    assert world.left() == []


async def test_the_same_inputs_give_the_same_image_in_another_place(world: World) -> None:
    first = await world.library.build(world.recipe, agent=b"agent")
    second = await Library(world.state / "other").build(world.recipe, agent=b"agent")
    assert second.digest == first.digest
    assert second.root.read_bytes() == first.root.read_bytes()


async def test_a_second_build_needs_no_mirror(world: World) -> None:
    first = await world.library.build(world.recipe, agent=b"agent")
    assert world.calls() == ["kernel", "root"]
    (first.directory / signature.FILE).unlink()
    assert await world.library.build(world.recipe, agent=b"agent") == first
    signature.require(first, Keyring.open(world.state))  # built here, whoever signed it before
    assert world.calls() == []


async def test_a_changed_agent_is_packed_without_the_mirror(world: World) -> None:
    first = await world.library.build(world.recipe, agent=b"agent")
    world.calls()
    second = await world.library.build(world.recipe, agent=b"another")
    assert world.calls() == []
    assert second.digest != first.digest
    assert world.library.load("mine") == second
    assert world.library.load(first.digest) == first
    assert stat.S_ISREG(second.kernel.stat().st_mode)
    assert second.kernel.stat().st_ino == first.kernel.stat().st_ino


async def test_a_refresh_asks_the_mirror_again(world: World) -> None:
    first = await world.library.build(world.recipe, agent=b"agent")
    world.calls()
    same = await world.library.build(world.recipe, agent=b"agent", freshness=Freshness.REFRESHED)
    assert world.calls() == ["kernel", "root"]
    assert same == first
    write_archive(world.mirror / "root.tar", {**ROOT, "usr/bin/new": b"new"})
    newer = await world.library.build(world.recipe, agent=b"agent", freshness=Freshness.REFRESHED)
    assert newer.digest != first.digest


@pytest.mark.parametrize("change", ["files/etc/motd", "setup.sh"])
async def test_a_changed_recipe_is_built_anew(world: World, change: str) -> None:
    await world.library.build(world.recipe, agent=b"agent")
    world.calls()
    with (world.recipe.directories[-1] / change).open("a") as file:
        file.write("more")
    await world.library.build(world.recipe, agent=b"agent")
    assert world.calls() == ["root"]


async def test_the_build_is_given_the_recipe_s_files_and_packages(world: World) -> None:
    await world.library.build(world.recipe, agent=b"agent")
    argv = (world.mirror / "root.argv").read_text().splitlines()
    assert "--include=python3" in argv
    assert '--customize-hook=chroot "$1" /tmp/vmpool-setup/0-mine' in argv
    with tarfile.open(world.mirror / "inputs.tar") as tar:
        members = {info.name: info for info in tar}
    assert set(members) == {"etc", "etc/motd", "tmp/vmpool-setup/0-mine"}
    assert {info.uid for info in members.values()} == {0}
    assert members["tmp/vmpool-setup/0-mine"].mode == 0o755


async def test_a_build_has_nothing_of_the_caller_s_environment_that_could_change_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONPATH", "PYTHONOPTIMIZE", "PERL5OPT", "APT_CONFIG", "LANG", "VMPOOL_TOKEN"):
        monkeypatch.setenv(name, "the caller's")
    monkeypatch.setenv("http_proxy", "http://proxy")
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    await world.library.build(world.recipe, agent=b"agent")
    environment = (world.mirror / "environment").read_text().splitlines()
    assert not [line for line in environment if line.endswith("the caller's")]
    assert {"http_proxy=http://proxy", "PYTHONDONTWRITEBYTECODE=1"} <= set(environment)


async def test_modules_come_after_what_they_depend_on(world: World) -> None:
    image = await world.library.build(world.recipe, agent=b"agent")
    initrd = image.initrd.read_bytes()
    start = initrd.index(b"virtio_mmio\n")
    order = initrd[start : initrd.index(b"\0", start)].decode().split()
    assert order == [
        *("virtio_mmio", "virtio_blk", "failover", "net_failover", "virtio_net"),
        *("libcrc32c", "erofs", "overlay", "pvpanic", "pvpanic_mmio"),
        *("vsock", "vmw_vsock_virtio_transport"),
    ]


async def test_a_kernel_without_a_needed_module_is_refused(world: World) -> None:
    files = kernel_files()
    del files[f"usr/lib/modules/{RELEASE}/kernel/erofs.ko"]
    write_archive(world.mirror / "kernel.tar", files)
    with pytest.raises(ImageError, match="no module erofs") as caught:
        await world.library.build(world.recipe, agent=b"agent")
    assert caught.value.error_code == "kernel_unfit"


@pytest.mark.parametrize(
    ("log", "kind", "code"),
    [
        ("E: Unable to locate package nothing", ImageError, "image_package_unknown"),
        ("Temporary failure resolving 'deb'", ImageError, "image_mirror_unreachable"),
        ("tar: write: No space left on device", DiskFullError, "host_disk_full"),
        (
            "E: unable to pick chroot mode automatically (use --mode for manual selection)",
            HostError,
            "image_build_unprivileged",
        ),
        ("E: something else", ImageError, "image_build_failed"),
    ],
)
async def test_a_failure_of_the_build_is_named_and_leaves_nothing(
    world: World, log: str, kind: type[Exception], code: str
) -> None:
    (world.mirror / "failure").write_text(log)
    with pytest.raises(kind) as caught:
        await world.library.build(world.recipe, agent=b"agent")
    assert getattr(caught.value, "error_code", None) == code
    assert world.left() == []
    assert world.library.list() == []


async def test_a_full_disk_without_root_may_be_that_of_temporary_files(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There mmdebstrap unpacks, for the ids that it maps may not enter our directory."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (world.mirror / "subuid").write_text("1000:100000:65536\n")
    (world.mirror / "failure").write_text("tar: write: No space left on device")
    with pytest.raises(DiskFullError, match=re.escape(tempfile.gettempdir())) as caught:
        await world.library.build(world.recipe, agent=b"agent")
    assert "TMPDIR" in caught.value.remedy


async def cancelled_while_installing(world: World) -> None:
    """Begin a build that hangs while it installs packages, and cancel it there."""
    (world.mirror / "hang").touch()
    hanging = asyncio.Event()

    def progress(step: Step) -> None:
        if step.text == "installing packages":
            hanging.set()

    task = asyncio.create_task(world.library.build(world.recipe, agent=b"agent", progress=progress))
    await hanging.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancelled_build_ends_its_processes_and_leaves_nothing(world: World) -> None:
    await cancelled_while_installing(world)
    assert world.calls() == ["kernel", "ended"]
    assert world.left() == []


async def test_a_cancelled_build_ends_what_outlives_mmdebstrap(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fixtures look for the process, which ignores SIGTERM, and for the log that it holds."""
    monkeypatch.setattr(mmdebstrap, "TERMINATE_TIMEOUT", 0.5)
    (world.mirror / "stubborn").touch()
    await cancelled_while_installing(world)
    assert world.left() == []


async def test_steps_are_few_and_reported_as_they_begin_and_end(world: World) -> None:
    steps: list[Step] = []
    await world.library.build(world.recipe, agent=b"agent", progress=steps.append)
    texts = [step.text for step in steps if step.seconds is None]
    work = ("downloading packages", "installing packages")
    assert texts == [
        *("fetching the kernel", *work),
        *("installing the packages of mine", *work, "packing mine"),
    ]
    assert [step.text for step in steps if step.seconds is not None] == [
        *("fetching the kernel", "installing the packages of mine", "packing mine"),
    ]


async def test_a_state_directory_that_cannot_be_made_is_the_host_s_fault(world: World) -> None:
    world.state.write_text("a file")
    with pytest.raises(HostError) as caught:
        await world.library.build(world.recipe, agent=b"agent")
    assert caught.value.error_code == "state_unwritable"


async def test_a_missing_tool_is_named_with_the_command_that_installs_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostError) as caught:
        await world.library.build(world.recipe, agent=b"agent")
    assert caught.value.error_code == "image_tools_missing"
    assert "apt-get install --yes mmdebstrap" in caught.value.remedy


async def test_an_account_without_subordinate_ids_is_told_how_to_get_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = 64_999  # nobody's
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    with pytest.raises(HostError) as caught:
        await world.library.build(world.recipe, agent=b"agent")
    assert caught.value.error_code == "image_build_unprivileged"
    assert caught.value.remedy.startswith("run as root: usermod ")
    assert caught.value.remedy.endswith(f" {uid}")
    assert world.calls() == []
    assert world.left() == []


async def test_a_flipped_byte_is_found_and_its_file_named(world: World) -> None:
    image = await world.library.build(world.recipe, agent=b"agent")
    await world.library.verify(image)
    for name in ("root.erofs", "kernel", "initrd", "manifest.json"):
        path = image.directory / name
        sound = path.read_bytes()
        path.unlink()
        path.write_bytes(sound[:-2] + bytes([sound[-2] ^ 1]) + sound[-1:])
        with pytest.raises(ImageError, match=name) as caught:
            await world.library.verify(image)
        assert caught.value.error_code == "image_damaged"
        path.write_bytes(sound)
    await world.library.verify(image)


async def test_a_short_or_missing_file_is_noticed_without_reading_it(world: World) -> None:
    image = await world.library.build(world.recipe, agent=b"agent")
    image.initrd.unlink()
    with pytest.raises(ImageError, match="initrd") as caught:
        world.library.load("mine")
    assert caught.value.error_code == "image_damaged"
    assert world.library.list() == []


@pytest.mark.parametrize(("field", "value"), [("format", 3), ("format", 1), ("agent_protocol", 1)])
async def test_an_image_of_another_vmpool_is_refused(world: World, field: str, value: int) -> None:
    image = await world.library.build(world.recipe, agent=b"agent")
    path = image.directory / "manifest.json"
    told = json.loads(path.read_text()) | {field: value}
    path.unlink()
    path.write_text(json.dumps(told))
    with pytest.raises(ImageError, match="this vmpool") as caught:
        world.library.load("mine")
    assert caught.value.error_code == "image_unfit"


async def test_an_image_is_found_by_name_by_digest_and_by_its_beginning(world: World) -> None:
    image = await world.library.build(world.recipe, agent=b"agent")
    for wanted in ("mine", image.digest, image.digest[:8]):
        assert world.library.load(wanted) == image
    for wanted in ("other", image.digest[:7], "0" * 64, "../mine", ""):
        with pytest.raises(NotFoundError):
            world.library.load(wanted)


async def test_a_removed_image_is_gone_with_its_names(world: World) -> None:
    image = await world.library.build(world.recipe, agent=b"agent")
    world.library.remove(image.digest)
    world.library.remove(image.digest)
    assert world.library.list() == []
    assert world.library.names() == {}
    world.calls()
    assert await world.library.build(world.recipe, agent=b"agent") == image
    assert world.calls() == []


def test_only_a_digest_can_be_removed(world: World) -> None:
    for wanted in ("names", "../..", "mine"):
        with pytest.raises(InvalidRequestError):
            world.library.remove(wanted)


async def test_what_a_killed_build_left_is_swept_and_a_living_one_is_not(world: World) -> None:
    killed = world.state / "images" / "work" / "killed"
    killed.mkdir(parents=True)
    (killed / "lock").touch()
    (killed / "root.tar").touch()
    (world.state / "images" / "work" / "removed-x").mkdir()
    living: list[int] = []

    def progress(step: Step) -> None:
        if step.text == "downloading packages":
            living.append(world.library.sweep())

    await world.library.build(world.recipe, agent=b"agent", progress=progress)
    assert living == [2, 0]
    assert not killed.exists()


async def test_an_archive_is_imported_with_the_kernel_that_builds_use(
    world: World, tmp_path: Path
) -> None:
    write_archive(tmp_path / "alpine.tar", {"usr/local/bin/python3.12": b"\x7fELF"})
    image = await world.library.import_tarball(tmp_path / "alpine.tar", "alpine", agent=b"agent")
    assert image.manifest.python == "/usr/local/bin/python3.12"
    assert image.manifest.origin == "import"
    assert world.calls() == ["kernel"]
    assert world.library.load("alpine") == image
    await world.library.build(world.recipe, agent=b"agent")
    assert world.calls() == ["root"]


async def test_an_import_that_fails_leaves_nothing(world: World, tmp_path: Path) -> None:
    write_archive(tmp_path / "none.tar", {"bin/sh": b"\x7fELF"})
    with pytest.raises(ImageError) as caught:
        await world.library.import_tarball(tmp_path / "none.tar", "none", agent=b"agent")
    assert caught.value.error_code == "image_without_python"
    with pytest.raises(NotFoundError):
        await world.library.import_tarball(tmp_path / "nowhere.tar", "none", agent=b"agent")
    with pytest.raises(InvalidRequestError):
        await world.library.import_tarball(tmp_path / "none.tar", "../none", agent=b"agent")
    assert world.left() == []
    assert world.library.list() == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
async def test_a_full_disk_is_said_to_be_and_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.library.build(world.recipe, agent=b"agent")
    real = Path.open

    def full(path: Path, *args: str, **more: str) -> object:
        return real(Path("/dev/full") if path.name == "root.erofs" else path, *args, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DiskFullError):
        await world.library.build(replace(world.recipe, name="more"), agent=b"agent")
    assert world.left() == []
    assert set(world.library.names()) == {"mine"}
