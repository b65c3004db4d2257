"""What names open stays open for as long as was said, and there is not too much of it."""

from __future__ import annotations

import re
from ipaddress import IPv4Address

import pytest

from vmpool.errors import HostError
from vmpool.network.openings import MOST, Openings

ADDRESS = IPv4Address("203.0.113.7")
FIRST = int(IPv4Address("203.0.113.0"))


@pytest.mark.parametrize("pause", [1.0, 4.0, 30.0, 64.0, 70.0])
def test_an_address_that_is_asked_for_again_and_again_stays_open(pause: float) -> None:
    closes, openings, now = 0.0, Openings(), 1000.0
    for _ in range(200):
        script, openings = openings.extended({"names_a"}, [ADDRESS], 65.0, now)
        if found := re.search(r"timeout (\d+)s", script):
            closes = now + int(found[1])
        assert closes >= now + 65.0 - 5.0, "it closes earlier than the guest was told"
        now += pause


def test_a_shorter_time_closes_nothing_earlier() -> None:
    _, openings = Openings().extended({"names_a"}, [ADDRESS], 3600.0, 1000.0)
    script, openings = openings.extended({"names_a"}, [ADDRESS], 60.0, 1001.0)
    assert script == ""
    assert openings.until["names_a", ADDRESS] == 4600.0


def test_a_guest_that_has_addresses_made_up_is_held_to_a_number() -> None:
    sets, openings = {f"names_{number}" for number in range(256)}, Openings()
    made_up = [IPv4Address(FIRST + number) for number in range(MOST // 256 + 1)]
    for each in made_up[:-1]:
        _, openings = openings.extended(sets, [each], 3600.0, 1000.0)
    assert len(openings.until) == MOST
    with pytest.raises(HostError):
        openings.extended(sets, made_up[-1:], 3600.0, 1000.0)
    openings.extended(sets, made_up[:-1], 3600.0, 1001.0)  # what is open may stay so
    # When they have closed, others are opened.
    script, openings = openings.extended(sets, [ADDRESS], 60.0, 5000.0)
    assert script.count(str(ADDRESS)) == len(openings.until) == 256


def test_what_is_open_by_a_rule_that_is_gone_is_forgotten() -> None:
    _, openings = Openings().extended({"names_a", "names_b"}, [ADDRESS], 60.0, 1000.0)
    assert set(openings.only({"names_b"}).until) == {("names_b", ADDRESS)}
