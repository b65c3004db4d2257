"""The suite's own command line, for what needs no machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import vmpool
from bench import record
from bench.command import main
from tests import bench_runs
from vmpool.cli import bench
from vmpool.errors import HostError

bench_runs.open_fonts()  # before anybody counts descriptors

FAST = bench_runs.run(bench_runs.finding("create", bench_runs.series("kill", *[10.0] * 8)))
SLOW = bench_runs.run(bench_runs.finding("create", bench_runs.series("kill", *[20.0] * 8)))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "fast.json").write_bytes(bench_runs.written(FAST))
    (tmp_path / "slow.json").write_bytes(bench_runs.written(SLOW))
    return tmp_path


def ended(*argv: str | Path) -> object:
    with pytest.raises(SystemExit) as raised:
        main([str(word) for word in argv])
    return raised.value.code


def test_a_comparison_exits_with_1_when_something_became_slower(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("compare", runs / "fast.json", runs / "slow.json") == 1
    assert "slower:\n  create of base: kill" in capsys.readouterr().out
    assert ended("compare", runs / "slow.json", runs / "fast.json") == 0
    assert ended("compare", runs / "fast.json", runs / "fast.json") == 0


def test_a_page_is_as_good_as_what_it_was_made_of(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("report", runs / "slow.json", "--out", runs / "new" / "pages") == 0
    said = [Path(line) for line in capsys.readouterr().out.split()]
    assert said[0] == runs / "new" / "pages" / "slow.html"
    assert all(path.is_file() for path in said)
    assert record.load(said[0]) == SLOW
    assert ended("compare", runs / "fast.json", said[0]) == 1


def test_a_file_that_is_no_run_is_refused(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "other.json").write_text("{}")
    assert ended("report", runs / "other.json") == 1
    assert "[bench_record_damaged]" in capsys.readouterr().err
    assert not list(runs.glob("*.html"))


def test_in_a_checkout_vmpool_has_the_suites_command() -> None:
    found = bench._found(Path(vmpool.__file__).parent.parent)
    assert CliRunner().invoke(found, ["--help"]).exit_code == 0


@pytest.mark.parametrize("words", [[], ["--help"], ["report", "run.json", "--out", "x"]])
def test_without_a_checkout_the_command_says_where_the_suite_is(
    tmp_path: Path, words: list[str]
) -> None:
    found = bench._found(tmp_path)
    ended = CliRunner().invoke(found, words)
    assert isinstance(ended.exception, HostError)
    assert ended.exception.error_code == "bench_not_installed"
