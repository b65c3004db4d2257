"""Sandboxes: what measurements ask of the server over HTTP, timed at the client."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from vmpool.errors import InfrastructureError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.subject import Subject


_UNAVAILABLE = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer of the server, and how long it took."""

    values: dict[str, Any]
    milliseconds: float


async def ask(
    subject: Subject, method: str, path: str, body: dict[str, Any] | None = None
) -> Answer:
    """Send one request and read its whole answer.

    Raises:
        InfrastructureError: There is none, or it is a refusal.
    """
    began = time.perf_counter_ns()
    try:
        async with subject.stand.client.request(method, path, json=body) as response:
            said = await response.read()
    except (aiohttp.ClientError, TimeoutError) as err:
        raise InfrastructureError(f"{method} {path} failed: {err!r}") from err
    milliseconds = (time.perf_counter_ns() - began) / 1e6
    if response.status >= 300:
        raise InfrastructureError(f"{method} {path} is answered {response.status}: {said[:500]!r}")
    return Answer(values=json.loads(said) if said else {}, milliseconds=milliseconds)


async def create(subject: Subject, network: str = "none") -> Answer:
    """Create a sandbox of the subject's template; whoever calls kills it.

    Args:
        network: Mode of its network.

    Raises:
        InfrastructureError: There is none.
    """
    body = {"template": subject.template.name, "network": {"mode": network}}
    return await ask(subject, "POST", "/v1/sandboxes", body)


@contextlib.asynccontextmanager
async def held(subject: Subject, network: str = "none") -> AsyncIterator[str]:
    """Yield the id of a sandbox, which is killed afterwards.

    Args:
        network: Mode of its network.

    Raises:
        InfrastructureError: There is none.
    """
    id = (await create(subject, network)).values["id"]
    try:
        yield id
    finally:
        await ask(subject, "DELETE", f"/v1/sandboxes/{id}")


async def run_code(subject: Subject, id: str, code: str, *, expected: str) -> tuple[float, float]:
    """Run code in a sandbox.

    Returns:
        Milliseconds from the request to its first output, and to its end, at the client.

    Raises:
        InfrastructureError: The output is another, or it failed.
    """
    began, first, said, last = time.perf_counter_ns(), 0, "", b""
    try:
        async with subject.stand.client.post(
            f"/v1/sandboxes/{id}/exec", json={"code": code}
        ) as response:
            async for line in response.content:
                event = json.loads(line) if line.strip() else {}
                if event.get("type") == "stdout":
                    first = first or time.perf_counter_ns()
                    said += event["data"]
                last = line
    except (aiohttp.ClientError, TimeoutError) as err:
        raise InfrastructureError(f"the execution failed: {err!r}") from err
    ended = time.perf_counter_ns()
    if said != expected:
        raise InfrastructureError(f"the code printed {said[:200]!r}, and ended with {last[:500]!r}")
    return (first - began) / 1e6, (ended - began) / 1e6


async def run_in_context(subject: Subject, id: str, language: str, code: str) -> float | None:
    """Run code that adds 1 and 1 in the context of a sandbox that is named as its language.

    Returns:
        Milliseconds from the request to the whole answer, at the client; `None` where the image has
        no such contexts.

    Raises:
        InfrastructureError: The output is another, or it failed.
    """
    path = f"/v1/sandboxes/{id}/contexts/{language}/exec"
    began = time.perf_counter_ns()
    try:
        async with subject.stand.client.post(path, json={"code": code}) as response:
            answer = await response.read()
    except (aiohttp.ClientError, TimeoutError) as err:
        raise InfrastructureError(f"the request failed: {err!r}") from err
    took = (time.perf_counter_ns() - began) / 1e6
    if response.status == _UNAVAILABLE:
        return None
    if response.status != 200 or b'"2' not in answer or b'"exit_code":0' not in answer:
        raise InfrastructureError(f"the answer is wrong: {response.status} {answer[:500]!r}")
    return took
