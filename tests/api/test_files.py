"""Files: of any size, both ways, byte for byte."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import re
import resource
import signal
import tarfile
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import pytest

from tests.fakes import Faults
from vmpool.errors import GuestError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.api.conftest import Serve, Server

MIB = 1 << 20


@pytest.fixture
async def files(server: Server) -> str:
    sandbox = await server.make_sandbox()
    return f"/v1/sandboxes/{sandbox['id']}/files"


async def test_a_file_comes_back_as_it_went_in(server: Server, files: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    path = f"{tmp_path}/new/ö and so on"
    status, info = await server.call(
        "PUT", f"{files}?path={quote(path)}&mode={0o600}", data=content
    )
    assert status == 200
    assert (info["path"], info["kind"], info["size_bytes"]) == (path, "file", len(content))
    assert info["mode"] == 0o600
    assert await server.call("GET", f"{files}?path={quote(path)}") == (200, content)
    assert (await server.call("GET", f"{files}/stat?path={quote(path)}"))[1] == info
    assert (await server.call("DELETE", f"{files}?path={quote(path)}"))[0] == 204
    status, problem = await server.call("GET", f"{files}?path={quote(path)}")
    assert (status, problem["code"], problem["fault"]) == (404, "file_not_found", "task")


async def test_an_empty_file_has_a_length(server: Server, files: str, tmp_path: Path) -> None:
    await server.call("PUT", f"{files}?path={tmp_path}/empty", data=b"")
    async with server.session.get(f"{server.url}{files}?path={tmp_path}/empty") as response:
        assert response.headers["Content-Length"] == "0"
        assert await response.read() == b""


async def test_a_file_without_a_size_is_read_to_its_end(server: Server, files: str) -> None:
    status, content = await server.call("GET", f"{files}?path=/proc/self/status")
    assert status == 200
    assert content.startswith(b"Name:")


async def test_a_large_file_goes_both_ways_through_little_memory(
    server: Server, files: str, tmp_path: Path
) -> None:
    size, chunk = 64 * MIB, bytes(range(256)) * 256
    url = f"{server.url}{files}?path={tmp_path}/large"

    async def content() -> AsyncIterator[bytes]:
        for _ in range(size // len(chunk)):
            yield chunk

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with server.session.put(url, data=content()) as response:
        assert (await response.json())["size_bytes"] == size
    digest, received = hashlib.sha256(), 0
    async with server.session.get(url) as response:
        assert response.headers["Content-Length"] == str(size)
        async for piece in response.content.iter_any():
            digest.update(piece)
            received += len(piece)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert received == size
    assert digest.digest() == hashlib.sha256(chunk * (size // len(chunk))).digest()
    assert grown_kib < 24 << 10


@pytest.mark.parametrize(
    ("wanted", "answer"),
    [
        ("bytes=0-3", (206, b"0123", "bytes 0-3/10")),
        ("bytes=8-", (206, b"89", "bytes 8-9/10")),
        ("bytes=-3", (206, b"789", "bytes 7-9/10")),
        ("bytes=5-100", (206, b"56789", "bytes 5-9/10")),
        ("bytes=-100", (206, b"0123456789", "bytes 0-9/10")),
        ("bytes=1-2,4-5", (200, b"0123456789", None)),
        ("lines=1-2", (200, b"0123456789", None)),
    ],
)
async def test_a_part_of_a_file_can_be_had(
    server: Server, files: str, tmp_path: Path, wanted: str, answer: tuple[int, bytes, str | None]
) -> None:
    url = f"{files}?path={tmp_path}/digits"
    await server.call("PUT", url, data=b"0123456789")
    async with server.session.get(server.url + url, headers={"Range": wanted}) as response:
        shown = response.headers.get("Content-Range")
        assert (response.status, await response.read(), shown) == answer


@pytest.mark.parametrize(("wanted", "size"), [("bytes=-3", 3), ("", 100_000)])
async def test_through_a_link_its_end_is_what_is_measured(
    server: Server, files: str, tmp_path: Path, wanted: str, size: int
) -> None:
    content = os.urandom(100_000)
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "link").symlink_to("file")
    url = f"{server.url}{files}?path={tmp_path}/link"
    async with server.session.get(url, headers={"Range": wanted} if wanted else {}) as response:
        assert response.headers["Content-Length"] == str(size)
        assert await response.read() == content[-size:]


async def test_a_part_that_is_not_there_is_refused(
    server: Server, files: str, tmp_path: Path
) -> None:
    url = f"{files}?path={tmp_path}/digits"
    await server.call("PUT", url, data=b"0123456789")
    for wanted in ("bytes=10-", "bytes=5-2", "bytes=-0"):
        status, problem = await server.call("GET", url, headers={"Range": wanted})
        assert (status, problem["code"]) == (416, "range_not_satisfiable")


async def test_directories_are_made_listed_and_moved(
    server: Server, files: str, tmp_path: Path
) -> None:
    status, made = await server.call("POST", f"{files}/directory", json={"path": f"{tmp_path}/a/b"})
    assert (status, made["kind"]) == (201, "directory")
    await server.call("PUT", f"{files}?path={tmp_path}/a/b/c", data=b"1")
    (tmp_path / "a" / "link").symlink_to("b/c")
    _, listed = await server.call("GET", f"{files}/list?path={tmp_path}/a&depth=2")
    shown = [(entry["path"], entry["kind"], entry["target"]) for entry in listed["entries"]]
    assert shown == [
        (f"{tmp_path}/a/b", "directory", None),
        (f"{tmp_path}/a/b/c", "file", None),
        (f"{tmp_path}/a/link", "symlink", "b/c"),
    ]
    status, moved = await server.call(
        "POST",
        f"{files}/move",
        json={"source": f"{tmp_path}/a", "destination": f"{tmp_path}/x/y"},
    )
    assert (status, moved["path"]) == (200, f"{tmp_path}/x/y")
    assert (tmp_path / "x/y/b/c").read_bytes() == b"1"


async def test_a_name_that_is_no_text_does_not_break_a_list(
    server: Server, files: str, tmp_path: Path
) -> None:
    (tmp_path / "caf\udce9").touch()
    status, listed = await server.call("GET", f"{files}/list?path={tmp_path}")
    assert status == 200
    assert listed["entries"][0]["path"].startswith(f"{tmp_path}/caf\ufffd")


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [
        ("GET", "?path=/a/../b", (400, "invalid_path")),
        ("GET", "?path=..", (400, "invalid_path")),
        ("GET", "?path=a", (400, "invalid_path")),
        ("GET", "?path=", (400, "invalid_path")),
        ("GET", "?path=/a%00b", (400, "invalid_path")),
        ("GET", "?path=/" + "a" * 4095, (400, "invalid_path")),
        ("GET", "", (400, "invalid_request")),
        ("GET", "?path=/a&colour=red", (400, "invalid_request")),
        ("GET", "?path=/a&path=/b", (400, "invalid_request")),
        ("GET", "?path=/a&user=nobody-here", (400, "unknown_user")),
        ("GET", "?path=/" + "a" * 300, (400, "name_too_long")),
        ("GET", "?path=/usr", (409, "is_a_directory")),
        ("GET", "/stat?path=/there/is/none", (404, "file_not_found")),
        ("GET", "/list?path=/etc/passwd", (409, "not_a_directory")),
        ("GET", "/list?path=/etc&depth=0", (400, "invalid_request")),
        ("PUT", "?path=/tmp/never&mode=99999", (400, "invalid_request")),
        ("PUT", "?path=/usr", (409, "is_a_directory")),
        ("PUT", "?path=/proc/../etc/never", (400, "invalid_path")),
        ("DELETE", "?path=/there/is/none", (404, "file_not_found")),
    ],
)
async def test_bad_input_has_a_code(
    server: Server, files: str, method: str, path: str, wanted: tuple[int, str]
) -> None:
    status, problem = await server.call(method, files + path)
    assert (status, problem["code"]) == wanted, problem


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_file_over_the_limit_is_refused(
    serving: Serve, tmp_path: Path, framing: str
) -> None:
    async def content() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(1000)

    async with serving(file_bytes=10_000) as server:
        sandbox = await server.make_sandbox()
        data: Any = bytes(20_000) if framing == "length" else content()
        path = f"/v1/sandboxes/{sandbox['id']}/files?path={tmp_path}/large"
        status, problem = await server.call("PUT", path, data=data)
    assert (status, problem["code"]) == (413, "file_too_large")
    assert problem["limits"] == {"file_bytes": 10_000}


async def test_a_file_that_shrinks_while_it_is_read_is_not_taken_for_whole(
    server: Server, files: str, tmp_path: Path
) -> None:
    path = tmp_path / "shrinks"
    path.write_bytes(bytes(64 * MIB))
    async with server.session.get(f"{server.url}{files}?path={path}") as response:
        assert response.headers["Content-Length"] == str(64 * MIB)
        await response.content.read(1)
        path.write_bytes(b"")
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.read()


async def test_a_guest_that_panics_in_the_middle_of_an_upload_is_told(
    serving: Serve, tmp_path: Path
) -> None:
    death = GuestError("the guest's kernel panicked", code="guest_panicked")
    async with serving(faults=Faults(death=death)) as server:
        made = await server.make_sandbox()
        (sandbox,) = server.host.sandboxes(owner=server.owner)

        async def content() -> AsyncIterator[bytes]:
            yield bytes(MIB)
            os.kill(sandbox.clone.machine.pid, signal.SIGKILL)
            while True:
                yield bytes(MIB)

        path = f"{server.url}/v1/sandboxes/{made['id']}/files?path={tmp_path}/half"
        with contextlib.suppress(aiohttp.ClientError):  # it is answered before all is sent
            async with server.session.put(path, data=content()) as response:
                found = await response.json(content_type=None)
                assert (response.status, found["code"]) == (502, "guest_panicked")
        _, shown = await server.call("GET", "/metrics")
        route = "/v1/sandboxes/{id}/files"
        assert f'vmpool_requests_total{{code="guest_panicked",route="{route}"}} 1.0' in str(shown)


async def test_a_guest_that_panics_in_the_middle_of_a_download_breaks_it_off(
    serving: Serve, tmp_path: Path
) -> None:
    (tmp_path / "large").write_bytes(bytes(64 * MIB))
    death = GuestError("the guest's kernel panicked", code="guest_panicked")
    async with serving(faults=Faults(death=death)) as server:
        made = await server.make_sandbox()
        (sandbox,) = server.host.sandboxes(owner=server.owner)
        path = f"{server.url}/v1/sandboxes/{made['id']}/files?path={tmp_path}/large"
        for headers in ({}, {"Range": "bytes=1-"}):
            if headers:
                await server.make_sandbox()
                (sandbox,) = server.host.sandboxes(owner=server.owner)
                path = f"{server.url}/v1/sandboxes/{sandbox.id}/files?path={tmp_path}/large"
            async with server.session.get(path, headers=headers) as response:
                await response.content.read(1)
                os.kill(sandbox.clone.machine.pid, signal.SIGKILL)
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.content.read()
        _, shown = await server.call("GET", "/metrics")
        route = "/v1/sandboxes/{id}/files"
        assert f'vmpool_requests_total{{code="guest_panicked",route="{route}"}} 2.0' in str(shown)


TEXT = "".join(f"line {number} of a text\n" for number in range(20_000)).encode()


@pytest.mark.parametrize("size", [20_000, len(TEXT)])
async def test_text_comes_packed_to_who_takes_it_so_and_pays(
    server: Server, files: str, tmp_path: Path, size: int
) -> None:
    url = f"{server.url}{files}?path={tmp_path}/text"
    (tmp_path / "text").write_bytes(TEXT[:size])
    sizes = {}
    for accepted in ("gzip", "identity", "gzip;q=0", "br;q=1.0, *;q=0.5"):
        headers = {"Accept-Encoding": accepted}
        async with server.session.get(url, headers=headers) as response:
            assert await response.read() == TEXT[:size]
            sizes[accepted] = response.content.total_bytes
            packed = accepted in {"gzip", "br;q=1.0, *;q=0.5"}
            assert (response.headers.get("Content-Encoding") == "gzip") is packed
            assert response.headers["Vary"] == "Accept-Encoding"
            assert ("Accept-Ranges" in response.headers) is (not packed and size > 1 << 16)
    (tmp_path / "text").write_bytes(os.urandom(100_000))
    async with server.session.get(url, headers={"Accept-Encoding": "gzip"}) as response:
        assert "Content-Encoding" not in response.headers


async def test_a_text_that_shrinks_while_it_is_packed_is_not_taken_for_whole(
    server: Server, files: str, tmp_path: Path
) -> None:
    path = tmp_path / "shrinks"
    path.write_bytes(TEXT * 200)
    url, headers = f"{server.url}{files}?path={path}", {"Accept-Encoding": "gzip"}
    async with server.session.get(url, headers=headers) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        await response.content.read(1)
        path.write_bytes(b"")
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.read()


async def test_an_upload_may_be_packed_in_one_stream_or_several(
    server: Server, files: str, tmp_path: Path
) -> None:
    path = f"{files}?path={tmp_path}/unpacked"
    packed = gzip.compress(TEXT) + gzip.compress(b"and more")
    status, info = await server.call("PUT", path, data=packed, headers={"Content-Encoding": "gzip"})
    assert (status, info["size_bytes"]) == (200, len(TEXT) + 8)
    assert (tmp_path / "unpacked").read_bytes() == TEXT + b"and more"


@pytest.mark.parametrize(
    ("encoding", "data", "code"),
    [
        ("gzip", b"no gzip at all", "invalid_body"),
        ("gzip", gzip.compress(TEXT)[:-9], "invalid_body"),
        ("gzip", gzip.compress(TEXT)[:-1] + b"x", "invalid_body"),
        ("gzip", gzip.compress(TEXT) + b"more", "invalid_body"),
        ("gzip", b"", "invalid_body"),
        ("deflate", gzip.compress(TEXT), "unsupported_media_type"),
    ],
    ids=["none", "broken off", "wrong length", "more behind", "empty", "another"],
)
async def test_an_upload_that_is_packed_badly_is_refused(
    server: Server, files: str, tmp_path: Path, *, data: bytes, encoding: str, code: str
) -> None:
    status, problem = await server.call(
        "PUT", f"{files}?path={tmp_path}/x", data=data, headers={"Content-Encoding": encoding}
    )
    assert (status, problem["code"]) == (415 if code.startswith("unsup") else 400, code)


async def test_what_unpacks_to_more_than_the_limit_is_refused_through_little_memory(
    serving: Serve, tmp_path: Path
) -> None:
    bomb = gzip.compress(bytes(100 * MIB), 1)
    assert len(bomb) < MIB
    async with serving(file_bytes=80 * MIB) as server:
        sandbox = await server.make_sandbox()
        headers = {"Content-Encoding": "gzip"}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        path = f"/v1/sandboxes/{sandbox['id']}/files?path={tmp_path}/bomb"
        status, problem = await server.call("PUT", path, data=bomb, headers=headers)
        assert (status, problem["code"]) == (413, "file_too_large")
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown_kib < 24 << 10
        body = {"data": bomb, "headers": headers | {"Content-Type": "application/json"}}
        status, problem = await server.call("POST", "/v1/run", **body)
        assert (status, problem["code"]) == (413, "body_too_large")


async def test_a_packed_json_body_is_understood(server: Server) -> None:
    data = gzip.compress(b'{"argv": ["echo", "packed"]}')
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    status, answer = await server.call("POST", "/v1/run", data=data, headers=headers)
    assert (status, answer["stdout"]) == (200, "packed\n")


async def test_modes_owners_and_links_are_changed_and_made(
    server: Server, files: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    body: dict[str, Any] = {"path": f"{tmp_path}/there/link", "target": "../file"}
    status, made = await server.call("POST", f"{files}/link", json=body)
    assert (status, made["kind"], made["target"]) == (201, "symlink", "../file")
    status, problem = await server.call("POST", f"{files}/link", json=body)
    assert (status, problem["code"]) == (409, "file_exists")
    body = {"path": f"{tmp_path}/there/link", "mode": 0o640}
    status, changed = await server.call("PATCH", files, json=body)
    assert (status, changed["path"], changed["mode"]) == (200, f"{tmp_path}/file", 0o640)
    for owners, code in (({"owner": "nobody2"}, "unknown_user"), ({"group": "x y"}, None)):
        status, problem = await server.call("PATCH", files, json=body | owners)
        assert (status, problem["code"]) == (400, code or "invalid_request")
    body = {"path": f"{tmp_path}/long", "target": "ö" * 2048}
    status, problem = await server.call("POST", f"{files}/link", json=body)
    assert (status, problem["code"]) == (400, "invalid_path")


async def test_a_directory_comes_as_an_archive_or_a_problem(
    server: Server, files: str, tmp_path: Path
) -> None:
    (tmp_path / "top" / "below").mkdir(parents=True)
    (tmp_path / "top" / "below" / "large").write_bytes(bytes(range(256)) * 4096)
    status, data = await server.call("GET", f"{files}/archive?path={tmp_path}/top")
    assert status == 200
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == [".", "./below", "./below/large"]
        assert archive.getmember("./below/large").size == MIB
    status, problem = await server.call("GET", f"{files}/archive?path=/etc/passwd")
    assert (status, problem["code"]) == (409, "not_a_directory")


async def test_a_signed_url_opens_one_file_one_way(
    server: Server, files: str, tmp_path: Path
) -> None:
    path, nobody = f"{tmp_path}/a file", {"Authorization": ""}

    async def signed(**more: Any) -> str:
        status, answer = await server.call("POST", f"{files}/url", json={"path": path} | more)
        assert status == 200, answer
        return str(answer["url"])

    async def ask(method: str, url: str) -> Any:
        status, answer = await server.call(method, url, headers=nobody, data=b"content")
        return status if status == 200 else (status, answer["code"])

    writes, reads = await signed(method="PUT"), await signed(user="user", timeout=7 * 86_400)
    assert await ask("PUT", writes) == 200
    assert (tmp_path / "a file").read_bytes() == b"content"
    assert await ask("GET", reads) == 200
    modes = await signed(method="PUT", mode=0o640)
    assert await ask("PUT", modes) == 200
    assert (tmp_path / "a file").stat().st_mode & 0o777 == 0o640
    refused = (401, "signature_invalid")
    other = (await server.make_sandbox())["id"]
    for method, url in (
        ("GET", writes),
        ("PUT", reads),
        ("PUT", f"{writes}&mode=511"),
        ("PUT", modes.replace("mode=416", "mode=2541")),
        ("PUT", modes.replace("mode=416&", "")),
        ("GET", reads.replace("a+file", "another")),
        ("GET", reads.replace("user=user", "user=root")),
        ("GET", reads.replace("expires=", "expires=1")),
        ("GET", reads.replace("signature=", "signature=x")),
        ("GET", re.sub("sandboxes/[a-z0-9]+", f"sandboxes/{other}", reads)),
        ("GET", re.sub("sandboxes/[a-z0-9]+", "sandboxes/nobodys", reads)),
    ):
        assert await ask(method, url) == refused, url
    assert await ask("DELETE", reads) == (401, "token_missing")
    asked = {"path": path, "mode": 0o640}
    assert (await server.call("POST", f"{files}/url", json=asked))[0] == 400  # to be read


@pytest.mark.parametrize("timeout", [0, -1, 7 * 86_400 + 1, 0.5])
async def test_a_url_is_not_signed_for_ever(server: Server, files: str, timeout: float) -> None:
    body = {"path": "/x", "timeout": timeout}
    status, problem = await server.call("POST", f"{files}/url", json=body)
    assert (status, problem["code"]) == (400, "invalid_request")
