"""Table: values as a person or a script wants to read them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_CONTROLS = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns on stdout, the header alone when there are no rows."""
    lines = [tuple(map(printable, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def print_fields(fields: dict[str, str]) -> None:
    """Print one value per line, names aligned."""
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        click.echo(printable(f"{name.ljust(width)}  {value}".rstrip()))


def print_json(value: object) -> None:
    """Print a value as one JSON document on stdout."""
    click.echo(as_json(value, indent=2))


def as_json(value: object, *, indent: int | None = None) -> str:
    """Return a value as JSON that a person can read and that commands no terminal."""
    # All control characters are in strings, and JSON's own rules escape but those below 0x20.
    return json.dumps(value, indent=indent, ensure_ascii=False).translate(_CONTROLS)


def size(size_bytes: int) -> str:
    """Return a size in the largest binary unit that leaves at least one."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def moment(timestamp: str) -> str:
    """Return an RFC 3339 point in time in the terminal's own time zone, to the second."""
    return datetime.fromisoformat(timestamp).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def unix_moment(unix_ns: int | None) -> str:
    """Return a Unix time as `moment` does, `-` for none."""
    if unix_ns is None:
        return "-"
    return moment(datetime.fromtimestamp(unix_ns // 1_000_000_000, UTC).isoformat())


def printable(text: str) -> str:
    """Return text from a guest or a server without the characters that command a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
