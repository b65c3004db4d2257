"""Quantity: sizes as options take them."""

from __future__ import annotations

import re

import click

_SIZE = re.compile(r"(\d{1,9})([kmgt]?)(i?b)?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class Size(click.ParamType[int]):
    """A number of bytes, written as a number with a binary unit: `512M`, `2GiB`."""

    name = "size"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the number of bytes."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            self.fail(f"{value!r} is no size; write it like 512M or 2G", param, ctx)
        return int(match[1]) * _UNITS[match[2].lower()]
