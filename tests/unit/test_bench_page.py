"""The page of a run needs nothing beside it, carries the run, and runs nothing of a stranger's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from bench import page, record
from bench.charts.gallery import CHARTS
from tests import bench_runs

if TYPE_CHECKING:
    from pathlib import Path

bench_runs.open_fonts()  # before anybody counts descriptors

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)> $\\frac{1}{0}$ & \x00"
PARTS = {"guest RAM": {"private_bytes": 6_000_000}, EVIL: {"private_bytes": 9_000_000}}


def whole(word: str = "plain") -> record.Record:
    """Return a run with something for every chart."""
    series, finding = bench_runs.series, bench_runs.finding
    return bench_runs.run(
        finding(
            "create",
            series("create, a clone ready", 2.0, 3.0, 9.0, floor="HTTP round trip"),
            series(word, 1.0),
            remarks=(word,),
        ),
        finding("floors", series("HTTP round trip", 0.5)),
        finding(
            "restore", series("256 MiB: spawn", 40.0), series("256 MiB: to resumed", 45.0, 46.0)
        ),
        finding(
            "throughput",
            *(series(f"run, {n} clients: rate", 5.0, unit="1/s") for n in (1, 4)),
            *(series(f"run, {n} clients: latency", 100.0 * n) for n in (1, 4)),
        ),
        finding("crowd", series("10 alive: create", 3.0), series("100 alive: create", 4.0)),
        finding("burst", series("create, one of 3 at once", 1.0, 2.0, 3.0)),
        finding("memory", series("ready: unshared", 15.0, unit="MB"), notes={"ready": [PARTS]}),
        finding(
            "peers",
            series("vmpool, ready clone: first output", 20.0, 22.0),
            series(f"{word}: first output", 900.0),
            notes={"peers": {word: word}},
        ),
    )


def test_every_chart_is_in_the_page_of_a_whole_run() -> None:
    text = page.render(whole())
    for chart in CHARTS:
        assert f'<section id="{chart.name}">' in text
    assert text.count("<svg") == len(CHARTS)
    assert "45.5" in text  # the median
    assert "6.0" in text  # times the floor of 0.5


def test_a_page_needs_nothing_from_elsewhere() -> None:
    text = page.render(whole())
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', text.replace("xlink:href", "href"))
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_a_page_carries_its_run(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    path.write_text(page.render(whole(EVIL)))
    assert record.load(path) == whole(EVIL)


def test_a_strangers_words_stay_words() -> None:
    text = page.render(whole(EVIL))
    assert text.count("<script") == 1
    assert text.count("</script") == 1
    assert "<img" not in text
    assert "alert(1)" in text


def test_a_strangers_numbers_and_notes_break_nothing() -> None:
    odd = whole()
    moment = msgspec.structs.replace(odd.before, unix_ns=10**30)
    notes = {"ready": [{"guest RAM": 5}, 7], "peers": "none", "x": [[]]}
    extreme = bench_runs.finding(
        "create", bench_runs.series("create, a clone ready", 0.0, -1.0, 1e300), notes=notes
    )
    memory = bench_runs.finding("memory", bench_runs.series("ready: unshared", 1.0), notes=notes)
    odd = msgspec.structs.replace(odd, before=moment, findings=[extreme, memory])
    assert "at an unknown time" in page.render(odd)


def test_a_run_without_anything_has_a_page_without_charts() -> None:
    text = page.render(msgspec.structs.replace(bench_runs.run(), host=None, subjects=[]))
    assert "<svg" not in text


def test_a_busy_machine_is_said_to_be_one() -> None:
    quiet = bench_runs.run(bench_runs.finding("create", bench_runs.series("kill", 1.0)))
    busy = bench_runs.run(
        bench_runs.finding("create", bench_runs.series("kill", 1.0), calibration_ms=(10.0, 16.0))
    )
    assert "was not quiet" not in page.render(quiet)
    assert "was not quiet" in page.render(busy)


def test_pictures_are_png_files_and_the_same_each_time() -> None:
    first, second = dict(page.pictures(whole())), dict(page.pictures(whole()))
    assert first.keys() == {f"{chart.name}.png" for chart in CHARTS}
    assert all(content.startswith(b"\x89PNG") for content in first.values())
    assert first == second
