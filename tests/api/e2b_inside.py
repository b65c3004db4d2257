"""Inside: a sandbox as E2B's clients see it, for whoever plays one."""

from __future__ import annotations

import asyncio
import json
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.api.conftest import Server
from vmpool.api.e2b import signature

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OCTETS = {"Content-Type": "application/octet-stream"}
FRAME = struct.Struct(">BI")
SERVICE = "/filesystem.Filesystem/"


@dataclass
class Inside:
    """One sandbox as E2B's clients see it."""

    server: Server
    id: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        """What clients send along to reach it."""
        return {
            "Authorization": "",
            "E2b-Sandbox-Id": self.id,
            "E2b-Sandbox-Port": "49983",
            "X-Access-Token": self.token,
        }

    async def call(self, method: str, **body: Any) -> tuple[int, Any]:
        """Make a unary call."""
        return await self.server.call("POST", SERVICE + method, json=body, headers=self.headers)

    async def ask(self, method: str, **body: Any) -> Any:
        """Make a unary call that succeeds."""
        status, answer = await self.call(method, **body)
        assert status == 200, answer
        return answer

    async def refusal(self, method: str, **body: Any) -> tuple[int, str]:
        """Make a unary call that fails; return its status and word."""
        status, answer = await self.call(method, **body)
        assert set(answer) == {"code", "message"}
        return status, answer["code"]

    async def http(self, method: str, **request: Any) -> tuple[int, Any]:
        """Ask `/files`."""
        headers = self.headers | request.pop("headers", {})
        return await self.server.call(method, "/files", headers=headers, **request)

    def signed(self, path: str, direction: Any, **more: str) -> dict[str, str]:
        """Return the query of a URL that was signed."""
        made = signature.sign(
            path,
            direction,
            more.get("username", ""),
            self.token,
            expiration=more.get("signature_expiration"),
        )
        return {"path": path, "signature": made} | more

    @asynccontextmanager
    async def watching(self, **body: Any) -> AsyncIterator[Any]:
        """Watch a directory; yields what returns the next message, `None` at the end."""
        message = json.dumps(body).encode()
        headers = self.headers | {"Content-Type": "application/connect+json"}
        async with (
            asyncio.timeout(60),
            self.server.session.post(
                f"{self.server.url}{SERVICE}WatchDir",
                data=FRAME.pack(0, len(message)) + message,
                headers=headers,
            ) as response,
        ):
            assert response.status == 200
            assert response.content_type == "application/connect+json"

            async def read() -> tuple[int, Any]:
                flags, length = FRAME.unpack(await response.content.readexactly(FRAME.size))
                return flags, json.loads(await response.content.readexactly(length))

            yield read
