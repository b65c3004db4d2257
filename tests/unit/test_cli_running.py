"""What a server does for the time that it serves, and undoes."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from vmpool.address import Address
from vmpool.cli.listening import bound
from vmpool.cli.running import served

if TYPE_CHECKING:
    from vmpool.host import Host


async def test_what_stays_is_not_looked_through_for_garbage(host: Host) -> None:
    assert not gc.get_freeze_count()
    with bound(Address(host="127.0.0.1", port=0)) as listener:
        async with served(host, listener):
            assert gc.get_freeze_count() > len(gc.get_objects())
    assert not gc.get_freeze_count()
