"""What a slot may send and take in a second, on the kernel of this machine."""

from __future__ import annotations

import os
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests import slot_place
from tests.internet import ALLOWED, PORT
from tests.slot_place import GONE, ONE, OPEN, Place
from vmpool import egress
from vmpool.egress import Bandwidth
from vmpool.errors import HostError
from vmpool.network import plan
from vmpool.network.slots import Slot, Slots

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="networks are root's to make")


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with slot_place.opened() as opened:
        yield opened


async def test_what_is_sent_is_held_to_a_bandwidth(place: Place) -> None:
    rate, payload = 200_000, b"b" * 1000
    async with place.guest({**ONE, "bandwidth": {"up": rate}}) as (guest, _):
        began = time.monotonic()
        for _ in range(25):
            for _ in range(20):
                guest.send_udp(ALLOWED, PORT, payload)
            await place.settle(guest)
        heard = sum(text.startswith("b") for text in place.texts) * len(payload)
        elapsed = time.monotonic() - began
    assert 0 < heard <= (128 << 10) + 1.1 * rate * elapsed


async def test_no_policy_has_more_bandwidth_than_the_operator_lets_it(place: Place) -> None:
    slots = Slots(place.trunk, ready=0, most=Bandwidth(up=200_000))
    seen = []
    async with Place(place.internet, slots, place.trunk).guest(OPEN) as (_, slot):
        for asked in (None, 10_000_000, 100_000):
            slot.enforce(egress.policy({**OPEN, "bandwidth": {"up": asked}}))
            seen += limits_of(place, slot)
    await slots.close()
    assert seen == ["1600Kbit", "1600Kbit", "800Kbit"]


async def test_nor_has_one_that_is_adopted_or_whose_rules_are_refused(place: Place) -> None:
    kept, is_open = await place.slots.take(), egress.policy(OPEN)
    kept.enforce(is_open)
    later = Slots(place.trunk, ready=0, most=Bandwidth(up=200_000))
    adopted = await later.adopt(kept.number, is_open)
    adopted.enforce(is_open)
    assert limits_of(place, adopted) == ["1600Kbit"]
    adopted.recall(replace(is_open, allow=egress.policy(GONE).allow))
    with pytest.raises(HostError):
        adopted.enforce(is_open)
    assert limits_of(place, adopted) == ["1600Kbit"]
    later.give_back(adopted)
    await later.close()
    place.slots.give_back(kept)


def limits_of(place: Place, slot: Slot) -> list[str]:
    """What the kernel holds the link of a slot to, outwards."""
    said = place.internet.run(slot.namespace, "tc", "qdisc", "show", "dev", plan.UP)
    return re.findall(r"rate (\S+)", said)


async def test_a_bandwidth_is_changed_and_lifted_while_it_is_in_use(place: Place) -> None:
    seen = []
    async with place.guest(ONE) as (guest, slot):
        for up in (200_000, 10_000_000, 10**11, None, 200_000):
            slot.enforce(egress.policy({**ONE, "bandwidth": {"up": up, "down": up}}))
            seen.append(limits_of(place, slot))
            await place.settle(guest)
    assert seen == [["1600Kbit"], ["80Mbit"], ["34359Mbit"], [], ["1600Kbit"]]


async def test_rules_that_are_refused_leave_the_bandwidth_that_was(place: Place) -> None:
    limited = egress.policy({**ONE, "bandwidth": {"up": 200_000}})
    async with place.guest(ONE) as (_, slot):
        slot.enforce(limited)
        slot.recall(replace(limited, allow=egress.policy(GONE).allow))
        with pytest.raises(HostError):
            slot.enforce(egress.policy(OPEN))
        assert limits_of(place, slot) == ["1600Kbit"]


async def test_a_bandwidth_that_the_server_before_did_not_set_is_set(place: Place) -> None:
    limited = egress.policy({**ONE, "bandwidth": {"up": 200_000}})
    async with place.guest(ONE) as (_, slot):
        slot.recall(limited)  # the journal was told, and then the server was killed
        slot.enforce(limited)
        assert limits_of(place, slot) == ["1600Kbit"]
