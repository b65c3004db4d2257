"""Seeding: an interpreter's generators start from a number, also those that are imported later.

In a run, in a context, and in every Python that finds `seeded/sitecustomize.py` at its start. What
is seeded draws what it draws anywhere after `random.seed(n)` and `numpy.random.seed(n)`; where
numpy is asked for a generator without a seed it takes one from `random.Random(n)`.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_WORD = 2**32


def begin(seed: int) -> None:
    """Seed what is imported, and see that what is imported later is seeded as it comes."""
    end()
    awaited = dict(_STARTS)
    for name in _STARTS:
        module = sys.modules.get(name)
        if module is not None:
            awaited.pop(name)(seed, module)
    if awaited:
        sys.meta_path.insert(0, _Finder(seed, awaited))


def end() -> None:
    """Leave what is imported later to itself. *Idempotent.*"""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]


def _start_random(seed: int, module: Any) -> None:
    module.seed(seed)


def _start_numpy(seed: int, module: Any) -> None:
    import random  # noqa: PLC0415 most programs that never need it would wait for it

    module.seed(seed if seed < _WORD else [seed % _WORD, seed // _WORD])
    # default_rng() asks this name for its seed, each time anew.
    module.bit_generator.randbits = random.Random(seed).getrandbits  # noqa: S311 not for keys


_STARTS: dict[str, Callable[[int, Any], None]] = {
    "random": _start_random,
    "numpy.random": _start_numpy,
}


class _Finder:
    """Finds modules as the other finders do, and seeds those that it waits for when they load."""

    def __init__(self, seed: int, awaited: dict[str, Callable[[int, Any], None]]) -> None:
        self._seed = seed
        self._awaited = awaited

    def find_spec(
        self, name: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        start = self._awaited.pop(name, None)
        if start is None:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)  # which one of old may not have
            spec: ModuleSpec | None = None
            if find is not None and finder is not self:
                spec = find(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    loader: Any = _Loader(spec.loader, functools.partial(start, self._seed))
                    spec.loader = loader
                return spec
        return None


class _Loader:
    """Loads a module as another loader does, which the module then knows alone, and seeds it."""

    def __init__(self, loader: Any, start: Callable[[Any], None]) -> None:
        self._loader = loader
        self._start = start

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """See `importlib.abc.Loader`."""
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        """See `importlib.abc.Loader`."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._start(module)
