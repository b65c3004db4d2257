"""Namespaces for tests: networks that the machine's own has nothing to do with."""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING

from vmpool.network import namespace

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
