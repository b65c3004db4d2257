"""Edge: every request has an id, a line, a count and an answer."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
from typing import TYPE_CHECKING, Any

import pytest

from vmpool import errors
from vmpool.api import problem
from vmpool.config import ApiSettings

if TYPE_CHECKING:
    from tests.api.conftest import Serve, Server


class Raw:
    """A connection to a server, a line at a time."""

    def __init__(self, server: Server) -> None:
        self._address = server.url.removeprefix("http://").split(":")

    async def __aenter__(self) -> Raw:
        host, port = self._address
        self.reader, self.writer = await asyncio.open_connection(host, int(port))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        await self.writer.wait_closed()

    def send(self, *lines: str) -> None:
        self.writer.write("\r\n".join((*lines, "", "")).encode())

    async def head(self) -> tuple[str, dict[str, str]]:
        """Read a response up to its body."""
        raw = (await self.reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = dict(line.lower().split(": ", 1) for line in raw[1:] if line)
        return raw[0], headers


async def test_every_answer_has_the_id_of_its_line_in_the_log(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for path in ("/healthz", "/nowhere", "/v1/sandboxes/x"):
        async with server.session.get(server.url + path) as response:
            request_id = response.headers["X-Request-Id"]
            if response.status >= 400:
                assert (await response.json(content_type=None))["request_id"] == request_id
        assert sum(request_id in record.getMessage() for record in caplog.records) == 1


async def test_what_is_not_there_is_an_ordinary_problem(server: Server) -> None:
    status, found = await server.call("GET", "/v1/nowhere")
    assert (status, found["code"]) == (404, "route_not_found")
    async with server.session.patch(f"{server.url}/v1/run") as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"
        assert response.content_type == "application/problem+json"
        assert (await response.json(content_type=None))["code"] == "method_not_allowed"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_a_server_without_a_descriptor_says_so(
    server: Server, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(**_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(server.host, "sandboxes", fail)
    async with server.session.get(f"{server.url}/v1/sandboxes") as response:
        found = await response.json(content_type=None)
    assert (response.status, found["code"]) == (500, "descriptors_spent")
    assert (found["fault"], bool(found["remedy"])) == ("infrastructure", True)


async def test_an_error_that_nobody_foresaw_tells_the_caller_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("a secret of the implementation")

    monkeypatch.setattr(server.host, "sandboxes", fail)
    async with server.session.get(f"{server.url}/v1/sandboxes") as response:
        text = await response.text()
        assert response.status == 500
    assert json.loads(text)["code"] == "internal"
    assert "secret" not in text
    assert len([record for record in caplog.records if record.exc_info]) == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.PoolBusyError("full"), 429),
        (errors.PoolTimeoutError("none came"), 503),
        (errors.DiskFullError("full"), 507),
        (errors.GuestError("hangs", code="guest_unresponsive"), 502),
        (errors.EngineError("died", argv=("qemu", "/secret")), 500),
    ],
)
async def test_an_error_of_the_host_keeps_its_class(
    server: Server, monkeypatch: pytest.MonkeyPatch, error: errors.VmpoolError, status: int
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(server.host, "run", fail)
    async with server.session.post(f"{server.url}/v1/run", json={"code": "1"}) as response:
        found = await response.json(content_type=None)
        assert (response.status, found["fault"]) == (status, error.fault.value)
        assert found["code"] == error.error_code
        assert ("Retry-After" in response.headers) is (error.fault is errors.Fault.CAPACITY)
        assert "secret" not in json.dumps(found)


@pytest.mark.parametrize("kind", errors.VmpoolError.__subclasses__())
def test_every_class_of_error_has_a_status_of_its_kind(kind: type[errors.VmpoolError]) -> None:
    kinds = [kind]
    for one in kinds:
        kinds += one.__subclasses__()
        status = problem.status_of(one("x"))
        mine = one.fault is errors.Fault.INFRASTRUCTURE
        assert (status >= 500) is (mine or status in {503})


async def test_a_body_over_the_limit_is_refused_before_it_is_read(serving: Serve) -> None:
    async with serving(body_bytes=1000) as server:
        status, found = await server.call("POST", "/v1/run", json={"code": "x" * 2000})
        assert (status, found["code"]) == (413, "body_too_large")
        assert found["limits"] == {"body_bytes": 1000}
        async with Raw(server) as raw:
            raw.send(
                "POST /v1/run HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {server.token}",
                "Content-Type: application/json", "Content-Length: 99999999",
                "Expect: 100-continue",
            )  # fmt: skip
            assert "413" in (await raw.head())[0]


async def test_a_body_is_asked_for_once_it_is_wanted(server: Server) -> None:
    async with Raw(server) as raw:
        raw.send(
            "POST /v1/run HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {server.token}",
            "Content-Type: application/json", "Content-Length: 2", "Expect: 100-continue",
        )  # fmt: skip
        assert "100 Continue" in (await raw.head())[0]
        raw.writer.write(b"{}")
        assert "400" in (await raw.head())[0]


@pytest.mark.parametrize("path", ["/v1/run", "/v1/sandboxes/{id}/files?path=/tmp/never"])
async def test_a_body_that_does_not_come_is_given_up(serving: Serve, path: str) -> None:
    async with serving(body_timeout=0.3) as server:
        sandbox = await server.make_sandbox()
        method = "POST" if path == "/v1/run" else "PUT"
        async with Raw(server) as raw:
            raw.send(
                f"{method} {path.format(**sandbox)} HTTP/1.1", "Host: 127.0.0.1",
                f"Authorization: Bearer {server.token}", "Content-Type: application/json",
                "Content-Length: 100",
            )  # fmt: skip
            raw.writer.write(b'{"code"')
            status, headers = await raw.head()
            assert "408" in status
            assert headers["connection"] == "close"


async def test_a_body_of_another_type_is_refused_with_the_remedy(server: Server) -> None:
    status, found = await server.call("POST", "/v1/run", data={"code": "1"})
    assert (status, found["code"]) == (415, "unsupported_media_type")
    assert "application/json" in found["remedy"]


async def test_a_client_that_leaves_a_run_ends_it(server: Server, tmp_path: Any) -> None:
    ready = tmp_path / "ready"
    body = {"argv": ["bash", "-c", f"touch {ready}; sleep 1000"], "return_files": []}
    asking = asyncio.create_task(server.call("POST", "/v1/run", json=body))
    while not ready.exists():
        await server.call("GET", "/healthz")
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    async with asyncio.timeout(20):
        while 'vmpool_requests_total{code="499",route="/v1/run"} 1.0' not in await counts(server):
            pass
    await server.is_idle()


async def test_a_client_that_does_not_take_its_answer_is_given_up(serving: Serve) -> None:
    async with serving(stall_timeout=0.3, output_bytes=64 << 20) as server:
        body = {"argv": ["bash", "-c", f"head -c {40 << 20} /dev/zero | tr '\\0' x"]}
        async with server.session.post(f"{server.url}/v1/run", json=body), asyncio.timeout(20):
            wanted = 'vmpool_requests_total{code="client_stalled",route="/v1/run"} 1.0'
            while wanted not in await counts(server):
                pass


async def test_a_connection_serves_one_request_after_another(server: Server) -> None:
    async with Raw(server) as raw:
        for _ in range(3):
            raw.send("GET /healthz HTTP/1.1", "Host: 127.0.0.1")
            status, headers = await raw.head()
            assert "200" in status
            assert headers["x-request-id"].startswith("req")
            await raw.reader.readexactly(int(headers["content-length"]))


async def test_a_connection_over_the_limit_is_closed_and_the_others_serve(serving: Serve) -> None:
    async with serving(api=ApiSettings(connections=2)) as server:
        await server.session.close()
        await _fill_and_free(server)


async def _fill_and_free(server: Server) -> None:
    async with Raw(server) as first:
        async with Raw(server) as second:
            for raw in (first, second):
                raw.send("GET /healthz HTTP/1.1", "Host: 127.0.0.1")
                assert "200" in (await raw.head())[0]
            async with Raw(server) as third, asyncio.timeout(20):
                assert await third.reader.read() == b""
            second.send("GET /healthz HTTP/1.1", "Host: 127.0.0.1", "Connection: close")
            async with asyncio.timeout(20):
                assert b"HTTP/1.1 200" in await second.reader.read()
        async with Raw(server) as fourth:
            fourth.send("GET /healthz HTTP/1.1", "Host: 127.0.0.1")
            assert "200" in (await fourth.head())[0]


async def test_a_stranger_may_not_stay_and_who_has_a_token_may(serving: Serve) -> None:
    async with (
        serving(api=ApiSettings(stranger_timeout=3.0)) as server,
        Raw(server) as silent,
        Raw(server) as slow,
        Raw(server) as known,
    ):
        asking = (
            "GET /v1/images HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {server.token}",
        )  # fmt: skip
        known.send(*asking)
        assert "200" in (await known.head())[0]
        await known.reader.readexactly(len(await image_list(server)))
        slow.writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        for stranger in (silent, slow):
            async with asyncio.timeout(20):
                with contextlib.suppress(ConnectionResetError):
                    assert await stranger.reader.read() == b""
        known.send(*asking)
        assert "200" in (await known.head())[0]


async def image_list(server: Server) -> bytes:
    async with server.session.get(f"{server.url}/v1/images") as response:
        return await response.read()


async def test_bodies_over_a_callers_share_are_put_off_and_another_finds_room(
    serving: Serve,
) -> None:
    async with serving(api=ApiSettings(bodies_bytes=4000), body_bytes=2000) as server:
        head = (
            "POST /v1/run HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {server.token}",
            "Content-Type: application/json", "Content-Length: 2000", "Expect: 100-continue",
        )  # fmt: skip
        async with Raw(server) as first:
            first.send(*head)
            assert "100 Continue" in (await first.head())[0]
            async with Raw(server) as second:
                second.send(*head)
                status, headers = await second.head()
                assert ("503" in status, headers["retry-after"]) == (True, "1")
            other = {"Authorization": f"Bearer {server.other_token}"}
            for size, wanted in ((800, 400), (1500, 503)):
                asked = await server.call("POST", "/v1/run", json={"x": "x" * size}, headers=other)
                assert asked[0] == wanted
        async with asyncio.timeout(20):  # the first has left: its bytes are free again
            while (await server.call("POST", "/v1/run", json={"x": "x" * 1900}))[0] != 400:
                pass


async def test_a_file_that_trickles_in_is_given_up(serving: Serve, tmp_path: Any) -> None:
    async with serving(body_timeout=0.5) as server:
        sandbox = await server.make_sandbox()
        async with Raw(server) as raw:
            raw.send(
                f"PUT /v1/sandboxes/{sandbox['id']}/files?path={tmp_path}/x HTTP/1.1",
                "Host: 127.0.0.1", f"Authorization: Bearer {server.token}",
                "Content-Length: 100000",
            )  # fmt: skip
            answered = asyncio.create_task(raw.head())
            async with asyncio.timeout(20):
                while not answered.done():
                    raw.writer.write(b"x")
                    await asyncio.wait({answered}, timeout=0.05)
            assert "408" in answered.result()[0]


async def test_requests_are_counted_by_route_and_status(server: Server) -> None:
    await server.call("GET", "/v1/sandboxes/x")
    await server.call("GET", "/nowhere")
    shown = await counts(server)
    wanted = {"/v1/sandboxes/{id}": "sandbox_not_found", "unmatched": "route_not_found"}
    for route, code in wanted.items():
        assert f'vmpool_requests_total{{code="{code}",route="{route}"}} 1.0' in shown


async def counts(server: Server) -> str:
    """Return the metrics."""
    status, shown = await server.call("GET", "/metrics")
    assert status == 200
    return str(shown.decode())


async def test_executions_are_counted_by_outcome(server: Server) -> None:
    sandbox = await server.make_sandbox()
    for argv in (["true"], ["false"], ["sleep", "1000"]):
        body = {"argv": argv, "timeout": 0.3 if argv[0] == "sleep" else 30}
        await server.call("POST", "/v1/run", json=body)
        await server.call("POST", f"/v1/sandboxes/{sandbox['id']}/exec", json=body)
    shown = await counts(server)
    for fault, outcome in (("none", "ok"), ("task", "task_failed"), ("task", "task_timeout")):
        line = f'vmpool_executions_total{{fault="{fault}",outcome="{outcome}"}} 2.0'
        assert line in shown
