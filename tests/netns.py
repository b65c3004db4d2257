"""Namespaces for tests: networks that the machine's own has nothing to do with."""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING

import pytest

from vmpool.network import links, namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmpool.network.namespace import Namespace


@contextlib.contextmanager
def made() -> Iterator[Namespace]:
    """Yield a namespace that holds nothing."""
    new = namespace.create(f"vmpool-test-{secrets.token_hex(4)}")
    try:
        yield new
    finally:
        namespace.remove(new)


@contextlib.contextmanager
def tap() -> Iterator[int]:
    """Yield the descriptor of a link in a namespace where there is nothing else."""
    if os.geteuid() != 0:
        pytest.skip("links are root's to make")
    with made() as nowhere:
        descriptor = namespace.call_in(nowhere, links.open_tap)
        yield descriptor
        os.close(descriptor)
