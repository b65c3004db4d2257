"""Containers: the image's root file system as a directory, and bundles that run the line in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from typing import TYPE_CHECKING

from bench.line import LINE
from bench.peer import UnavailableError, run_line, tried
from vmpool.model import new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from bench.peer import Arena, Phases, Start

PREPARE_TIMEOUT = 120.0
"""Seconds to write an image's files out, some hundred megabytes."""

ARGV = ("/usr/bin/python3", "-c", LINE)
"""What runs in a container; in the guest the same Python waits for it in a snapshot."""


async def root_of(arena: Arena) -> Path:
    """Return the root file system of the arena's image as a directory; written once.

    Raises:
        UnavailableError: Nothing here can write it out.
    """
    root = arena.directory / "root"
    if not root.exists():
        image = arena.subject.spec.root
        await checked(["fsck.erofs", f"--extract={root}", "--no-preserve", str(image)])
    return root


async def checked(argv: Sequence[str], *, cwd: Path | None = None) -> None:
    """Run a program that prepares something.

    Raises:
        UnavailableError: There is none, or it failed.
    """
    if shutil.which(argv[0]) is None:
        raise UnavailableError(f"{argv[0]} is not installed")
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, cwd=cwd
    )
    try:
        async with asyncio.timeout(PREPARE_TIMEOUT):
            _, said = await process.communicate()
    except TimeoutError as err:
        raise UnavailableError(f"{argv[0]} did not end within {PREPARE_TIMEOUT:g} s") from err
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        words = said.decode(errors="replace").strip().rpartition("\n")[2]
        raise UnavailableError(f"{argv[0]} failed: {words[:200]}")


@contextlib.asynccontextmanager
async def runtime(
    arena: Arena,
    program: str,
    command: Callable[[Path, Path, str], Sequence[str]],
    *,
    prefix: Sequence[str] = (),
) -> AsyncIterator[Start]:
    """Yield what starts a container under an OCI runtime.

    Args:
        command: Its arguments that run a bundle, from the runtime's own directory, the bundle and
            the container's name, which is another each time.
        prefix: What the runtime is started by.

    Raises:
        UnavailableError: It is not there, or does not run containers here.
    """
    if shutil.which(program) is None:
        raise UnavailableError(f"{program} is not installed")
    bundle, own = arena.directory / program, arena.sockets / program
    await _bundle(program, bundle, root=await root_of(arena))

    async def start() -> Phases:
        name = new_id("bench")
        try:
            return await run_line([*prefix, program, *command(own, bundle, name)])
        except BaseException:
            with contextlib.suppress(UnavailableError):
                await checked([*prefix, program, "--root", str(own), "delete", "--force", name])
            raise

    yield await tried(start)


async def _bundle(program: str, bundle: Path, *, root: Path) -> None:
    """Write a bundle with the runtime's own defaults, running the line, nothing writable."""
    await asyncio.to_thread(bundle.mkdir)
    await checked([program, "spec"], cwd=bundle)
    file = bundle / "config.json"
    spec = json.loads(await asyncio.to_thread(file.read_text))
    spec["process"] |= {"terminal": False, "args": list(ARGV)}
    spec["root"] = {"path": str(root), "readonly": True}
    await asyncio.to_thread(file.write_text, json.dumps(spec))
