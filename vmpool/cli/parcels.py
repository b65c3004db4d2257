"""Parcels: `vmpool checkpoint export` and `import`, checkpoints that go from host to host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmpool.cli import local_files
from vmpool.cli import remote as remotes
from vmpool.cli.connection import connects

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote

_local_path = click.Path(path_type=Path, allow_dash=True)


@click.command()
@connects
@click.argument("checkpoint")
@click.argument("file", type=_local_path)
@click.option(
    "--with-base",
    "cargo",
    flag_value="with_base",
    help="Put the template's snapshot in too, for a host that has only its image.",
)
@click.option(
    "--with-secrets",
    "secrets",
    flag_value="share",
    help="Write it also when its sandbox was told secrets: its memory may hold them.",
)
def export(
    remote: Remote, *, checkpoint: str, file: Path, cargo: str | None, secrets: str | None
) -> None:
    """Write a checkpoint to one compressed file, - for stdout.

    Whoever has the file has all that was in the sandbox's memory.

    \b
      vmpool checkpoint export before-training training.vmpool
    """
    path = remotes.path("checkpoints", checkpoint, "export", cargo=cargo, secrets=secrets)
    with remote.open("GET", path) as answer, local_files.writing(file) as target:
        for chunk in remotes.chunks(answer):
            target.write(chunk)


@click.command("import")
@connects
@click.argument("file", type=_local_path)
@click.option("--name", help="What it is called here; what it was called, if left out.")
@click.option(
    "--trust", metavar="KEY", help="Believe the host of this public key, for this file alone."
)
def import_(remote: Remote, *, file: Path, name: str | None, trust: str | None) -> None:
    """Keep a checkpoint that was exported, - for stdin, and print its id.

    The server must trust the key of the host that wrote it: vmpool key. It takes a token with the
    scope operator, since the machine in the file is run as it is, by the server's hypervisor.

    \b
      vmpool checkpoint import training.vmpool --name there
    """
    path = remotes.path("checkpoints", "import", name=name, trust=trust)
    headers = {"Content-Type": "application/zstd"}
    with local_files.reading(file) as source:
        body = iter(lambda: source.read(remotes.CHUNK_BYTES), b"")
        with remote.open("POST", path, body=body, headers=headers) as answer:
            kept = json.loads(remotes.read(answer))
    click.echo(kept["id"])
