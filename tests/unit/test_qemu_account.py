"""Whom QEMUs run as: no two of them as the same, whatever is drawn."""

from __future__ import annotations

import os
import secrets
import tempfile
from typing import TYPE_CHECKING

import pytest

from tests.stand_ins import isolated
from vmpool.engine.qemu import process
from vmpool.engine.qemu.jail import account
from vmpool.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Sequence

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives its children user ids")


def draw_in_turn(monkeypatch: pytest.MonkeyPatch, *uids: int) -> None:
    """Have these drawn one after the other, and the last of them ever after."""
    left = list(uids)

    def choice(_: Sequence[int]) -> int:
        return left.pop(0) if len(left) > 1 else left[0]

    monkeypatch.setattr(secrets, "choice", choice)


@pytest.mark.parametrize(
    ("uid_map", "first"),
    [("0 0 4294967295\n", 0x70000000), ("0 100000 65536\n", 61184), ("0 0 1\n1 9 65535\n", 61184)],
)
def test_user_ids_are_drawn_from_those_that_there_are(uid_map: str, first: int) -> None:
    assert account.usable_uids(uid_map, uid_map)[0] == first


def test_a_root_without_user_ids_to_spare_is_told() -> None:
    with pytest.raises(HostError) as caught:
        account.usable_uids("0 0 4294967295\n", "0 1000 1\n")
    assert caught.value.error_code == "account_unfit"


@as_root
async def test_an_account_that_a_process_has_is_given_to_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = 0x70001111, 0x70002222
    draw_in_turn(monkeypatch, first, first, second)
    walled = isolated()
    with tempfile.TemporaryFile() as log:
        with walled.for_one() as jail:
            assert jail.account is not None
            assert jail.account.uid == first
            sleeper = await process.spawn(("sleep", "60"), slots={}, log=log.fileno(), jail=jail)
        # Nobody here remembers it: that is how it stands with a server after a crash.
        with walled.for_one() as jail:
            assert jail.account is not None
            assert jail.account.uid == second
    await sleeper.kill()
    assert not account.is_taken(first)


def test_an_account_that_is_being_given_is_drawn_by_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = 0x70003333, 0x70004444
    draw_in_turn(monkeypatch, first, first, second)
    with account.drawn(range(2)) as one, account.drawn(range(2)) as other:
        assert (one.uid, other.uid) == (first, second)


def test_a_host_whose_accounts_are_all_taken_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_in_turn(monkeypatch, 0x70005555)
    with account.drawn(range(1)), pytest.raises(HostError) as caught, account.drawn(range(1)):
        pass
    assert caught.value.error_code == "account_unfit"
    with account.drawn(range(1)):  # given back
        pass
