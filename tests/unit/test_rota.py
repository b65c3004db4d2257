"""Who waits is served in turn by party, whatever crowd another party sends."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vmpool.rota import Rota
from vmpool.waiters import Line

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

PARTIES = st.sampled_from("abcd")


class Lines(RuleBasedStateMachine):
    """A rota beside the plainest thing that says the same: who is in line, and who was passed.

    Nobody is passed over by more than one of each other party between two of its own turns, and
    within a party nobody overtakes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rota: Rota[tuple[str, int]] = Rota()
        self.lines: dict[str, list[tuple[str, int]]] = {}
        self.passed: dict[str, Counter[str]] = {}
        self.number = 0

    @rule(party=PARTIES)
    def join(self, party: str) -> None:
        self.number += 1
        thing = (party, self.number)
        self.rota.append(party, thing)
        if not self.lines.get(party):
            self.passed[party] = Counter()
        self.lines.setdefault(party, []).append(thing)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if list(self.rota):
            thing = data.draw(st.sampled_from(sorted(self.rota)))
            self.rota.remove(thing)
            self.rota.remove(thing)
            self.lines[thing[0]].remove(thing)

    @rule(deaf=st.sets(PARTIES, max_size=2))
    def serve(self, deaf: set[str]) -> None:
        """Serve the first that hears; those of deaf parties have left unseen."""
        served: list[tuple[str, int]] = []

        def accepts(thing: tuple[str, int]) -> bool:
            self.lines[thing[0]].remove(thing)
            if thing[0] in deaf:
                return False
            served.append(thing)
            return True

        assert self.rota.serve(accepts) == bool(served)
        for party, number in served:
            assert all(number < later for _, later in self.lines[party])
            for other, line in self.lines.items():
                if line and other != party:
                    self.passed[other][party] += 1
                    assert self.passed[other][party] <= 1, f"{other} was passed over again"
            self.passed[party] = Counter()

    @invariant()
    def all_are_in_line(self) -> None:
        assert sorted(self.rota) == sorted(each for line in self.lines.values() for each in line)


TestLines = Lines.TestCase


def takes_into(served: list[T]) -> Callable[[T], bool]:
    """Return who takes whatever it is offered."""

    def accepts(thing: T) -> bool:
        served.append(thing)
        return True

    return accepts


@given(st.lists(PARTIES, max_size=30))
def test_all_are_served_once(parties: list[str]) -> None:
    rota: Rota[int] = Rota()
    for number, party in enumerate(parties):
        rota.append(party, number)
    served: list[int] = []
    while rota.serve(takes_into(served)):
        pass
    assert sorted(served) == list(range(len(parties)))


def test_whose_turn_it_was_already_is_first_of_all() -> None:
    rota: Rota[str] = Rota()
    rota.append("a", "a1")
    rota.append("b", "b1")
    rota.prepend("b", "b0")
    served: list[str] = []
    while rota.serve(takes_into(served)):
        pass
    assert served == ["b0", "a1", "b1"]


async def test_one_caller_among_another_tenants_crowd_is_second() -> None:
    line: Line[int] = Line()
    crowd = [line.join("crowd") for _ in range(200)]
    alone = line.join("alone")
    assert (line.count("crowd"), line.count("alone"), len(line)) == (200, 1, 201)
    assert line.offer(1)
    assert line.offer(2)
    assert not crowd[0].waits
    assert not alone.waits
    assert (await crowd[0], await alone) == (1, 2)
    line.fail(lambda: OSError("over"))
    outcomes = await asyncio.gather(*crowd[1:], return_exceptions=True)
    assert {type(each) for each in outcomes} == {OSError}
    with pytest.raises(StopIteration):
        next(iter(line._waiters))
