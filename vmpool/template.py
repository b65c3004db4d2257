"""Template: the snapshot of a booted, warmed image, and how it is made.

Boot the image, let its interpreter warm up, walk every path that a clone will walk first, clean
up, save, publish. A snapshot is named by what it was made of, so that the same image, machine and
hypervisor find it again. It knows no pool and no store.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmpool import snapshot
from vmpool.agent import connect, new_key
from vmpool.cancellation import uninterrupted
from vmpool.clone import claim_directory, identify, in_step, warm
from vmpool.errors import DiskFullError, EngineError, GuestError
from vmpool.model import Attachment, Identity, Kernel, Unique

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from vmpool.agent import Agent
    from vmpool.engine import Engine, Machine
    from vmpool.errors import InfrastructureError
    from vmpool.image import Image
    from vmpool.model import MachineSpec, Processor
    from vmpool.snapshot import Publish, Snapshot

log = logging.getLogger(__name__)

BOOT_ATTEMPTS = 2
"""A machine may hang early in its boot under emulation; it is started once more."""

WARM_RUNS = 2
"""The second run touches what the first one only allocated."""

CONSOLE = "console"
"""File in a booted machine's directory that holds what its guest wrote to the console."""

CONSOLE_TAIL_BYTES = 4096
CONSOLE_TAIL_LINES = 12
"""How much of a console an error carries."""

_ESCAPE = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[@-Z\\-_])")  # ECMA-48: what a terminal obeys

CAUSE_TIMEOUT = 1.0
"""Seconds to learn that a guest that was lost is dead, and of what."""

STEP_TIMEOUT = 300.0
"""Seconds for each request to the freshly booted guest."""


def snapshot_id(image_digest: str, spec: MachineSpec) -> str:
    """Return the name of the snapshot of `image_digest` booted as `spec`: 20 hex digits."""
    shape = asdict(spec)
    del shape["root"]  # where the image lies on this host; its digest says what it is
    made_of = json.dumps([snapshot.FORMAT, image_digest, shape], sort_keys=True)
    return hashlib.sha256(made_of.encode()).hexdigest()[:20]


async def make(
    engine: Engine,
    image: Image,
    spec: MachineSpec,
    *,
    snapshots: Path,
    run: Path,
    boot_timeout: float,
    progress: Callable[[str], None],
    publish: Publish = snapshot.publish,
) -> Snapshot:
    """Boot `image`, warm it, and publish its snapshot in `snapshots`.

    Nothing is left behind on failure or cancellation but what `snapshot.sweep` removes.

    Args:
        engine: What boots the machine.
        image: What is booted.
        spec: The machine, with `root` pointing at the image.
        snapshots: Directory of published snapshots.
        run: Directory that machines' directories are made in.
        boot_timeout: Seconds until the agent must have answered, for each attempt.
        progress: Told each step in words.
        publish: Gives what was saved its name, and a signature if it is to be trusted.

    Raises:
        EngineError: The hypervisor failed; `guest_boot_failed` when the guest ended as it booted.
        GuestError: The guest did not answer, or did not do what a template must. The message of
            either ends with what the guest wrote to its console.
        DiskFullError: No room for the guest's memory or for the snapshot.
    """
    for attempt in range(1, BOOT_ATTEMPTS + 1):
        try:
            return await _make_once(
                engine,
                image,
                spec,
                snapshots=snapshots,
                run=run,
                boot_timeout=boot_timeout,
                progress=progress,
                publish=publish,
            )
        except GuestError as err:
            if attempt == BOOT_ATTEMPTS:
                raise
            progress(f"{err.message}; once more")
            log.warning("template of image=%s failed: %s; trying again", image.digest[:12], err)
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _make_once(
    engine: Engine,
    image: Image,
    spec: MachineSpec,
    *,
    snapshots: Path,
    run: Path,
    boot_timeout: float,
    progress: Callable[[str], None],
    publish: Publish,
) -> Snapshot:
    kernel = Kernel(kernel=image.kernel, initrd=image.initrd, command_line=image.command_line)
    async with contextlib.AsyncExitStack() as undo:
        directory = claim_directory(run)
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        partial = snapshot.begin(snapshots)
        undo.callback(shutil.rmtree, partial, ignore_errors=True)
        progress(f"booting image {image.name}")
        machine = await engine.boot(spec, kernel, Attachment(directory=directory))
        undo.push_async_callback(lambda: uninterrupted(machine.kill()))
        async with _told_with_console(machine, directory):
            agent = await _first_answer(machine, boot_timeout)
            undo.push_async_callback(agent.close)
            progress("walking the paths that every clone walks first")
            await rehearse(agent)
        await agent.close()
        progress("saving memory and devices")
        await machine.pause()
        processor = await machine.processor()
        await machine.save(partial)
        await machine.kill()
        # Not cut short: what is still being published must not be removed meanwhile.
        return await uninterrupted(
            asyncio.to_thread(
                _publish, partial, image.digest, spec, processor, snapshots, publish=publish
            )
        )
    raise AssertionError("unreachable: the stack swallows nothing")


def _publish(
    partial: Path,
    digest: str,
    spec: MachineSpec,
    processor: Processor,
    snapshots: Path,
    *,
    publish: Publish,
) -> Snapshot:
    name = snapshot_id(digest, spec)
    manifest = snapshot.describe(
        partial,
        id=name,
        image=digest,
        spec=replace(spec, root=_seen_from(snapshots / name, spec.root)),
        processor=processor,
        created_ns=time.time_ns(),
    )
    return publish(partial, manifest, snapshots)


async def _first_answer(machine: Machine, timeout: float) -> Agent:
    """Connect to the agent of a booting guest, and notice at once when the machine ends instead."""
    hello = asyncio.ensure_future(connect(machine.agent_address, key=new_key(), timeout=timeout))
    death = asyncio.ensure_future(machine.wait())
    try:
        await asyncio.wait((hello, death), return_when=asyncio.FIRST_COMPLETED)
        if not hello.done():
            cause = await machine.obituary()
            if isinstance(cause, DiskFullError):
                raise cause
            raise EngineError(
                f"the guest ended while it booted: {cause.message}",
                code="guest_boot_failed",
                remedy="correct the image's recipe and build it again",
            )
        return hello.result()
    except asyncio.CancelledError:
        if hello.done() and not hello.cancelled() and hello.exception() is None:
            await hello.result().close()
        raise
    finally:
        hello.cancel()
        death.cancel()
        await asyncio.gather(hello, death, return_exceptions=True)


@contextlib.asynccontextmanager
async def _told_with_console(machine: Machine, directory: Path) -> AsyncIterator[None]:
    """Have a guest's failure carry its last words, for whoever wrote the image's recipe.

    The machine is ended first: then the last of them have come.

    Raises:
        EngineError, GuestError: What the block raises, or what ended the machine meanwhile, with
            the end of the console in its message.
        DiskFullError: The disk had no room for the guest's memory.
    """
    try:
        yield
    except (EngineError, GuestError) as err:
        cause = await _cause_of(err, machine)
        await uninterrupted(machine.kill())
        raise _with_words(cause, _last_words(directory)) from err


async def _cause_of(err: EngineError | GuestError, machine: Machine) -> InfrastructureError:
    """Return why the guest was lost, when that becomes known soon; else `err`."""
    if isinstance(err, GuestError):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CAUSE_TIMEOUT):
                return await machine.obituary()
    return err


def _with_words(err: InfrastructureError, words: str) -> InfrastructureError:
    message, code, remedy = err.message + words, err.error_code, err.remedy
    match err:
        case EngineError():
            return EngineError(
                message, code=code, remedy=remedy, argv=err.argv, log_tail=err.log_tail
            )
        case GuestError():
            return GuestError(message, code=code, remedy=remedy)
        case _:
            return err


def _last_words(directory: Path) -> str:
    """Return the end of a guest's console as the end of a message; nothing in it but text."""
    try:
        with (directory / CONSOLE).open("rb") as console:
            console.seek(max(0, console.seek(0, os.SEEK_END) - CONSOLE_TAIL_BYTES))
            said = console.read(CONSOLE_TAIL_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""
    lines = ["".join(filter(str.isprintable, line)) for line in _ESCAPE.sub("", said).splitlines()]
    last = [line.strip() for line in lines if line.strip()][-CONSOLE_TAIL_LINES:]
    return "; the end of its console: " + " | ".join(last) if last else ""


async def rehearse(agent: Agent) -> None:
    """Give back what is left in memory, do what every clone does first, and give the claim up.

    In this order, so that the pages and names that a clone will look for are in the guest's caches.
    Nothing is asked of the agent afterwards: the machine is to be saved.

    Raises:
        GuestError: The guest did not, or not in time; `guest_clock_wrong`: all clones would be.
    """
    async with in_step(agent, timeout=STEP_TIMEOUT):
        await warm(agent, timeout=STEP_TIMEOUT)
    await agent.quiesce(timeout=STEP_TIMEOUT)
    for _ in range(WARM_RUNS):
        await identify(agent, Identity.fresh("template"), rng=Unique(), timeout=STEP_TIMEOUT)
        await warm(agent, timeout=STEP_TIMEOUT)
    await agent.set_clock(timeout=STEP_TIMEOUT)
    await agent.stock(timeout=STEP_TIMEOUT)
    await agent.release(timeout=STEP_TIMEOUT)


def _seen_from(directory: Path, path: Path) -> Path:
    """Return `path` relative to `directory`: a state directory that was moved is still whole."""
    return Path(os.path.relpath(path, directory))
