"""Port bodies: the JSON objects about ports of a sandbox and about who may reach them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

Access = Literal["private", "public"]


class SetPortAccess(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether everybody may reach it, or whoever has a token."""

    access: Access


class PortAnswer(Struct, frozen=True, kw_only=True):
    """One port, whether or not something listens there.

    It is found below `path`, and at the host name `host` if the server has a domain for that.
    """

    port: int
    access: Access
    path: str
    host: str | None


class TrafficTokenAnswer(Struct, frozen=True, kw_only=True):
    """A token that opens a port, or all of them where `port` is null; `token` is told once."""

    id: str
    port: int | None
    created_at: str
    token: str | UnsetType = field(default=UNSET)


class PortList(Struct, frozen=True, kw_only=True):
    """Who may reach which ports: `access` holds for those that `ports` does not name."""

    access: Access
    domain: str | None
    ports: list[PortAnswer]
    tokens: list[TrafficTokenAnswer]


class CreateTrafficToken(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What it is to open: one port, or all if it is 0 or left out."""

    port: Annotated[int, Meta(ge=0, le=65535)] = 0
