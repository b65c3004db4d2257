"""Images: `vmpool image`, what templates are booted from.

Works on the state directory itself, with a server running beside it or without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmpool import packages, snapshot
from vmpool.agent import archive_bytes
from vmpool.cli import table
from vmpool.cli.progress import Progress
from vmpool.cli.state import journal_path, state_option, usable
from vmpool.errors import ConflictError, SnapshotError
from vmpool.image import Freshness, Library, recipe
from vmpool.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool.image import Image, Step

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def command() -> None:
    """Build, import, list, sign and remove images."""


@command.command()
@click.argument("wanted", metavar="RECIPE")
@state_option
@click.option(
    "--fresh", is_flag=True, help="Fetch everything again, also what earlier builds kept."
)
@json_option
def build(*, wanted: str, state: Path, fresh: bool, as_json: bool) -> None:
    """Build an image from a recipe.

    RECIPE is a name, of one in the directory `recipes` of the state directory or of one that comes
    with vmpool (base, python, code-interpreter); or a path with a slash. What is unchanged is not
    built again.

    \b
      vmpool image build ./recipes/mine
    """
    with Progress(sys.stderr) as progress:
        image = asyncio.run(
            build_image(
                wanted,
                state=usable(state),
                freshness=Freshness.REFRESHED if fresh else Freshness.KEPT,
                progress=progress,
            )
        )
    _print_made(image, as_json=as_json)


@command.command("import")
@click.argument("tarball", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="What to call it.  [default: the file's name]")
@state_option
@json_option
def import_(*, tarball: Path, name: str | None, state: Path, as_json: bool) -> None:
    """Make an image of a root file system in a tar archive.

    Any Linux distribution with a python3 in it; as `docker export` writes it, for one.

    \b
      docker export $(docker create fedora:43) -o fedora.tar
      vmpool image import fedora.tar
    """
    name = name or re.sub(r"\.(tar|tgz|txz|tar\.\w+)$", "", tarball.name)
    library = Library(usable(state))
    with Progress(sys.stderr) as progress:
        importing = library.import_tarball(
            tarball, name, agent=archive_bytes(), progress=steps_of(progress)
        )
        image = asyncio.run(importing)
    _print_made(image, as_json=as_json)


@command.command("list")
@state_option
@json_option
def list_(*, state: Path, as_json: bool) -> None:
    """List the images."""
    library = Library(state)
    named = set(library.names().items())
    rows = [
        {
            "name": image.name,
            "digest": image.digest,
            "size_bytes": image.size_bytes,
            "kernel": image.manifest.kernel_release,
            "origin": image.manifest.origin,
            "current": (image.name, image.digest) in named,
        }
        for image in library.list()
    ]
    if as_json:
        table.print_json(rows)
        return
    table.print_table(
        ("NAME", "DIGEST", "SIZE", "KERNEL", "ORIGIN"),
        [
            (
                str(row["name"]) if row["current"] else f"({row['name']}, replaced)",
                str(row["digest"])[:12],
                table.size(int(str(row["size_bytes"]))),
                str(row["kernel"]),
                str(row["origin"]),
            )
            for row in rows
        ],
    )


@command.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME_OR_DIGEST...")
@state_option
def sign(*, names: tuple[str, ...], state: Path) -> None:
    """Vouch for images as if this host had built them.

    What this host builds and imports it signs itself. An image that was copied here from another
    host is refused until that host's key is trusted (vmpool key trust), or you sign it: whoever
    made it decides what the guests of its templates run.
    """
    library = Library(usable(state))
    for image in [library.load(name) for name in names]:
        asyncio.run(library.sign(image))


@command.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME_OR_DIGEST...")
@state_option
def remove(*, names: tuple[str, ...], state: Path) -> None:
    """Remove images that no template, sandbox or checkpoint uses."""
    library = Library(state)
    for image in [library.load(name) for name in names]:
        users = asyncio.run(_users(image, state))
        if users:
            raise ConflictError(
                f"image {image.name!r} is in use by {', '.join(users)}",
                code="image_in_use",
                remedy="remove them first: vmpool template remove NAME, "
                "vmpool checkpoint remove ID, vmpool sandbox kill ID",
            )
        library.remove(image.digest)


async def build_image(
    wanted: str, *, state: Path, freshness: Freshness, progress: Progress
) -> Image:
    """Install what building takes if it is missing, and build an image.

    Args:
        wanted: Name or path of its recipe.

    Raises:
        VmpoolError: As `packages.ensure`, `recipe.find`, `recipe.load` and `Library.build`.
    """
    places = (state / "recipes",)
    found = recipe.load(recipe.find(wanted, places), places)
    await packages.ensure(progress.note)
    return await Library(state).build(
        found, agent=archive_bytes(), progress=steps_of(progress), freshness=freshness
    )


async def _users(image: Image, state: Path) -> list[str]:
    """Return in words what is made of an image."""
    if not journal_path(state).exists():
        return []
    async with Store(journal_path(state)) as store:
        templates = [row for row in await store.templates() if row.image_digest == image.digest]
        sandboxes, checkpoints = await store.open_sandboxes(), await store.checkpoints.all()
    bases = _snapshots_of(image, state)
    return [
        *(f"template {row.name}" for row in templates),
        *(f"sandbox {row.id}" for row in sandboxes if row.base_id in bases),
        *(f"checkpoint {row.id}" for row in checkpoints if row.base_id in bases),
    ]


def _snapshots_of(image: Image, state: Path) -> set[str]:
    """Return the ids of the snapshots of an image, whether a template names them or not."""
    found = set()
    for directory in (state / "snapshots").glob("[!.]*"):
        with contextlib.suppress(SnapshotError):  # one that is damaged is nobody's
            manifest = snapshot.load(directory).manifest
            found |= {manifest.id} if manifest.image == image.digest else set()
    return found


def steps_of(progress: Progress) -> Callable[[Step], None]:
    """Return what shows a builder's steps; a step's end is shown by the next one's beginning."""

    def show(step: Step) -> None:
        if step.seconds is None:
            progress(step.text)

    return show


def _print_made(image: Image, *, as_json: bool) -> None:
    if as_json:
        table.print_json(
            {"name": image.name, "digest": image.digest, "size_bytes": image.size_bytes}
        )
    else:
        click.echo(f"{image.name} {image.digest}")
