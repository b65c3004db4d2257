"""Connect: endpoints made of functions, asked over loopback as E2B's clients do, and otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from vmpool.api.budget import BUDGET, Budget
from vmpool.api.e2b import connect, problem
from vmpool.api.e2b.connect import NOTHING, Nothing
from vmpool.api.e2b.envelope import END, MESSAGE, Frames, enclose
from vmpool.api.e2b.visit import Endpoint, Shape, Visit
from vmpool.api.limits import Limits
from vmpool.config import RequestSettings, Settings
from vmpool.errors import (
    CapacityError,
    ConflictError,
    GuestError,
    InvalidRequestError,
    NotFoundError,
    TaskError,
    TaskTimeoutError,
    TooLargeError,
    VmpoolError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

GRACE = 30.0
STREAM = {"Content-Type": connect.STREAM}
MOST_BYTES = 1000


class Word(Struct, frozen=True, kw_only=True):
    """A message of the tests."""

    word: str = ""
    count: int = 1


def frame(message: object) -> bytes:
    return enclose(MESSAGE, json.dumps(message).encode())


def unframed(data: bytes) -> list[tuple[int, Any]]:
    found = []
    while data:
        flags, size = struct.unpack_from(">BI", data)
        assert len(data) >= 5 + size
        found.append((flags, json.loads(data[5 : 5 + size])))
        data = data[5 + size :]
    return found


@contextlib.asynccontextmanager
async def served(
    endpoint: Endpoint, *, alive: bool = True, **requests: Any
) -> AsyncIterator[aiohttp.ClientSession]:
    """Serve one endpoint, and yield a client whose requests to any path reach it."""
    sandbox: Any = SimpleNamespace(owner="somebody", over=not alive, has_machine=alive)
    limits = Limits.of(Settings(requests=RequestSettings(body_bytes=MOST_BYTES, **requests)))

    async def handle(request: web.Request) -> web.StreamResponse:
        host: Any = None
        visit = Visit(request=request, host=host, limits=limits, sandbox=sandbox)
        try:
            return await endpoint.run(visit)
        except VmpoolError as err:
            return problem.respond(err, Shape.CONNECT)

    app = web.Application()
    app[BUDGET] = Budget(MOST_BYTES * 100)
    app.router.add_post("/", handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        async with (
            asyncio.timeout(GRACE),
            aiohttp.ClientSession(base_url=f"http://{host}:{port}") as session,
        ):
            yield session
    finally:
        await runner.cleanup()


async def echo(_: Visit, body: Word) -> Word:
    return body


async def repeat(_: Visit, body: Word) -> AsyncGenerator[Word, None]:
    for _each in range(body.count):
        yield Word(word=body.word)


async def join(_: Visit, words: AsyncIterator[Word]) -> Word:
    return Word(word=" ".join([each.word async for each in words]))


UNARY = connect.unary(Word, echo)
REPEAT = connect.server_stream(Word, repeat, keepalive=Nothing())
JOIN = connect.client_stream(Word, join)


async def asked(endpoint: Endpoint, **request: Any) -> tuple[int, Any]:
    async with served(endpoint) as client, client.post("/", **request) as response:
        return response.status, await response.json()


async def streamed(endpoint: Endpoint, body: Any, **headers: str) -> list[tuple[int, Any]]:
    async with (
        served(endpoint) as client,
        client.post("/", data=body, headers=STREAM | headers) as response,
    ):
        assert (response.status, response.content_type) == (200, connect.STREAM)
        return unframed(await response.read())


@given(
    messages=st.lists(st.binary(max_size=40)),
    cuts=st.lists(st.integers(min_value=1, max_value=60), min_size=1),
)
def test_messages_come_out_of_frames_however_these_are_cut(
    messages: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(enclose(MESSAGE, each) for each in messages)
    frames = Frames(40)
    found: list[bytes] = []
    while data:
        for cut in cuts:
            found += frames.feed(data[:cut])
            data = data[cut:]
    frames.finish()
    assert found == messages


@pytest.mark.parametrize("flags", [1, END, 3, 4, 255])
def test_a_frame_with_flags_that_no_client_has_is_refused(flags: int) -> None:
    with pytest.raises(InvalidRequestError):
        list(Frames(40).feed(enclose(flags, b"{}")))


def test_a_frame_that_is_going_to_be_too_large_is_refused_by_its_head() -> None:
    frames = Frames(40)
    assert list(frames.feed(enclose(MESSAGE, bytes(40)))) == [bytes(40)]
    with pytest.raises(TooLargeError):
        list(frames.feed(enclose(MESSAGE, bytes(41))[:5]))


def test_a_stream_that_ends_within_a_frame_is_refused() -> None:
    frames = Frames(40)
    assert not list(frames.feed(enclose(MESSAGE, b"{}")[:-1]))
    with pytest.raises(InvalidRequestError):
        frames.finish()


async def test_one_message_is_answered_with_one_and_what_nobody_knows_is_passed_over() -> None:
    assert await asked(UNARY, json={"word": "a", "of": {"the": "future"}}) == (
        200,
        {"word": "a", "count": 1},
    )


@pytest.mark.parametrize(
    "request_",
    [
        {"json": {"word": 7}},
        {"json": ["no", "object"]},
        {"data": b"\xff", "headers": {"Content-Type": "application/json"}},
        {"data": b"", "headers": {"Content-Type": "application/json"}},
        {"data": b"{}", "headers": {"Content-Type": "application/proto"}},
        {"data": b"{}", "headers": STREAM},
        {"json": {}, "headers": {"Connect-Protocol-Version": "2"}},
        {"json": {}, "headers": {"Connect-Timeout-Ms": "soon"}},
        {"json": {}, "headers": {"Connect-Timeout-Ms": "99999999999"}},
        {"json": {"word": "x" * MOST_BYTES}},
    ],
)
async def test_a_message_that_is_none_is_an_invalid_argument(request_: dict[str, Any]) -> None:
    status, answer = await asked(UNARY, **request_)
    assert (status, answer["code"]) == (400, "invalid_argument")
    assert answer["message"]


async def test_an_answer_that_takes_too_long_says_so() -> None:
    async def wait(_: Visit, __: Word) -> Nothing:
        await asyncio.Event().wait()
        return NOTHING

    status, answer = await asked(
        connect.unary(Word, wait), json={}, headers={"Connect-Timeout-Ms": "10"}
    )
    assert (status, answer["code"]) == (504, "deadline_exceeded")


async def test_a_stream_ends_with_a_frame_that_says_so() -> None:
    word = {"word": "a", "count": 1}
    assert await streamed(REPEAT, frame({"word": "a", "count": 2})) == [
        (MESSAGE, word),
        (MESSAGE, word),
        (END, {}),
    ]
    assert await streamed(JOIN, frame({"word": "a"}) + frame({"word": "b"})) == [
        (MESSAGE, {"word": "a b", "count": 1}),
        (END, {}),
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        frame({}) * 2,
        frame({}) + b"\0",
        frame({"count": "many"}),
        enclose(1, b"{}"),
        enclose(END, b"{}"),
        b"\0\xff\xff\xff\xff",
        enclose(MESSAGE, b"{"),
        enclose(MESSAGE, b""),
    ],
)
async def test_a_broken_stream_is_an_invalid_argument_in_the_last_frame(body: bytes) -> None:
    ((flags, said),) = await streamed(REPEAT, body)
    assert (flags, said["error"]["code"]) == (END, "invalid_argument")


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/json"},
        {"Content-Type": "application/connect+proto"},
        STREAM | {"Connect-Content-Encoding": "gzip"},
        STREAM | {"Content-Encoding": "gzip"},
        STREAM | {"Connect-Protocol-Version": "0"},
        STREAM | {"Connect-Timeout-Ms": "-1"},
    ],
)
async def test_what_is_no_stream_is_refused_before_there_is_one(headers: dict[str, str]) -> None:
    status, answer = await asked(REPEAT, data=frame({}), headers=headers)
    assert (status, answer["code"]) == (400, "invalid_argument")


async def test_an_error_behind_messages_is_told_behind_them() -> None:
    async def fail(_: Visit, __: Word) -> AsyncGenerator[Word, None]:
        yield Word(word="a")
        raise NotFoundError("it is gone")

    endpoint = connect.server_stream(Word, fail, keepalive=Nothing())
    (_, first), (flags, last) = await streamed(endpoint, frame({}))
    assert first["word"] == "a"
    assert (flags, last) == (END, {"error": {"code": "not_found", "message": "it is gone"}})


async def test_an_error_of_a_sandbox_that_is_gone_breaks_the_stream_off() -> None:
    async def fail(_: Visit, __: Word) -> AsyncGenerator[Word, None]:
        raise NotFoundError("it is gone")
        yield

    endpoint = connect.server_stream(Word, fail, keepalive=Nothing())
    async with (
        served(endpoint, alive=False) as client,
        client.post("/", data=frame({}), headers=STREAM) as response,
    ):
        assert response.status == 404  # raised, for the router to tell


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (InvalidRequestError("x"), "invalid_argument"),
        (InvalidRequestError("x", code="unknown_user"), "unauthenticated"),
        (TooLargeError("x"), "invalid_argument"),
        (NotFoundError("x"), "not_found"),
        (ConflictError("x", code="stdin_closed"), "failed_precondition"),
        (TaskTimeoutError("x"), "deadline_exceeded"),
        (TaskError("x", code="guest_no_resources"), "resource_exhausted"),
        (CapacityError("x", code="too_many_channels"), "resource_exhausted"),
        (GuestError("x"), "unavailable"),
        (VmpoolError("x"), "internal"),
    ],
)
def test_an_error_has_the_word_that_clients_make_the_right_exception_of(
    error: VmpoolError, word: str
) -> None:
    assert problem.word_of(error) == word


async def test_a_stream_ends_when_its_time_is_up_and_its_source_is_closed() -> None:
    closed = asyncio.Event()

    async def wait(_: Visit, __: Word) -> AsyncGenerator[Word, None]:
        try:
            yield Word(word="a")
            await asyncio.Event().wait()
        finally:
            closed.set()

    endpoint = connect.server_stream(Word, wait, keepalive=Nothing())
    said = await streamed(endpoint, frame({}), **{"Connect-Timeout-Ms": "10"})
    assert said[-1][0] == END
    assert said[-1][1]["error"]["code"] == "deadline_exceeded"
    assert closed.is_set()


async def test_a_client_that_leaves_closes_the_source() -> None:
    closed = asyncio.Event()

    async def wait(_: Visit, __: Word) -> AsyncGenerator[Word, None]:
        try:
            yield Word(word="a")
            await asyncio.Event().wait()
        finally:
            closed.set()

    endpoint = connect.server_stream(Word, wait, keepalive=Nothing())
    async with served(endpoint) as client:
        async with client.post("/", data=frame({}), headers=STREAM) as response:
            assert await response.content.readexactly(5)
            response.close()
        await closed.wait()


async def test_a_quiet_stream_is_kept_alive_but_not_before_its_first_message() -> None:
    async def keep_quiet(_: Visit, __: Word) -> AsyncGenerator[Struct, None]:
        with contextlib.suppress(TimeoutError):  # the interval and more, with nothing to say
            async with asyncio.timeout(1.2):
                await asyncio.Event().wait()
        yield Word(word="first")
        await asyncio.Event().wait()

    endpoint = connect.server_stream(Word, keep_quiet, keepalive=Nothing())
    headers = STREAM | {"Keepalive-Ping-Interval": "1"}
    async with (
        served(endpoint) as client,
        client.post("/", data=frame({}), headers=headers) as response,
    ):
        first = enclose(MESSAGE, b'{"word":"first","count":1}')
        assert await response.content.readexactly(len(first)) == first
        assert await response.content.readexactly(7) == enclose(MESSAGE, b"{}")
        response.close()


async def test_messages_are_taken_while_their_stream_is_open() -> None:
    taken: asyncio.Queue[str] = asyncio.Queue()

    async def take(_: Visit, words: AsyncIterator[Word]) -> Nothing:
        async for each in words:
            taken.put_nowait(each.word)
        return NOTHING

    async def talk() -> AsyncIterator[bytes]:
        for word in ("a", "b", "c"):
            yield frame({"word": word})
            assert await taken.get() == word

    said = await streamed(connect.client_stream(Word, take), talk())
    assert said == [(MESSAGE, {}), (END, {})]


async def test_a_frame_that_does_not_come_to_its_end_is_given_up() -> None:
    hold = asyncio.Event()

    async def stop_within() -> AsyncIterator[bytes]:
        yield frame({"word": "a"})[:-1]
        await hold.wait()

    async with (
        served(JOIN, body_timeout=0.05) as client,
        client.post("/", data=stop_within(), headers=STREAM) as response,
    ):
        flags, said = unframed(await response.content.readany())[-1]
        assert (flags, said["error"]["code"]) == (END, "deadline_exceeded")
        response.close()
