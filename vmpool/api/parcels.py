"""Parcels: checkpoints that go from host to host, streamed both ways."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Final, Literal

from aiohttp import web
from msgspec import Meta, Struct

from vmpool.api import intake, outflow, views
from vmpool.api.route import Call, answer
from vmpool.api.sandbox_bodies import CheckpointName
from vmpool.shipping import Cargo, Confidence

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

MEDIA: Final = "application/zstd"


class ExportQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What goes along: the checkpoint alone, or the snapshot that it is the difference from too.

    Attributes:
        secrets: `share` to have one also of a sandbox that was told secrets, with its memory.
    """

    cargo: Literal["delta", "with_base"] = "delta"
    secrets: Literal["keep", "share"] = "keep"


class ImportQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the checkpoint is called here; what it was called, if left out.

    Attributes:
        trust: Public key of the host that exported it, to be believed for this once.
    """

    name: CheckpointName | None = None
    trust: Annotated[str, Meta(max_length=80)] | None = None


async def send(call: Call, query: ExportQuery) -> web.StreamResponse:
    """Send a checkpoint as one compressed file; one that breaks off is noticed by its reader."""
    pieces = call.host.export_checkpoint(
        call.request.match_info["checkpoint"],
        owner=call.caller.owner,
        cargo=Cargo(query.cargo),
        confidence=Confidence(query.secrets),
    )
    async with aclosing(pieces):
        first = await anext(pieces)  # what can be refused is, before the answer begins
        response = web.StreamResponse(headers={"Content-Type": MEDIA})
        await response.prepare(call.request)
        await outflow.send(response.write(first), call.limits)
        async for piece in pieces:
            await outflow.send(response.write(piece), call.limits)
        await response.write_eof()
    return response


async def receive(call: Call, query: ImportQuery) -> web.Response:
    """Keep a checkpoint that some host exported."""
    content: AsyncGenerator[bytes, None] = intake.read_content(call.request, call.limits)
    async with aclosing(content) as chunks:
        kept = await call.host.import_checkpoint(
            chunks, owner=call.caller.owner, name=query.name, believing=query.trust
        )
    return answer(views.checkpoint(kept), status=201)
