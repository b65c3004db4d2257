"""Several files in one request, each with a result of its own."""

from __future__ import annotations

import gzip
import io
import os
import resource
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.small_disk import mounted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.api.conftest import Serve, Server

MIB = 1 << 20
FORM = {"Content-Type": "multipart/form-data; boundary=X"}


def part(name: str, content: bytes, **headers: str) -> bytes:
    more = "".join(f"{key.replace('_', '-')}: {value}\r\n" for key, value in headers.items())
    disposition = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n'
    return b"--X\r\n" + (disposition + more).encode() + b"\r\n" + content + b"\r\n"


END = b"--X--\r\n"


@pytest.fixture
async def files(server: Server) -> str:
    sandbox = await server.make_sandbox()
    return f"/v1/sandboxes/{sandbox['id']}/files"


def results(answer: dict[str, Any]) -> list[tuple[str, object]]:
    """Return each file's path, and its size or what was wrong with it."""
    return [
        (one["path"], one["error"]["code"] if "error" in one else one["file"]["size_bytes"])
        for one in answer["files"]
    ]


async def test_each_file_is_written_or_says_why_not(
    server: Server, files: str, tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    large = os.urandom(3 * MIB)
    body = (
        part(f"{tmp_path}/new/a", large)
        + part(f"{tmp_path}/taken", large)
        + part("relative", b"x")
        + part(f"{tmp_path}/../up", b"x")
        + part(f"{tmp_path}/tool", b"#!", X_Mode="493")
        + END
    )
    status, answer = await server.call(
        "POST", f"{files}?mode=416", data=io.BytesIO(body), headers=FORM
    )
    assert status == 200
    assert results(answer) == [
        (f"{tmp_path}/new/a", 3 * MIB),
        (f"{tmp_path}/taken", "is_a_directory"),
        ("relative", "invalid_path"),
        (f"{tmp_path}/../up", "invalid_path"),
        (f"{tmp_path}/tool", 2),
    ]
    assert (tmp_path / "new/a").read_bytes() == large
    assert [one["file"]["mode"] for one in answer["files"] if "file" in one] == [0o640, 0o755]
    error = answer["files"][1]["error"]
    assert (error["kind"], error["fault"], error["status"]) == ("file_error", "task", 409)


async def test_relative_names_are_in_the_directory_that_is_given(
    server: Server, files: str, tmp_path: Path
) -> None:
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("file", b"1", filename="a.txt")
    form.add_field("file", b"2", filename=f"{tmp_path}/elsewhere")
    status, answer = await server.call("POST", f"{files}?path={tmp_path}/in", data=form)
    assert status == 200, answer
    assert results(answer) == [(f"{tmp_path}/in/a.txt", 1), (f"{tmp_path}/elsewhere", 1)]


async def test_a_packed_form_of_any_size_goes_through_little_memory(
    server: Server, files: str, tmp_path: Path
) -> None:
    packed = gzip.compress(
        part(f"{tmp_path}/a", bytes(48 * MIB)) + part(f"{tmp_path}/b", bytes(48 * MIB)) + END, 1
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    headers = FORM | {"Content-Encoding": "gzip"}
    status, answer = await server.call("POST", files, data=packed, headers=headers)
    assert status == 200
    assert results(answer) == [(f"{tmp_path}/a", 48 * MIB), (f"{tmp_path}/b", 48 * MIB)]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 24 << 10


async def test_a_full_disk_is_the_failure_of_the_files_that_did_not_fit(
    server: Server, files: str, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    with mounted(small, "size=1m"):
        body = (
            part(f"{small}/fits", bytes(100_000))
            + part(f"{small}/large", bytes(8 * MIB))
            + part(f"{small}/fits too", bytes(100_000))
            + END
        )
        _, answer = await server.call("POST", files, data=io.BytesIO(body), headers=FORM)
        assert results(answer) == [
            (f"{small}/fits", 100_000),
            (f"{small}/large", "disk_full"),
            (f"{small}/fits too", 100_000),
        ]
        error = answer["files"][1]["error"]
        assert error["status"] == 507
        assert "bytes were written and removed again" in error["detail"]
        assert sorted(os.listdir(small)) == ["fits", "fits too"]  # noqa: PTH208

        async def content() -> AsyncIterator[bytes]:
            for _ in range(64):
                yield bytes(MIB)

        status, problem = await server.call("PUT", f"{files}?path={small}/fits", data=content())
        assert (status, problem["code"], problem["fault"]) == (507, "disk_full", "task")
        assert f"{small}/fits" in problem["detail"]
        assert "bytes of it were written and are left" in problem["detail"]


@pytest.mark.parametrize(
    ("headers", "data", "code"),
    [
        ({"Content-Type": "application/octet-stream"}, b"x", "unsupported_media_type"),
        (FORM, part("/tmp/never", b"")[:-4], "invalid_body"),
        (FORM, b"no form", "invalid_body"),
        (FORM, part("/tmp/never", b"", X_Mode="rwx") + END, "invalid_request"),
        (FORM, part("/tmp/never", b"", X_Mode="9999") + END, "invalid_request"),
    ],
)
async def test_a_form_that_is_none_is_refused(
    server: Server, files: str, headers: dict[str, str], data: bytes, code: str
) -> None:
    status, problem = await server.call("POST", files, data=data, headers=headers)
    assert (status, problem["code"]) == (415 if "media" in code else 400, code)


async def test_a_file_over_the_limit_ends_the_request_and_names_it(
    serving: Serve, tmp_path: Path
) -> None:
    async with serving(file_bytes=10_000) as server:
        sandbox = await server.make_sandbox()
        path = f"/v1/sandboxes/{sandbox['id']}/files"
        for name in (f"{tmp_path}/large", "refused at once"):
            body = part(f"{tmp_path}/small", b"x") + part(name, bytes(20_000)) + END
            status, problem = await server.call("POST", path, data=io.BytesIO(body), headers=FORM)
            assert (status, problem["code"]) == (413, "file_too_large")
            assert name in problem["detail"]
    assert (tmp_path / "small").read_bytes() == b"x"


async def test_too_many_files_are_refused(
    server: Server, files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmpool.api.uploads.FILES", 2)
    body = b"".join(part(f"{tmp_path}/{n}", b"") for n in range(3)) + END
    status, problem = await server.call("POST", files, data=io.BytesIO(body), headers=FORM)
    assert (status, problem["code"]) == (413, "too_many_files")
    status, answer = await server.call("POST", files, data=END, headers=FORM)
    assert (status, answer) == (200, {"files": []})
