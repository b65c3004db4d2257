"""Idempotency: what a client sends again, because it lost the answer, is done once.

A request may carry a key of its sender's choice. The first with a key is done; one that repeats it
waits for the first or gets its answer again. Only good answers are kept: a failure is told to all
who wait for it and forgotten, since it left nothing behind. Keys belong to the token that sent
them, and are kept for some time and to some number.

An answer is in the journal before it is given, so that the next server gives it as well. What was
made for a request that died with its server was told to nobody, and is undone as that one starts.

After draft-ietf-httpapi-idempotency-key-header, with 409 in place of its 422 for a key that comes
back with another body.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from aiohttp import web

from vmpool.api import codec, intake
from vmpool.api.bodies import Nothing
from vmpool.api.budget import BUDGET, Loan
from vmpool.api.route import Call, Source
from vmpool.cancellation import uninterrupted
from vmpool.errors import ConflictError, InvalidRequestError
from vmpool.store import AnswerRow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmpool.store import Answers

T = TypeVar("T", bound=msgspec.Struct)

KEY_HEADER: Final = "Idempotency-Key"
KEY_PATTERN: Final = "^[!-~]{1,255}$"

REPLAYED_HEADER: Final = "Idempotent-Replayed"
"""Is `true` in an answer that had been given before."""

KEPT_SECONDS: Final = 900.0
"""How long an answer is kept: longer than any client goes on trying."""

SWEEP_SECONDS: Final = 10.0
"""How late an answer may be dropped."""

KEPT_KEYS: Final = 1000
"""Keys of one owner. The oldest answer goes first; what is still being done never goes."""

KEPT_BYTES: Final = 8 << 20
"""All answers to one owner; what is larger is remembered as done, without what came of it."""

TICKET_BYTES: Final = 16

KEPT_NS: Final = int(KEPT_SECONDS * 1e9)

JOURNALED_BYTES: Final = KEPT_BYTES // KEPT_KEYS
"""A larger answer is not given again by the next server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A good answer."""

    status: int
    body: bytes


@dataclass(slots=True, kw_only=True)
class _Entry:
    """One key.

    Attributes:
        asked: Digest of what was asked with it.
        work: Does it; `None` when it is done.
        waiting: Requests that wait for it; with the last of them it is given up.
        given_up: Whether it was, so that whoever comes while it is undone begins anew.
        answer: What came of it; `None` when it is not done yet, or was too large to be kept.
        until: When it is forgotten, on the monotonic clock, once it is done.
    """

    asked: bytes
    work: asyncio.Task[Kept] | None = None
    waiting: int = 0
    given_up: bool = False
    answer: Kept | None = None
    until: float = 0.0


class Ledger:
    """The keys of one server.

    Args:
        journal: Where answers outlive it; `None` for nowhere.
        clock: Monotonic seconds.
    """

    def __init__(
        self, journal: Answers | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._owners: dict[str, dict[str, _Entry]] = {}
        self._sweep_at = 0.0

    async def recall(self) -> None:
        """Know the answers of servers before this one.

        Raises:
            StoreError, DiskFullError: The journal cannot be used.
        """
        if self._journal is None:
            return
        for row in await self._journal.recall(within_ns=KEPT_NS):
            answer = None if row.body is None else Kept(status=row.status, body=row.body)
            self._owners.setdefault(row.owner, {})[row.key] = _Entry(
                asked=row.asked, answer=answer, until=self._clock() + KEPT_SECONDS
            )
            self._shed(row.owner)

    async def record(
        self, *, ticket: bytes, owner: str, key: str, asked: bytes, answer: Kept
    ) -> None:
        """Have the journal know an answer, before it is given.

        Args:
            ticket: Of the sandboxes that it tells of.

        Raises:
            StoreError, DiskFullError: It could not take it.
        """
        if self._journal is None:
            return
        await self._journal.record(
            AnswerRow(
                ticket=ticket,
                owner=owner,
                key=key,
                asked=asked,
                status=answer.status,
                body=answer.body if len(answer.body) <= JOURNALED_BYTES else None,
            ),
            keep=KEPT_KEYS,
            within_ns=KEPT_NS,
        )

    async def once(
        self, *, owner: str, key: str, asked: bytes, work: Callable[[], Awaitable[Kept]]
    ) -> tuple[Kept, bool]:
        """Do `work` unless it was done for this key; return its answer, and whether that is old.

        When the last request that waits for it is cancelled, the work is, and has ended.

        Raises:
            ConflictError: `idempotency_conflict` when the key stood for something else,
                `idempotency_answer_gone` when it was done and its answer was too large to be kept.
            VmpoolError: What `work` raises.
        """
        while True:
            self._forget()
            entry = self._owners.get(owner, {}).get(key)
            replayed = entry is not None
            if entry is None:
                entry = self._begin(owner, key, asked, work)
            elif entry.asked != asked:
                raise ConflictError(
                    "the idempotency key was used for another request",
                    code="idempotency_conflict",
                    remedy="make a new key for each new request",
                )
            if entry.work is None:
                return _answer_of(entry), True
            doing = entry.work
            await _wait(entry, doing)
            if not (doing.cancelled() and entry.given_up):
                return doing.result(), replayed
            # Whoever had begun it left, and this request came while it was being undone.

    def _begin(
        self, owner: str, key: str, asked: bytes, work: Callable[[], Awaitable[Kept]]
    ) -> _Entry:
        entries = self._owners.setdefault(owner, {})
        for old in [name for name, one in entries.items() if one.work is None]:
            if len(entries) < KEPT_KEYS:
                break
            del entries[old]
        entry = entries[key] = _Entry(asked=asked)
        entry.work = asyncio.create_task(self._do(owner, key, entry, work))
        entry.work.add_done_callback(_mark_told)
        return entry

    async def _do(
        self, owner: str, key: str, entry: _Entry, work: Callable[[], Awaitable[Kept]]
    ) -> Kept:
        try:
            answer = await work()
        except BaseException:
            del self._owners[owner][key]
            raise
        entry.work, entry.answer = None, answer
        entry.until = self._clock() + KEPT_SECONDS
        self._shed(owner)
        return answer

    def _shed(self, owner: str) -> None:
        """Drop the oldest answers, not their keys, until the rest is small enough."""
        entries = self._owners[owner].values()
        held = sum(len(entry.answer.body) for entry in entries if entry.answer is not None)
        for entry in entries:
            if held <= KEPT_BYTES:
                break
            if entry.answer is not None:
                held -= len(entry.answer.body)
                entry.answer = None

    def _forget(self) -> None:
        """Drop the keys whose time is up, and owners without any."""
        now = self._clock()
        if now < self._sweep_at:
            return
        self._sweep_at = now + SWEEP_SECONDS
        for owner, entries in list(self._owners.items()):
            for key in [
                key for key, entry in entries.items() if entry.work is None and entry.until <= now
            ]:
                del entries[key]
            if not entries:
                del self._owners[owner]


async def _wait(entry: _Entry, doing: asyncio.Task[Kept]) -> None:
    """Wait until it is done, failed or undone; the last who leaves before that undoes it."""
    entry.waiting += 1
    try:
        await asyncio.wait((doing,))
    finally:
        entry.waiting -= 1
        if not entry.waiting and not doing.done():
            entry.given_up = True
            doing.cancel()
            await uninterrupted(asyncio.wait((doing,)))


def _mark_told(doing: asyncio.Task[Kept]) -> None:
    """Count a failure as told: all who wait for it are, and there may be nobody left who does."""
    if not doing.cancelled():
        doing.exception()


def _answer_of(entry: _Entry) -> Kept:
    if entry.answer is None:
        raise ConflictError(
            "the request was done before, and its answer was too large to be kept",
            code="idempotency_answer_gone",
            remedy="make a new key to have it done again",
        )
    return entry.answer


LEDGER: Final = web.AppKey("ledger", Ledger)


def takes_once(
    body: type[T], endpoint: Callable[[Call, T], Awaitable[web.Response]]
) -> dict[str, Any]:
    """Return the parts of a route whose input is a JSON body, and which takes a key."""

    async def run(call: Call) -> web.StreamResponse:
        codec.parse_query(call.request.query, Nothing)
        with call.request.app[BUDGET].lend(call.caller.owner) as loan:
            return await run_on(call, loan)

    async def run_on(call: Call, loan: Loan) -> web.StreamResponse:
        key = _key_of(call.request)
        data = await intake.read_json(call.request, call.limits, loan)
        asked = codec.decode(data, body)
        if key is None:
            return await endpoint(call, asked)

        owner, ledger = call.caller.bearer, call.request.app[LEDGER]
        digest = hashlib.sha256(call.request.path.encode() + b"\n" + data).digest()

        async def work() -> Kept:
            # Of this work alone: a key may come back when its answer is long forgotten.
            keyed = replace(call, ticket=secrets.token_bytes(TICKET_BYTES))
            made = await endpoint(keyed, asked)
            assert isinstance(made.body, bytes)
            kept = Kept(status=made.status, body=made.body)
            try:
                await ledger.record(
                    ticket=keyed.ticket, owner=owner, key=key, asked=digest, answer=kept
                )
            except BaseException:
                call.host.retract(keyed.ticket)
                raise
            return kept

        answer, replayed = await ledger.once(owner=owner, key=key, asked=digest, work=work)
        return web.Response(
            status=answer.status,
            body=answer.body,
            content_type="application/json",
            headers={REPLAYED_HEADER: "true"} if replayed else {},
        )

    return {"takes": body, "source": Source.BODY, "run": run, "repeatable": True}


def _key_of(request: web.Request) -> str | None:
    key = request.headers.get(KEY_HEADER)
    if key is not None and not re.fullmatch(KEY_PATTERN, key):
        raise InvalidRequestError(
            f"header {KEY_HEADER!r} is not 1 to 255 visible ASCII characters",
            code="invalid_idempotency_key",
        )
    return key
