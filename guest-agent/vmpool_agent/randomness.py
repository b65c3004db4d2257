"""Randomness: what the clone was told of its user-space generators, for whoever starts a process.

A process that was there before a snapshot is there again in every clone, with the same state in
its generators. So each waking that says how they go on begins a new epoch, and whatever is run is
told of it: a process that last ran in another one starts its generators anew before it goes on
(`generators`). This module imports no generator: the agent itself draws no number.
"""

from __future__ import annotations

import os.path
from typing import Any

from vmpool_agent.session import OperationError

_MAX_SEED = 2**64 - 1
_MAX_HASH_SEED = 2**32  # what Python takes as PYTHONHASHSEED is less
_SEEDED = os.path.join(os.path.dirname(__file__), "seeded")  # noqa: PTH118, PTH120
"""Where a new Python finds what has its generators start from the seed."""
RULED = frozenset({"random", "numpy.random"})
"""Generators that start from the seed, or go on. All others are the kernel's children always."""


class Randomness:
    """How the generators of one guest's processes start."""

    def __init__(self) -> None:
        self._epoch = 0
        self._seed: int | None = None
        self._preserve = False

    @property
    def told(self) -> dict[str, Any]:
        """What goes with everything that is run: `epoch`, `seed` or null, and `preserve`."""
        return {"epoch": self._epoch, "seed": self._seed, "preserve": self._preserve}

    @property
    def environment(self) -> dict[str, str]:
        """What a new process finds in its environment; nothing but after a seed."""
        if self._seed is None:
            return {}
        return {
            "PYTHONHASHSEED": str(self._seed % _MAX_HASH_SEED),
            "PYTHONPATH": _SEEDED,
            "VMPOOL_SEED": str(self._seed),
        }

    def wake(self, policy: object) -> None:
        """Begin as a clone that wakes: `"unique"`, `"preserve"`, or `{"seed": 7}`.

        Raises:
            OperationError: It is none of these.
        """
        if policy == "preserve":
            self._preserve = True
            return
        if policy != "unique":
            self._seed = _read_seed(policy)
        else:
            self._seed = None
        self._preserve = False
        self._epoch += 1

    def started_anew(self, generators: list[str]) -> list[str]:
        """Return which of the generators that a run has start anew in it."""
        goes_on = self._preserve and self._seed is None
        return [name for name in generators if not (goes_on and name in RULED)]


def _read_seed(policy: object) -> int:
    if isinstance(policy, dict):
        seed = policy.get("seed")
        if isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed <= _MAX_SEED:
            return seed
    raise OperationError("bad_request", "rng is 'unique', 'preserve' or a seed of 64 bits")
