"""`vmpool key`: whose key this is, and whose are trusted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from vmpool.cli.keys import command
from vmpool.errors import InvalidRequestError, NotFoundError
from vmpool.trust import HostKey, Keyring

if TYPE_CHECKING:
    from pathlib import Path


def run(state: Path, *words: str) -> str:
    ended = CliRunner().invoke(command, [*words, "--state", str(state)], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.output


def test_the_key_that_is_shown_is_the_one_that_a_server_will_have(tmp_path: Path) -> None:
    shown = run(tmp_path, "show").strip()
    assert shown == run(tmp_path, "show").strip()
    assert shown == str(Keyring.open(tmp_path).own.public)


def test_keys_are_trusted_listed_and_distrusted(tmp_path: Path) -> None:
    one, other = (str(HostKey.fresh().public) for _ in range(2))
    run(tmp_path, "trust", one, "build-server")
    run(tmp_path, "trust", other)
    assert "build-server" in run(tmp_path, "list")
    listed = json.loads(run(tmp_path, "list", "--json"))
    assert {each["key"]: each["comment"] for each in listed} == {one: "build-server", other: ""}
    run(tmp_path, "distrust", one)
    assert one not in run(tmp_path, "list")
    with pytest.raises(NotFoundError):
        run(tmp_path, "distrust", one)


def test_what_is_no_key_is_not_trusted(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError):
        run(tmp_path, "trust", "../../etc/passwd")
    assert run(tmp_path, "list").count("\n") == 1
