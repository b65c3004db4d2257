"""Programs of a clone that has a seed begin with it, whatever they import and when."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.connected_agent import connected, output, run
from vmpool.agent import archive
from vmpool.model import Code, Command, Identity, Seed, Unique

pytestmark = pytest.mark.shares_host

AGENT = Path(__file__).parents[2] / "guest-agent"
SEEDED = AGENT / "vmpool_agent" / "seeded"
DRAW = "import random; print(random.random(), random.SystemRandom().random())"
NUMPY = """
import types
bit_generator = types.SimpleNamespace(randbits=None)
def seed(number):
    global drawn
    drawn = number
"""


def python(source: str, path: str, seed: str = "7") -> str:
    ended = subprocess.run(
        [sys.executable, "-c", source],
        env=os.environ | {"PYTHONPATH": path, "VMPOOL_SEED": seed},
        check=True,
        capture_output=True,
        text=True,
    )
    assert not ended.stderr
    return ended.stdout


def numpy_in(directory: Path) -> Path:
    """Put a package that is called numpy, and notes how it is seeded, into a directory."""
    package = directory / "numpy" / "random"
    package.mkdir(parents=True)
    (directory / "numpy" / "__init__.py").touch()
    (package / "__init__.py").write_text(NUMPY)
    return directory


async def test_programs_and_runs_draw_the_same_and_their_children_too(guest: Path) -> None:
    shell = f"sh -c 'python3 -c \"{DRAW}\"'"
    async with connected(guest) as agent:
        await agent.identify(Identity.fresh("clone"), rng=Seed(7), timeout=10)
        drawn = [
            output(await run(agent, what)).split()
            for what in (
                Code(source=DRAW),
                Command(argv=("python3", "-c", DRAW)),
                Code(source=f"import subprocess; subprocess.run({shell!r}, shell=True)"),
            )
        ]
        await agent.identify(Identity.fresh("clone"), rng=Unique(), timeout=10)
        unique = output(await run(agent, Command(argv=("python3", "-c", DRAW)))).split()
    expected = repr(random.Random(7).random()).encode()
    assert [numbers[0] for numbers in drawn] == [expected] * 3
    assert len({numbers[1] for numbers in drawn}) == 3
    assert unique[0] != expected


@pytest.mark.parametrize(("seed", "told"), [(7, 7), (2**32 + 5, [5, 1])])
def test_what_is_imported_later_is_seeded_as_it_comes(
    tmp_path: Path, seed: int, told: object
) -> None:
    source = (
        f"import sys; sys.path.insert(0, {str(numpy_in(tmp_path))!r})\n"
        "import numpy.random, inspect\n"
        "print(numpy.random.drawn, numpy.random.bit_generator.randbits(128))\n"
        "print(type(numpy.random.__loader__).__module__.startswith('vmpool_agent'))\n"
        "print(inspect.getsource(numpy.random).strip().splitlines()[0])\n"
    )
    expected = f"{told} {random.Random(seed).getrandbits(128)}\nFalse\nimport types\n"
    assert python(source, str(SEEDED), str(seed)) == expected


def test_a_clone_that_is_unique_again_leaves_what_comes_to_itself(tmp_path: Path) -> None:
    package = numpy_in(tmp_path)
    source = (
        f"import sys; sys.path[:0] = [{str(AGENT)!r}, {str(package)!r}]\n"
        "from vmpool_agent import generators\n"
        "told = {'epoch': 1, 'seed': 7, 'preserve': False}\n"
        "generators.reseed(told)\n"
        "generators.reseed({**told, 'seed': None})\n"
        "import numpy.random; print(hasattr(numpy.random, 'drawn'))\n"
    )
    assert python(source, "") == "False\n"


def test_a_program_finds_no_trace_of_the_agent_on_its_path(tmp_path: Path) -> None:
    archive(tmp_path / "agent.pyz")
    inside = str(tmp_path / "agent.pyz" / "vmpool_agent" / "seeded")
    source = (
        f"import random, sys; print(random.random()); print({str(tmp_path)!r} in str(sys.path))"
    )
    assert python(source, inside) == f"{random.Random(7).random()!r}\nFalse\n"


def test_another_sitecustomize_is_not_kept_from_its_work(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('theirs')")
    path = os.pathsep.join((str(SEEDED), str(tmp_path)))
    assert python("import random; print(random.random())", path) == (
        f"theirs\n{random.Random(7).random()!r}\n"
    )


@pytest.mark.parametrize("seed", ["", "seven", "-7"])
def test_a_number_that_is_none_seeds_nothing(seed: str) -> None:
    drawn = {python("import random; print(random.random())", str(SEEDED), seed) for _ in range(2)}
    assert len(drawn) == 2
