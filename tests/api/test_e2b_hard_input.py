"""What no client of E2B's sends: each path is asked everything, and says no in words."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from yarl import URL

from tests.api.conftest import IMAGE, Server
from vmpool.api.e2b.control.operations import OPERATIONS
from vmpool.api.e2b.table import SERVICES
from vmpool.api.e2b.templates.operations import OPERATIONS as TEMPLATE_OPERATIONS

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy

WORDS = {
    "id": "no-such",
    "build": "no-such",
    "digest": "0" * 64,
    "alias": "a%00b",
    "secret": "x",
    "context": "no-such",
}
GRACE = 30.0
DEEP = b'{"templateID":' + b"[" * 100_000
BODIES = (
    b"",
    b"null",
    b"[]",
    b'"text"',
    b"{",
    b"\xff\xfe",
    DEEP,
    b'{"timeout":1e999,"limit":NaN}',
    b'{"timeout":-1,"count":99999999999999999999,"name":"\\u0000","process":{"cmd":"\\ud800"}}',
    b'{"process":{"pid":-1},"signal":"SIGNAL_UNKNOWN","path":"\\u0000","code":7,"steps":[{}]}',
    b"\x01\x00\x00\x00\x02{}",
    b"\x00\xff\xff\xff\xff{}",
    b"\x00\x00",
)
TYPES = ("application/json", "application/connect+json", "application/proto", "text/plain", "")
QUERIES = ("", "limit=0&nextToken=x&start=-1&logsOffset=-1", "path=%00&signature=%FF&metadata=%25")


def asked() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield all that can be asked, by method, path and headers that say of which port."""
    for operation in (*OPERATIONS, *TEMPLATE_OPERATIONS):
        yield operation.method, operation.path, {}
    for port, table in SERVICES.items():
        for method, path in table:
            yield method, path, {"E2b-Sandbox-Port": str(port)}


def inputs(method: str) -> Iterator[tuple[bytes, str, str]]:
    """Yield body, type and query of what a path is asked."""
    if method in {"GET", "DELETE"}:
        yield from ((b"", "", query) for query in QUERIES)
    else:
        yield from ((body, kind, "") for body in BODIES for kind in TYPES)


def is_readable(status: int, headers: CIMultiDictProxy[str], body: bytes) -> bool:
    """Tell whether an answer is one that a client of E2B's can read."""
    kind = headers.get("Content-Type", "")
    if status < 400:
        return kind != "application/connect+json" or b'"error"' in body
    if kind.startswith("text/plain"):
        return bool(body)
    said = json.loads(body)
    return bool(said["message"]) and (said["code"] == status or isinstance(said["code"], str))


@pytest.fixture
async def made(server: Server) -> dict[str, str]:
    """The headers that open a sandbox."""
    answer = await server.make_sandbox()
    return {"E2b-Sandbox-Id": answer["id"], "X-Access-Token": answer["access_token"]}


async def test_no_path_is_brought_to_say_what_nobody_foresaw(
    server: Server, made: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, logger="vmpool.api.edge")
    count, wrong = 0, []
    for method, path, more in asked():
        place = re.sub(r"\{(\w+)[^}]*\}", lambda name: WORDS.get(name[1], "x"), path)
        headers = {"X-API-KEY": server.token, **(made | more if more else {})}
        for body, kind, query in inputs(method):
            url = URL(f"{server.url}{place}?{query}", encoded=True)
            request: dict[str, Any] = {"data": body} if body else {}
            async with (
                asyncio.timeout(GRACE),
                server.session.request(
                    method, url, headers=headers | {"Content-Type": kind}, **request
                ) as response,
            ):
                said = await response.read()
            well = response.status < 500 or response.status in {501, 502}
            if not well or not is_readable(response.status, response.headers, said):
                wrong.append((method, path, body[:60], kind, query, response.status, said[:200]))
            count += 1
    assert not wrong, "\n".join(map(str, wrong))
    assert not caplog.records, [record.getMessage() for record in caplog.records]
    assert count > 500


async def test_a_stranger_learns_nothing_from_what_is_refused(
    server: Server, made: dict[str, str]
) -> None:
    other = await server.make_sandbox()
    pairs = (
        made | {"X-Access-Token": other["access_token"]},
        made | {"X-Access-Token": ""},
        made | {"X-Access-Token": "\N{LATIN SMALL LETTER U WITH DIAERESIS}"},
        made | {"E2b-Sandbox-Port": "0"},
        made | {"E2b-Sandbox-Port": "4998\N{SUPERSCRIPT THREE}"},
        made | {"E2b-Sandbox-Id": "../" + made["E2b-Sandbox-Id"]},
        made | {"E2b-Sandbox-Id": "no0such0sandbox"},
    )
    for headers in pairs:
        status, answer = await server.call(
            "POST",
            "/process.Process/List",
            json={},
            headers={"Authorization": "", **headers},
        )
        assert status in {400, 401, 502}, (headers, answer)
        assert IMAGE not in str(answer)
        assert server.owner not in str(answer)
