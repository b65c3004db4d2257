"""Files as E2B's clients ask for them over plain HTTP, and by signed URLs."""

from __future__ import annotations

import gzip
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.e2b_inside import OCTETS, Inside
from tests.small_disk import mounted

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.conftest import Server


@pytest.fixture
async def inside(server: Server) -> Inside:
    made = await server.make_sandbox()
    return Inside(server, made["id"], made["access_token"])


async def test_bytes_go_in_and_come_out(inside: Inside, tmp_path: Path) -> None:
    content = os.urandom(300_000)
    at = {"path": f"{tmp_path}/new/file"}
    status, written = await inside.http("POST", params=at, data=content, headers=OCTETS)
    assert (status, written) == (200, [{"path": at["path"], "name": "file", "type": "file"}])
    assert await inside.http("GET", params=at) == (200, content)
    assert (tmp_path / "new" / "file").stat().st_mode & 0o777 == 0o644


async def test_packed_bytes_are_unpacked_and_only_who_asks_has_them_packed(
    inside: Inside, tmp_path: Path
) -> None:
    content, at = b"words " * 50_000, {"path": f"{tmp_path}/file"}
    packing = OCTETS | {"Content-Encoding": "gzip"}
    await inside.http("POST", params=at, data=gzip.compress(content), headers=packing)
    assert (tmp_path / "file").read_bytes() == content
    url, session = f"{inside.server.url}/files", inside.server.session
    for accepted, packed in (("gzip, deflate", None), ("gzip", "gzip")):
        headers = inside.headers | {"Accept-Encoding": accepted}
        async with session.get(url, params=at, headers=headers) as response:
            assert response.headers.get("Content-Encoding") == packed
            assert await response.read() == content


async def test_an_empty_file_has_a_length(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    headers = inside.headers | {"Accept-Encoding": "gzip"}
    url = f"{inside.server.url}/files?path={tmp_path}/empty"
    async with inside.server.session.get(url, headers=headers) as response:
        assert response.headers["Content-Length"] == "0"
        assert await response.read() == b""


def form(*parts: tuple[str, bytes], field: str = "file") -> dict[str, Any]:
    """Return a request with a form as clients write it: names go in as they are."""
    body = b"".join(
        f'--b\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, content in parts
    )
    return {
        "data": body + b"--b--\r\n",
        "headers": {"Content-Type": "multipart/form-data; boundary=b"},
    }


async def test_a_form_brings_files_to_absolute_paths(inside: Inside, tmp_path: Path) -> None:
    parts = ((f"{tmp_path}/a/1.txt", b"one"), (f"{tmp_path}/2 ü.txt", b"two"))
    status, written = await inside.http("POST", **form(*parts))
    assert (status, [one["path"] for one in written]) == (200, [parts[0][0], parts[1][0]])
    assert [one["name"] for one in written] == ["1.txt", "2 ü.txt"]
    assert (tmp_path / "a" / "1.txt").read_bytes() == b"one"


async def test_a_form_with_one_file_may_have_its_path_in_the_query(
    inside: Inside, tmp_path: Path
) -> None:
    at = {"path": f"{tmp_path}/there"}
    status, written = await inside.http("POST", params=at, **form(("elsewhere", b"x")))
    assert (status, written[0]["path"]) == (200, at["path"])
    status, answer = await inside.http("POST", params=at, **form(("a", b""), ("b", b"")))
    assert (status, answer["code"]) == (400, 400)


async def test_who_waits_to_be_asked_for_a_body_is_asked(inside: Inside, tmp_path: Path) -> None:
    at = {"path": f"{tmp_path}/file"}
    content = os.urandom(300_000)
    sent = await inside.http("POST", params=at, data=content, headers=OCTETS, expect100=True)
    assert sent[0] == 200
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.parametrize("as_form", [False, True])
async def test_who_fills_the_disk_is_told_so_after_sending_all(
    inside: Inside, tmp_path: Path, as_form: bool
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    content = os.urandom(900_000)
    sent: dict[str, Any] = {"data": content, "headers": OCTETS}
    with mounted(small, "size=64k"):
        if as_form:
            sent = form((f"{small}/large", content))
        at = {} if as_form else {"path": f"{small}/large"}
        status, answer = await inside.http("POST", params=at, **sent)
        assert (status, answer["code"]) == (507, 507)
        assert "written and removed again" in answer["message"]
        assert not list(small.iterdir())


async def test_metadata_are_kept_as_long_as_nothing_else_is_uploaded(
    inside: Inside, tmp_path: Path
) -> None:
    at, path = {"path": f"{tmp_path}/file"}, f"{tmp_path}/file"
    headers = OCTETS | {"X-Metadata-Author": "A B", "X-Metadata-purpose": "test"}
    _, (written,) = await inside.http("POST", params=at, data=b"1", headers=headers)
    kept = {"author": "A B", "purpose": "test"}
    assert written["metadata"] == kept
    assert (await inside.ask("Stat", path=path))["entry"]["metadata"] == kept
    _, (again,) = await inside.http("POST", params=at, data=b"2", headers=OCTETS)
    assert "metadata" not in again
    assert (await inside.ask("Stat", path=path))["entry"]["metadata"] == {}


@pytest.mark.parametrize(
    "metadata",
    [
        {"X-Metadata-": "x"},
        {"X-Metadata-" + "k" * 247: "x"},
        {"X-Metadata-a": "v" * 4096},
        {"X-Metadata-a": "ö"},
    ],
)
async def test_metadata_that_do_not_fit_are_refused(
    inside: Inside, tmp_path: Path, metadata: dict[str, str]
) -> None:
    at = {"path": f"{tmp_path}/file"}
    status, answer = await inside.http("POST", params=at, data=b"1", headers=OCTETS | metadata)
    assert (status, answer["code"]) == (400, 400)
    assert not (tmp_path / "file").exists()


async def test_what_cannot_be_read_or_written_is_told_in_words(
    inside: Inside, tmp_path: Path
) -> None:
    assert await inside.http("GET", params={"path": f"{tmp_path}/nowhere"}) == (
        404,
        {
            "code": 404,
            "message": f"path '{tmp_path}/nowhere' does not exist",
            "error_code": "file_not_found",
        },
    )
    for method in ("GET", "POST"):
        status, answer = await inside.http(
            method, params={"path": str(tmp_path)}, data=b"x", headers=OCTETS
        )
        assert (status, answer["message"]) == (400, f"path '{tmp_path}' is a directory")


async def test_a_form_has_only_so_many_fields(inside: Inside, tmp_path: Path) -> None:
    names = [(f"{tmp_path}/{number}", b"") for number in range(1001)]
    status, answer = await inside.http("POST", **form(*names, field="other"))
    assert (status, answer["error_code"]) == (413, "too_many_files")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("query", "request_"),
    [
        ({}, {"data": b"x", "headers": OCTETS}),
        ({"path": "a\0b"}, {"data": b"x", "headers": OCTETS}),
        ({"path": "a" * 4096}, {"data": b"x", "headers": OCTETS}),
        ({}, form()),
        ({}, form(("", b"x"))),
        ({}, form(("name", b"x"), field="other")),
        ({}, form(("a" * 5000, b"x"))),
        ({}, form(("a" * 20_000, b"x"))),
        ({"path": "x"}, {"data": b"x", "headers": OCTETS | {"Content-Encoding": "zip"}}),
        ({"path": "x"}, {"data": b"x", "headers": {"Content-Type": "text/plain"}}),
        ({"path": "x"}, {"data": b"x", "headers": {"Content-Type": "multipart/form-data"}}),
    ],
)
async def test_uploads_that_no_client_sends_are_refused(
    inside: Inside, query: dict[str, str], request_: dict[str, Any]
) -> None:
    status, answer = await inside.http("POST", params=query, **request_)
    assert status in {400, 415}
    assert answer["code"] == status


async def test_a_signed_url_opens_its_file_and_nothing_else(inside: Inside, tmp_path: Path) -> None:
    call, path = inside.server.call, f"{tmp_path}/a file"
    later, before = str(int(time.time()) + 600), str(int(time.time()) - 1)
    nobody = {"Authorization": ""}

    async def get(query: dict[str, str], **headers: str) -> tuple[int, Any]:
        return await call("GET", "/files", params=query, headers=nobody | headers)

    writes = inside.signed(path, "write", signature_expiration=later)
    status, _ = await call("POST", "/files", params=writes, headers=nobody | OCTETS, data=b"x")
    assert status == 200
    reads = inside.signed(path, "read")
    assert await get(reads) == (200, b"x")
    reach = {"E2b-Sandbox-Id": inside.id, "E2b-Sandbox-Port": "49983"}
    assert await get(reads, **reach) == (200, b"x")
    ended = inside.signed(path, "read", signature_expiration=before)
    assert await get(ended) == (401, {"code": 401, "message": "signature is already expired"})
    for wrong in (
        reads | {"path": f"{tmp_path}/another"},
        reads | {"username": "root"},
        reads | {"signature_expiration": later},
        writes,
        inside.signed("", "read"),
    ):
        for headers in ({}, reach):
            status, answer = await get(wrong, **headers)
            assert status in {400, 401}
            assert answer["code"] == status
    made = await inside.server.make_sandbox()
    status, _ = await get(reads, **(reach | {"E2b-Sandbox-Id": made["id"]}))
    assert status == 401


async def test_without_token_or_signature_only_the_health_is_told(inside: Inside) -> None:
    headers = inside.headers
    del headers["X-Access-Token"]
    call = inside.server.call
    assert (await call("GET", "/health", headers=headers))[0] == 204
    for path in ("/files?path=x", "/envs", "/metrics"):
        status, answer = await call("GET", path, headers=headers)
        assert (status, answer["code"]) == (401, 401)
    status, told = await call("GET", "/envs", headers=inside.headers)
    assert (status, told["E2B_SANDBOX_ID"]) == (200, inside.id)
    status, told = await call("GET", "/metrics", headers=inside.headers)
    assert (status, told["cpu_count"]) == (200, os.cpu_count())
    assert 0 < told["mem_used"] < told["mem_total"]


async def test_what_is_secret_is_not_told(server: Server) -> None:
    made = await server.make_sandbox(env={"PLAIN": "1"}, secrets={"KEY": "hidden"})
    inside = Inside(server, made["id"], made["access_token"])
    _, told = await server.call("GET", "/envs", headers=inside.headers)
    assert told["PLAIN"] == "1"
    assert "KEY" not in told
