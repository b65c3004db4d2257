"""What a server does for the time that it serves, and undoes."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vmpool.address import Address
from vmpool.cli.listening import bound
from vmpool.cli.running import places, served
from vmpool.client.endpoint import Endpoint
from vmpool.config import ApiSettings, Settings

if TYPE_CHECKING:
    from vmpool.host import Host


async def test_what_stays_is_not_looked_through_for_garbage(host: Host) -> None:
    assert not gc.get_freeze_count()
    with bound(Address(host="127.0.0.1", port=0)) as listener:
        async with served(host, listener):
            assert gc.get_freeze_count() > len(gc.get_objects())
    assert not gc.get_freeze_count()


def test_where_a_server_is_to_be_had_over_tls_is_said() -> None:
    endpoint = Endpoint(url="http://127.0.0.1:8700", token="")
    chain = Path("/etc/chain.pem")

    def said(**api: Any) -> str:
        host: Any = SimpleNamespace(settings=Settings(api=ApiSettings(**api)))
        return places(host, endpoint)

    assert said(domain="box.example") == "http://127.0.0.1:8700"
    assert said(certificate=chain, certificate_key=chain) == "http://127.0.0.1:8700"
    named = said(domain="box.example:8700", certificate=chain, certificate_key=chain)
    assert named == "http://127.0.0.1:8700 and, over TLS, https://api.box.example:8700"
