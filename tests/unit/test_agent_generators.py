"""What generators draw in a process that lives on in several clones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

AGENT = str(Path(__file__).parents[2] / "guest-agent")
UNIQUE = {"epoch": 2, "seed": None, "preserve": False}
SEVEN = {"epoch": 2, "seed": 7, "preserve": False}
PRESERVE = {"epoch": 2, "seed": None, "preserve": True}

# Two lines of one process that have the same state, as two clones would.
TWINS = """
import json, os, random, sys, types
sys.path.insert(0, sys.argv[1])
from vmpool_agent import generators

class BitGenerator:
    def __init__(self, words):
        self.state = words

class PCG64(BitGenerator):
    pass

class Proxy:
    __class__ = property(lambda self: 1 / 0)

def seed(words):
    drawn["numpy"] = words

numpy_random = types.ModuleType("numpy.random")
numpy_random.BitGenerator, numpy_random.seed = BitGenerator, seed
numpy_random.bit_generator = types.SimpleNamespace(randbits=None)
sys.modules["numpy.random"] = numpy_random
drawn, proxy = {}, Proxy()
random.seed(1)
mine, of_numpy, system = random.Random(2), PCG64([3]), random.SystemRandom()
state, mine_state = random.getstate(), mine.getstate()
for turn in range(2):
    random.setstate(state)
    mine.setstate(mine_state)
    of_numpy.state, drawn["numpy"] = [3], None
    generators.reseed(json.loads(sys.argv[2]))
    randbits = numpy_random.bit_generator.randbits
    print(json.dumps({
        "random": random.random(),
        "mine": mine.random(),
        "numpy": drawn["numpy"],
        "of_numpy": of_numpy.state,
        "default": randbits and randbits(128),
        "system": system.random(),
    }))
"""
RULED = ("random", "mine", "numpy", "of_numpy", "default")
UNTOUCHED = {
    "random": 0.13436424411240122,
    "mine": 0.9560342718892494,
    "numpy": None,
    "of_numpy": [3],
    "default": None,
}


def twins(rng: dict[str, Any]) -> list[dict[str, Any]]:
    ended = subprocess.run(
        [sys.executable, "-c", TWINS, AGENT, json.dumps(rng)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_unique_twins_share_no_generator_whoever_made_it() -> None:
    one, other = twins(UNIQUE)
    for what in RULED:
        assert one[what] != other[what], what
        assert UNTOUCHED[what] not in (one[what], other[what]), what


def test_twins_with_one_seed_share_all_but_the_kernels() -> None:
    one, other = twins(SEVEN)
    for what in RULED:
        assert one[what] == other[what] != UNTOUCHED[what], what
    assert one["system"] != other["system"]
    drawn = [json.dumps(one[what]) for what in ("numpy", "of_numpy")]
    assert len(set(drawn)) == 2


def test_preserved_twins_go_on_where_they_were() -> None:
    for twin in twins(PRESERVE):
        assert {what: twin[what] for what in RULED} == UNTOUCHED


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_a_seed_of_any_size_is_as_good(seed: int) -> None:
    one, other = twins({**SEVEN, "seed": seed})
    assert one["random"] == other["random"]
