"""What is held of a process's output, and what is dropped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmpool_agent.backlog import LIMIT, PIECE_COST, Backlog

writes = st.lists(
    st.tuples(st.sampled_from((1, 2)), st.integers(1, 40_000)), min_size=1, max_size=40
)


def written(steps: list[tuple[int, int]]) -> tuple[Backlog, list[tuple[int, int]]]:
    """Return a backlog of writes that nobody reads, and each byte with its stream."""
    backlog, whole = Backlog(), []
    for number, (stream, size) in enumerate(steps):
        backlog.append(stream, bytes([number]) * size)
        backlog.trim(backlog.end)
        whole += [(stream, number)] * size
    return backlog, whole


def read_all(backlog: Backlog, place: int, most: int) -> list[tuple[int, int]]:
    found = []
    while piece := backlog.read(place, most):
        stream, data = piece
        assert 0 < len(data) <= most
        place += len(data)
        found += [(stream, byte) for byte in data]
    assert place == backlog.end
    return found


@given(steps=writes, most=st.integers(1000, 40_000), data=st.data())
def test_what_is_held_is_read_as_it_was_written(
    steps: list[tuple[int, int]], most: int, data: st.DataObject
) -> None:
    backlog, whole = written(steps)
    place = data.draw(st.integers(backlog.start, backlog.end))
    assert backlog.end == len(whole)
    assert read_all(backlog, place, most) == whole[place:]


@given(steps=writes)
def test_as_much_is_held_as_may_be_and_no_more(steps: list[tuple[int, int]]) -> None:
    backlog, whole = written(steps)
    held = backlog.end - backlog.start
    assert held <= LIMIT
    assert held == len(whole) or held >= LIMIT - (len(steps) + 1) * PIECE_COST


@given(steps=writes, data=st.data())
def test_what_is_due_is_never_dropped_and_leaves_less_room(
    steps: list[tuple[int, int]], data: st.DataObject
) -> None:
    backlog, whole = written(steps)
    due = data.draw(st.integers(backlog.start, backlog.end))
    room = backlog.room(due)
    assert room <= LIMIT - (backlog.end - due)
    for _ in range(3):
        backlog.append(1, bytes([255]) * 40_000)
        backlog.trim(due)
    assert backlog.start <= due
    assert read_all(backlog, due, 40_000) == whole[due:] + [(1, 255)] * 120_000


def test_crumbs_count_more_than_their_bytes() -> None:
    backlog = Backlog()
    for number in range(10_000):
        backlog.append(1 + number % 2, b"x")
        backlog.trim(backlog.end)
    assert backlog.end - backlog.start == LIMIT // (PIECE_COST + 1)
