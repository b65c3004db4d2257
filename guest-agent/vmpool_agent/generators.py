"""Generators: the random generators of the warm interpreter, which a snapshot would duplicate.

All clones of a snapshot wake with the same state in them, and so does a fork that waited in the
snapshot. Each fork therefore seeds all of them from the kernel, which has been told the clone's
identity by then, before it runs anything. Only what has been imported is touched: what is imported
later seeds itself from the kernel.
"""

from __future__ import annotations

import os
import random
import sys

_MODULES = {"uuid": "uuid", "openssl": "ssl", "numpy.random": "numpy.random"}
_SEED_SIZE = 64


def names() -> list[str]:
    """Return the generators that `reseed` would seed now."""
    return ["random", *(name for name, module in _MODULES.items() if module in sys.modules)]


def reseed() -> None:
    """Seed every generator anew from the kernel."""
    random.seed(int.from_bytes(os.urandom(_SEED_SIZE), "little"))
    uuid = sys.modules.get("uuid")
    if uuid is not None:
        # A node drawn at random and the time last used would be those of every sibling.
        uuid._node = None  # type: ignore[attr-defined]
        uuid._last_timestamp = None  # type: ignore[attr-defined]
    platform = sys.modules.get("platform")
    if platform is not None:
        # It remembers the host name of whoever asked first, which was the template.
        platform._uname_cache = None  # type: ignore[attr-defined]
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile._name_sequence = None  # type: ignore[attr-defined]
    process = sys.modules.get("multiprocessing.process")
    if process is not None:
        # A key of this process's own, by which its children are let in.
        process.current_process().authkey = os.urandom(32)
    ssl = sys.modules.get("ssl")
    if ssl is not None:
        ssl.RAND_add(os.urandom(_SEED_SIZE), float(_SEED_SIZE))
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        material = os.urandom(_SEED_SIZE)
        words = [int.from_bytes(material[at : at + 4], "little") for at in range(0, _SEED_SIZE, 4)]
        numpy_random.seed(words)
