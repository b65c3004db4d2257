"""Command line: the product's edge at a terminal."""

from __future__ import annotations

from vmpool.cli.program import main

__all__ = ["main"]
