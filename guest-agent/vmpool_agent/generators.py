"""Generators: the random generators of the warm interpreter, which a snapshot would duplicate.

All clones of a snapshot wake with the same state in them. Only what has been imported is touched:
what is imported later seeds itself from the kernel.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys


def diverge() -> None:
    """Part a fork's generators from its siblings'; `random` and OpenSSL see to it themselves."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed(_words(os.urandom(64)))


def reseed(seed: bytes) -> list[str]:
    """Seed every generator anew from `seed` and the kernel; return the names of those seeded."""
    # The kernel's generator is fresh by now; the seed stands in for it should that have failed.
    material = hashlib.sha512(seed + os.urandom(64)).digest()
    random.seed(material)
    seeded = ["random"]
    uuid = sys.modules.get("uuid")
    if uuid is not None:
        # A node drawn at random and the time last used would be those of every sibling.
        uuid._node = None  # type: ignore[attr-defined]
        uuid._last_timestamp = None  # type: ignore[attr-defined]
        seeded.append("uuid")
    ssl = sys.modules.get("ssl")
    if ssl is not None:
        ssl.RAND_add(material, float(len(material)))
        seeded.append("openssl")
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed(_words(material))
        seeded.append("numpy.random")
    return seeded


def _words(material: bytes) -> list[int]:
    return [int.from_bytes(material[at : at + 4], "big") for at in range(0, len(material), 4)]
