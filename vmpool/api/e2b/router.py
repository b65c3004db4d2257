"""Router: for which sandbox and port a request on the server's one port is, and who may make it.

E2B's clients say it in headers, or in the host name; a signed URL of a file says it by its
signature alone. Who says two things that differ is refused; who says none asks the control plane.
What is asked is not known here.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiohttp import web

from vmpool.api import edge, fronts, outflow
from vmpool.api.door import DOOR
from vmpool.api.e2b import problem, signature
from vmpool.api.e2b.table import ENVD_PORT, SERVICES, Found, find
from vmpool.api.e2b.visit import Opening, Shape, Visit
from vmpool.api.fronts import TRAFFIC_TOKEN_HEADERS, Front
from vmpool.errors import (
    Fault,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    UnauthorizedError,
    VmpoolError,
)
from vmpool.lifecycle import SandboxState
from vmpool.sandbox import paused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from vmpool.api.e2b.signature import Signed
    from vmpool.api.limits import Limits
    from vmpool.api.reach import Reach
    from vmpool.host import Host
    from vmpool.sandbox import Sandbox

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)

ID_HEADER: Final = "E2b-Sandbox-Id"
PORT_HEADER: Final = "E2b-Sandbox-Port"
TOKEN_HEADER: Final = "X-Access-Token"  # noqa: S105 -- where it stands

UNAUTHORIZED: Final = (
    "unauthorized access, please provide a valid access token or method signing if supported"
)
"""Word for word what clients look for."""

_REMEDY: Final = "send the sandbox's traffic token in the header 'e2b-traffic-access-token'"
_ID: Final = re.compile("[a-z0-9]{1,64}")
_PORT: Final = re.compile("[1-9][0-9]{0,4}")
_GONE: Final = frozenset({"sandbox_not_found", "sandbox_ended", "sandbox_paused"})
"""To E2B's clients all of them are the same: there is nobody to talk to."""

_AWAKE: Final = frozenset({SandboxState.RUNNING, SandboxState.ROLLING_BACK})
"""States in which what is asked resumes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A port of a sandbox."""

    sandbox_id: str
    port: int


def named(headers: Mapping[str, str], domain: str) -> Target | None:
    """Return the port that a request names, in its headers or by its host name.

    Args:
        domain: Below which ports have names; empty for none.

    Raises:
        InvalidRequestError: `invalid_sandbox_header`, or `sandbox_ambiguous` when the two differ.
    """
    front = fronts.by_host(headers.get("Host", ""), domain)
    by_host = None if front is None else Target(sandbox_id=front.sandbox_id, port=front.port)
    id = headers.get(ID_HEADER)
    if id is None:
        return by_host
    port = headers.get(PORT_HEADER, str(ENVD_PORT))
    if not _ID.fullmatch(id) or not _PORT.fullmatch(port) or int(port) >= 1 << 16:
        raise InvalidRequestError(
            f"headers {ID_HEADER!r} and {PORT_HEADER!r} name no port of a sandbox",
            code="invalid_sandbox_header",
        )
    by_header = Target(sandbox_id=id, port=int(port))
    if by_host is not None and by_host != by_header:
        raise InvalidRequestError(
            "the headers and the host name mean different sandboxes or ports",
            code="sandbox_ambiguous",
        )
    return by_header


class Router:
    """What E2B's clients find inside the sandboxes of one server."""

    def __init__(self, host: Host, limits: Limits, reach: Reach) -> None:
        self._host = host
        self._limits = limits
        self._reach = reach

    def middleware(self) -> Callable[..., Awaitable[web.StreamResponse]]:
        """Return what serves requests for a sandbox; others pass."""

        @web.middleware
        async def inside(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                target = self._target(request)
            except VmpoolError as err:
                return tell(request, err, Shape.CODE)
            if target is None:
                return await handler(request)
            return await self._serve(request, handler, target)

        return inside

    def _target(self, request: web.Request) -> Target | None:
        target = named(request.headers, self._host.settings.api.domain)
        if target is not None:
            return target
        signed = _signed(request)
        if signed is None:
            return None
        sandbox = self._host.ports.signed_for(signed.made_with)
        if sandbox is None:
            raise UnauthorizedError("invalid signature", code="signature_invalid")
        return Target(sandbox_id=sandbox.id, port=ENVD_PORT)

    async def _serve(
        self, request: web.Request, handler: Handler, target: Target
    ) -> web.StreamResponse:
        table = SERVICES.get(target.port)
        if table is None:
            return await self._relay(request, handler, target)
        found = find(table, request.method, _path(request))
        request[edge.ROUTE] = f"e2b {target.port} {'unmatched' if found is None else found.path}"
        if found is None:
            return problem.coded(404, "there is nothing at this path")
        try:
            return await self._answer(request, target, found)
        except VmpoolError as err:
            return _told(request, err, target, found.endpoint.shape)

    async def _answer(
        self, request: web.Request, target: Target, found: Found
    ) -> web.StreamResponse:
        sandbox = self._host.ports.living(target.sandbox_id)
        if sandbox is None:
            raise NotFoundError("there is no such sandbox", code="sandbox_not_found")
        opening = found.endpoint.opening
        strange = await self._strange(request, sandbox, target, opening)
        with _staying(request, strange=strange):
            request[edge.OWNER] = sandbox.owner
            awake = await self._host.awake(sandbox.id, owner=sandbox.owner)
            visit = Visit(
                request=request,
                host=self._host,
                limits=self._limits,
                sandbox=awake,
                parts=found.parts,
            )
            response = await found.endpoint.run(visit)
            await outflow.deliver(response, request, self._limits)
            return response

    async def _relay(
        self, request: web.Request, handler: Handler, target: Target
    ) -> web.StreamResponse:
        """Hand a request on to what listens on a port in the guest."""
        if ID_HEADER not in request.headers:
            return await handler(request)  # by host name, as everybody's
        authority = request.headers.get("Host", "")
        front = Front(
            sandbox_id=target.sandbox_id,
            port=target.port,
            authority=authority,
            prefix="",
            is_shared=True,
        )
        request[edge.ROUTE] = "e2b port"
        try:
            return await self._reach.serve(request, front)
        except UnauthorizedError:
            refused = ForbiddenError("the port is private", code="port_private", remedy=_REMEDY)
            return _told(request, refused, target, Shape.CODE)
        except VmpoolError as err:
            return _told(request, err, target, Shape.CODE)

    async def _strange(
        self, request: web.Request, sandbox: Sandbox, target: Target, opening: Opening
    ) -> bool:
        """Return whether nothing was shown that opens more than this; refuse who may not come in.

        Raises:
            UnauthorizedError: `token_invalid`, `signature_invalid` or `signature_expired`.
            ForbiddenError: `port_private`.
            ConflictError: `sandbox_paused`; who only asks after it may not wake it.
        """
        token = request.headers.get(TOKEN_HEADER, "")
        if token and sandbox.admits(token):
            return False
        match opening:
            case Opening.NOTHING if sandbox.state in _AWAKE:
                return True
            case Opening.NOTHING:
                return await self._wakes(request, target)
            case Opening.TRAFFIC:
                return await self._passes(request, target)
            case Opening.SIGNATURE if (signed := _signed(request)) is not None:
                signed.require(sandbox.access_token, now=time.time())
                return True
            case Opening.SIGNATURE | Opening.TOKEN:
                raise UnauthorizedError(UNAUTHORIZED, code="token_invalid")

    async def _wakes(self, request: web.Request, target: Target) -> bool:
        """Do as `_passes`; to whom a port is closed, a sandbox that is paused is not there.

        Raises:
            ConflictError: `sandbox_paused`.
        """
        try:
            return await self._passes(request, target)
        except ForbiddenError:
            raise paused(target.sandbox_id) from None

    async def _passes(self, request: web.Request, target: Target) -> bool:
        """Return whether a port is everybody's; one that is private takes a token.

        Raises:
            ForbiddenError: `port_private`.
        """
        id, port, ports = target.sandbox_id, target.port, self._host.ports
        for name in TRAFFIC_TOKEN_HEADERS:
            token = request.headers.get(name)
            if token and await ports.opened_by(token, sandbox_id=id, port=port) is not None:
                return False
        if await ports.open_to_all(sandbox_id=id, port=port) is None:
            raise ForbiddenError("the port is private", code="port_private", remedy=_REMEDY)
        return True


@contextlib.contextmanager
def _staying(request: web.Request, *, strange: bool) -> Iterator[None]:
    """Take a connection for one that may stay for good, or only for a block."""
    door = request.app[DOOR]
    if strange:
        with door.visiting(request):
            yield
    else:
        door.admit(request)
        yield


def _signed(request: web.Request) -> Signed | None:
    return signature.read(request.method, _path(request), request.query)


def _path(request: web.Request) -> str:
    """Return a request's path; a base URL that ends in a slash makes two of them."""
    return "/" + request.path.lstrip("/")


def _told(
    request: web.Request, error: VmpoolError, target: Target, shape: Shape
) -> web.StreamResponse:
    """Return how E2B's proxy would tell an error; raise it when an answer has begun."""
    if request.get(edge.BEGUN):
        raise error
    if error.error_code in _GONE:
        request[edge.CODE] = error.error_code
        return problem.gone(target.sandbox_id)
    if error.error_code == "port_closed":
        request[edge.CODE] = error.error_code
        return problem.port_closed(target.sandbox_id, target.port)
    return tell(request, error, shape)


def tell(request: web.Request, error: VmpoolError, shape: Shape) -> web.StreamResponse:
    """Return the response that tells an error, and note it for the log."""
    request[edge.CODE] = error.error_code
    if error.fault is Fault.INFRASTRUCTURE:
        log.warning("request=%s %s: %s", request[edge.REQUEST_ID], error.error_code, error)
    return problem.respond(error, shape)
