"""Files: `vmpool sandbox upload`, `download` and `ls`, of any size and any content."""

from __future__ import annotations

import posixpath
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmpool.cli import local_files, table
from vmpool.cli import remote as remotes
from vmpool.cli.connection import connects

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote

_user_option = click.option("-u", "--user", metavar="NAME", help="Account in the guest.")
_local_path = click.Path(path_type=Path, allow_dash=True)


@click.command()
@connects
@click.argument("sandbox")
@click.argument("source", type=_local_path)
@click.argument("target")
@_user_option
@click.option("--mode", metavar="OCTAL", help="Permission bits, like 755.")
def upload(
    remote: Remote, *, sandbox: str, source: Path, target: str, user: str | None, mode: str | None
) -> None:
    """Write a file of this host into a sandbox.

    SOURCE - reads stdin. A TARGET that ends with a slash is a directory to put the file in.

    \b
      vmpool sandbox upload SANDBOX data.csv /home/user/
    """
    if target.endswith("/"):
        target = posixpath.join(target, source.name)
    path = remotes.path(
        "sandboxes", sandbox, "files", path=target, user=user, mode=_permission_bits(mode)
    )
    headers = {"Content-Type": "application/octet-stream"}
    with local_files.reading(source) as file:
        body = iter(lambda: file.read(remotes.CHUNK_BYTES), b"")
        with remote.open("PUT", path, body=body, headers=headers):
            pass


@click.command()
@connects
@click.argument("sandbox")
@click.argument("source")
@click.argument("target", type=_local_path, default="-")
@_user_option
def download(remote: Remote, *, sandbox: str, source: str, target: Path, user: str | None) -> None:
    """Write a file of a sandbox to this host.

    TARGET is a file, a directory to put it in, or - for stdout, where it goes if left out.

    \b
      vmpool sandbox download SANDBOX /home/user/plot.png plot.png
    """
    if target.is_dir():
        target /= posixpath.basename(source)
    path = remotes.path("sandboxes", sandbox, "files", path=source, user=user)
    with remote.open("GET", path) as answer, local_files.writing(target) as file:
        for chunk in remotes.chunks(answer):
            file.write(chunk)


@click.command()
@connects
@click.argument("sandbox")
@click.argument("directory", default="/home/user")
@_user_option
@click.option(
    "--depth", type=click.IntRange(1, 64), default=1, show_default=True, help="Levels to list."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls(
    remote: Remote, *, sandbox: str, directory: str, user: str | None, depth: int, as_json: bool
) -> None:
    """List a directory of a sandbox."""
    path = remotes.path(
        "sandboxes", sandbox, "files", "list", path=directory, user=user, depth=depth
    )
    entries = remote.call("GET", path)["entries"]
    if as_json:
        table.print_json(entries)
        return
    table.print_table(
        ("MODE", "OWNER", "SIZE", "MODIFIED", "PATH"),
        [
            (
                stat.filemode(_KINDS.get(entry["kind"], 0) | entry["mode"]),
                f"{entry['owner']}:{entry['group']}",
                str(entry["size_bytes"]),
                table.moment(entry["modified_at"]),
                entry["path"] + (f" -> {entry['target']}" if entry["target"] else ""),
            )
            for entry in entries
        ],
    )


_KINDS = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK}


def _permission_bits(octal: str | None) -> int | None:
    if octal is None:
        return None
    try:
        bits = int(octal, 8)
    except ValueError:
        bits = -1
    if not 0 <= bits <= 0o7777:
        raise click.UsageError(f"--mode takes octal permission bits like 644, not {octal!r}")
    return bits
