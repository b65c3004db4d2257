"""Generators: the random generators of an interpreter, which a snapshot would duplicate.

All clones of a snapshot wake with the same state in them, and so does a fork that waited in the
snapshot. Whatever runs code in such a process therefore calls `reseed` first, with what the agent
was told (`randomness`): from the kernel, which has been told the clone's identity by then, or from
a number, or not at all. What makes keys, names and ids is seeded from the kernel in every case.
What is imported later seeds itself from the kernel, or from the number (`seeding`).
"""

from __future__ import annotations

import gc
import os
import random
import secrets
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from vmpool_agent import seeding

if TYPE_CHECKING:
    from collections.abc import Callable

_MODULES = {"uuid": "uuid", "openssl": "ssl", "numpy.random": "numpy.random"}
_SEED_SIZE = 64
_WORD = 4


class States(NamedTuple):
    """Where generators stand.

    Attributes:
        numpy: `None` where it is not imported.
    """

    random: tuple[Any, ...]
    numpy: dict[str, Any] | None


def names() -> list[str]:
    """Return the generators that `reseed` would seed now."""
    return ["random", *(name for name, module in _MODULES.items() if module in sys.modules)]


def reseed(rng: dict[str, Any], warm: States | None = None) -> None:
    """Start every generator as the clone was told.

    Args:
        rng: `Randomness.told`.
        warm: For a fork that has run nothing yet: where the generators of the process that it is of
            stand. `None` for a process in which code has made generators of its own.
    """
    _renew_names()
    made = _made_by_code() if warm is None else []
    if rng["seed"] is not None:
        _seed_made(made, random.Random(f"{rng['seed']} for what code made").randbytes)  # noqa: S311
        seeding.begin(rng["seed"])
    elif not rng["preserve"]:
        seeding.end()
        _seed_made(made, os.urandom)
        random.seed(int.from_bytes(os.urandom(_SEED_SIZE), "little"))
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None:
            numpy_random.seed(_words(os.urandom))
            numpy_random.bit_generator.randbits = secrets.randbits  # as before any seed
    elif warm is not None:
        random.setstate(warm.random)
        if warm.numpy is not None:
            sys.modules["numpy.random"].set_state(warm.numpy)


def states() -> States:
    """Return where the generators stand that a clone may be told to preserve.

    For a process's forks, in which they stand elsewhere: Python itself seeds `random` anew in each.
    """
    numpy_random = sys.modules.get("numpy.random")
    known = None if numpy_random is None else numpy_random.get_state(legacy=False)
    return States(random.getstate(), known)


def _made_by_code() -> list[Any]:
    """Return the generators that code has made: `random.Random()`, numpy's `default_rng()`.

    Of what the garbage collector tracks, so not what was there before `gc.freeze`.
    """
    numpy_random = sys.modules.get("numpy.random")
    kinds = (random.Random, *(() if numpy_random is None else (numpy_random.BitGenerator,)))
    # Not isinstance: a proxy may answer for what it stands for, or raise.
    return [found for found in gc.get_objects() if issubclass(type(found), kinds)]


def _seed_made(made: list[Any], draw: Callable[[int], bytes]) -> None:
    for generator in made:
        if isinstance(generator, random.Random):
            random.Random.seed(generator, int.from_bytes(draw(_SEED_SIZE), "little"))
        else:
            generator.state = type(generator)(_words(draw)).state


def _words(draw: Callable[[int], bytes]) -> list[int]:
    """Draw a seed as numpy wants it."""
    material = draw(_SEED_SIZE)
    return [
        int.from_bytes(material[at : at + _WORD], "little") for at in range(0, _SEED_SIZE, _WORD)
    ]


def _renew_names() -> None:
    """Seed from the kernel what is never the same in two machines: keys, ids, names of files."""
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
