"""Template builds: what a client of E2B's asks for to have one, for whoever plays it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import Server
from vmpool.api.e2b import defaults

BASE = "begin"


@dataclass
class Builds:
    """What a client of one tenant asks."""

    server: Server
    key: str

    async def ask(self, method: str, path: str, **body: Any) -> tuple[int, Any]:
        request: dict[str, Any] = {"json": body} if body else {}
        return await self.server.call(method, path, headers={"X-API-KEY": self.key}, **request)

    async def promise(self, name: str, **more: Any) -> tuple[str, str]:
        status, answer = await self.ask("POST", "/v3/templates", name=name, **more)
        assert status == 202, answer
        return answer["templateID"], answer["buildID"]

    async def build(self, name: str, *steps: Any, **more: Any) -> dict[str, Any]:
        """Build from the base; return the status at the end, with the whole log."""
        template, build = await self.promise(name, **more.pop("promised", {}))
        body = {"fromTemplate": BASE, "steps": [step_of(*each) for each in steps], **more}
        path = f"/templates/{template}/builds/{build}"
        status, answer = await self.ask("POST", f"/v2{path}", **body)
        assert status == 202, answer
        return await self.followed(f"{path}/status")

    async def followed(self, path: str) -> dict[str, Any]:
        log: list[dict[str, Any]] = []
        async with asyncio.timeout(120):
            while True:
                _, found = await self.ask("GET", f"{path}?logsOffset={len(log)}")
                log += found["logEntries"]
                if found["status"] in {"ready", "error"} and not found["logEntries"]:
                    return {**found, "messages": [entry["message"] for entry in log]}
                await asyncio.sleep(0.02)


def step_of(kind: str, *arguments: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "args": list(arguments), "force": False, **more}


@pytest.fixture
async def builds(server: Server, tmp_path: Path) -> Builds:
    """A tenant that has a base whose commands run in the test's own directory."""
    env = {defaults.DIRECTORY: str(tmp_path)}
    made = await server.make_sandbox(env=env)
    path = f"/v1/sandboxes/{made['id']}"
    status, _ = await server.call("POST", f"{path}/checkpoints", json={"name": BASE})
    assert status == 201
    await server.call("DELETE", path)
    return Builds(server, server.token)
