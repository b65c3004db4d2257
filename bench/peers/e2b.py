"""Peer: any server that speaks the E2B API, here or far away.

The environment says which, as E2B's own SDK has it: `E2B_API_KEY`; `E2B_API_URL` or `E2B_DOMAIN`,
E2B's own service if neither is set; `E2B_SANDBOX_URL` where sandboxes have no host names. And
`E2B_TEMPLATE`, a template with the code interpreter.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from bench.line import FIRST_OUTPUT, LINE, OUTPUT
from bench.peer import START_TIMEOUT, Clock, Peer, UnavailableError, tried
from vmpool.errors import InfrastructureError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from bench.peer import Arena, Phases, Start

DOMAIN = "e2b.app"
TEMPLATE = "code-interpreter-v1"
INTERPRETER_PORT = 49999
_LIFE_SECONDS = 60
_ANSWER_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A server that speaks the API.

    Attributes:
        sandbox_url: Of all sandboxes; empty where each has a host name of its own.
    """

    api_url: str
    domain: str
    sandbox_url: str
    key: str
    template: str

    @classmethod
    def named(cls, environ: Mapping[str, str]) -> Service:
        """Return the server that the environment names.

        Raises:
            UnavailableError: It names none.
        """
        key = environ.get("E2B_API_KEY", "")
        if not key:
            raise UnavailableError("E2B_API_KEY is not set")
        domain = environ.get("E2B_DOMAIN", DOMAIN)
        return cls(
            api_url=environ.get("E2B_API_URL", f"https://api.{domain}").rstrip("/"),
            domain=domain,
            sandbox_url=environ.get("E2B_SANDBOX_URL", "").rstrip("/"),
            key=key,
            template=environ.get("E2B_TEMPLATE", TEMPLATE),
        )

    def interpreter(self, sandbox: str) -> str:
        """Return where code for a sandbox goes."""
        at = self.sandbox_url or f"https://{INTERPRETER_PORT}-{sandbox}.{self.domain}"
        return f"{at}/execute"


@contextlib.asynccontextmanager
async def _open(arena: Arena) -> AsyncIterator[Start]:  # noqa: ARG001 -- it has images of its own
    service = Service.named(os.environ)
    timeout = aiohttp.ClientTimeout(total=START_TIMEOUT)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def start() -> Phases:
            try:
                return await _once(service, session)
            except (aiohttp.ClientError, TimeoutError) as err:
                raise InfrastructureError(f"{service.api_url}: {err!r}") from err

        yield await tried(start)


async def _once(service: Service, session: aiohttp.ClientSession) -> Phases:
    keyed = {"X-API-Key": service.key}
    body = {"templateID": service.template, "timeout": _LIFE_SECONDS}
    clock = Clock()
    url = f"{service.api_url}/sandboxes"
    async with session.post(url, json=body, headers=keyed) as response:
        made = _values(await response.content.read(_ANSWER_BYTES), response)
    clock.reached("created")
    sandbox = str(made.get("sandboxID", ""))
    try:
        headers = {"E2B-Sandbox-Id": sandbox, "E2B-Sandbox-Port": str(INTERPRETER_PORT)}
        if token := made.get("envdAccessToken"):
            headers["X-Access-Token"] = str(token)
        await _execute(service.interpreter(sandbox), headers, session, clock)
    finally:
        async with session.delete(f"{url}/{sandbox}", headers=keyed):
            pass
    return clock.phases


async def _execute(
    url: str, headers: Mapping[str, str], session: aiohttp.ClientSession, clock: Clock
) -> None:
    async with session.post(url, json={"code": LINE}, headers=headers) as response:
        async for line in response.content:
            said = json.loads(line) if line.strip() else {}
            if said.get("type") == "stdout" and said.get("text", "").encode() == OUTPUT:
                clock.reached(FIRST_OUTPUT)
    if FIRST_OUTPUT not in clock.phases:
        raise InfrastructureError(f"{url} answers {response.status} without the output")


def _values(answer: bytes, response: aiohttp.ClientResponse) -> dict[str, Any]:
    if response.status not in {200, 201}:
        said = answer[:200].decode(errors="replace")
        raise InfrastructureError(f"{response.url} answers {response.status}: {said}")
    values = json.loads(answer)
    return values if isinstance(values, dict) else {}


PEER = Peer(
    name="E2B API",
    summary="a sandbox created and run_code in it, by the E2B API over HTTP, to the output",
    open=_open,
)
