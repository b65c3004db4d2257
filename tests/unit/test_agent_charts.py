"""What is told of matplotlib's figures as data, and of values beside how they are shown."""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import pytest

from tests.connected_agent import connected
from tests.context_runs import create, run
from vmpool.model import Result
from vmpool_agent import forms

mpl.use("Agg")

import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.shares_host


@pytest.fixture
def axes() -> Iterator[Any]:
    """The axes of a figure of their own."""
    figure, made = plt.subplots()
    yield made
    plt.close(figure)


def chart(figure: Any) -> dict[str, Any]:
    """Return what is told of a figure."""
    told = forms.chart(figure)
    assert told is not None
    return dict(json.loads(told))


def test_a_line_of_dates_has_them_as_such(axes: Any) -> None:
    days = [datetime.date(2026, 9, 1) + datetime.timedelta(days=day) for day in range(3)]
    axes.plot(days, [1, 2, float("nan")], label="rain")
    axes.plot(days, [3, 2, 1])
    axes.set(title="Weather", xlabel="Day", ylabel="Rain (mm)")
    told = chart(axes.figure)
    assert (told["type"], told["title"]) == ("line", "Weather")
    assert (told["x_label"], told["x_unit"]) == ("Day", None)
    assert (told["y_label"], told["y_unit"]) == ("Rain (mm)", "mm")
    assert (told["x_scale"], told["y_scale"]) == ("datetime", "linear")
    assert datetime.datetime.fromisoformat(told["x_ticks"][0]).date() == days[0]
    assert len(told["y_ticks"]) == len(told["y_tick_labels"])
    points = [["2026-09-01", 1.0], ["2026-09-02", 2.0], ["2026-09-03", None]]
    assert told["elements"][0] == {"label": "rain", "points": points}
    assert told["elements"][1]["label"] == ""


def test_names_and_dates_under_scattered_points_are_found_again(axes: Any) -> None:
    axes.scatter(["a", "b"], [datetime.date(2026, 9, 1)] * 2)
    told = chart(axes.figure)
    assert (told["type"], told["x_scale"]) == ("scatter", "categorical")
    assert (told["x_ticks"], told["y_scale"]) == (["a", "b"], "datetime")
    points = [["a", "2026-09-01T00:00:00+00:00"], ["b", "2026-09-01T00:00:00+00:00"]]
    assert told["elements"][0]["points"] == points


def test_bars_are_called_as_their_places_are(axes: Any) -> None:
    for shift, group in ((-0.2, "old"), (0.2, "new")):
        axes.bar([shift, 1 + shift], [10, 20], 0.4, label=group)
    axes.set_xticks([0, 1], ["apples", "pears"])
    told = chart(axes.figure)
    assert told["type"] == "bar"
    assert told["elements"] == [
        {"label": "apples", "value": 10.0, "group": "old"},
        {"label": "pears", "value": 20.0, "group": "old"},
        {"label": "apples", "value": 10.0, "group": "new"},
        {"label": "pears", "value": 20.0, "group": "new"},
    ]


def test_lying_bars_are_called_as_their_places_are(axes: Any) -> None:
    axes.barh(["apples", "pears"], [10, 20], label="all")
    assert chart(axes.figure)["elements"] == [
        {"label": "apples", "value": 10.0, "group": "all"},
        {"label": "pears", "value": 20.0, "group": "all"},
    ]


def test_a_pie_has_its_angles(axes: Any) -> None:
    axes.pie([10, 30], labels=["some", "most"])
    assert chart(axes.figure) == {
        "type": "pie",
        "title": "",
        "elements": [
            {"label": "some", "angle": 90.0, "radius": 1.0},
            {"label": "most", "angle": 270.0, "radius": 1.0},
        ],
    }


@pytest.mark.parametrize("look", [{}, {"patch_artist": True}, {"notch": True}, {"showmeans": True}])
@pytest.mark.parametrize("orientation", ["vertical", "horizontal"])
def test_a_box_plot_has_its_quartiles(axes: Any, look: dict[str, bool], orientation: str) -> None:
    data = [[1, 2, 3, 4, 20], [2, 3, 5]]
    axes.boxplot(data, tick_labels=["wild", "tame"], orientation=orientation, **look)
    told = chart(axes.figure)
    assert told["type"] == "box_and_whisker"
    wild, tame = told["elements"]
    assert wild == {
        "label": "wild",
        "min": 1.0,
        "first_quartile": 2.0,
        "median": 3.0,
        "third_quartile": 4.0,
        "max": 4.0,
        "outliers": [20.0],
    }
    assert (tame["label"], tame["median"], tame["outliers"]) == ("tame", 3.0, [])


def test_several_axes_are_a_chart_of_charts() -> None:
    figure, (left, right, empty) = plt.subplots(1, 3)
    left.semilogy([1, 10, 100])
    right.imshow([[1, 2], [3, 4]])
    empty.axis("off")
    figure.suptitle("both")
    told = chart(figure)
    plt.close(figure)
    assert (told["type"], told["title"]) == ("superchart", "both")
    assert [one["type"] for one in told["elements"]] == ["line", "unknown"]
    assert told["elements"][0]["y_scale"] == "log"


def test_nothing_and_too_much_are_not_told(axes: Any) -> None:
    assert forms.chart(axes.figure) is None
    axes.plot(range(20_001))
    assert forms.chart(axes.figure) is None


def test_values_that_json_cannot_hold_are_not_told_in_it() -> None:
    round_and_round: list[object] = []
    round_and_round.append(round_and_round)
    assert forms.document({"a": [1, None]}) == {"a": [1, None]}
    for value in (round_and_round, [object()], [float("nan")], ["x" * 300_000], [0] * 20_001):
        assert forms.document(value) is None


async def test_contexts_tell_figures_and_lists_as_data(guest: Path) -> None:
    plot = "import matplotlib.pyplot as plt; plt.bar(['a'], [1]); plt.show(); [1, 2]"
    async with connected(guest) as agent:
        shown = [
            event.mime
            for event in await run(agent, await create(agent), plot)
            if isinstance(event, Result)
        ]
    assert json.loads(shown[0]["e2b/chart"])["elements"][0]["label"] == "a"
    assert shown[0]["image/png"]
    assert shown[1] == {"text/plain": "[1, 2]", "application/json": "[1, 2]"}
