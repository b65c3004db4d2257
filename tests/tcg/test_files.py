"""A real guest's files: several at once, a full disk, what happens in a directory, modes."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.serving import Api

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host]

MIB = 1 << 20
SMALL = "mkdir small && sudo mount -t tmpfs -o size=4m,uid=$(id -u) none small"


async def zeros(size_bytes: int) -> AsyncIterator[bytes]:
    for _ in range(size_bytes // MIB):
        yield bytes(MIB)


async def test_files_go_in_together_are_changed_and_come_back_in_an_archive(api: Api) -> None:
    async with api.sandbox() as sandbox:
        files = f"/v1/sandboxes/{sandbox}/files"
        form = aiohttp.FormData(quote_fields=False)
        form.add_field("file", b"#!/bin/sh\necho hello\n", filename="top/tool")
        form.add_field("file", b"secret", filename="/etc/refused")
        status, answer = await api.call("POST", f"{files}?path=/home/user", data=form)
        assert status == 200, answer
        assert answer["files"][0]["file"]["owner"] == "user"
        assert answer["files"][1]["error"]["code"] == "permission_denied"
        body = {"path": "/home/user/top/tool", "mode": 0o755}
        assert (await api.call("PATCH", files, json=body))[0] == 200
        body = {"path": "/home/user/top/run", "target": "tool"}
        assert (await api.call("POST", f"{files}/link", json=body))[0] == 201
        assert (await api.execute(sandbox, argv=["top/run"]))["stdout"] == "hello\n"
        body = {"path": "/home/user/top/tool", "owner": "root", "user": "root"}
        status, info = await api.call("PATCH", files, json=body)
        assert (status, info["owner"], info["mode"]) == (200, "root", 0o755)
        status, packed = await api.call("GET", f"{files}/archive?path=/home/user/top")
        assert status == 200
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            assert archive.getnames() == [".", "./run", "./tool"]
            assert archive.getmember("./tool").uname == "root"


async def test_a_disk_that_fills_in_the_middle_of_an_upload_is_the_tasks_failure(
    api: Api,
) -> None:
    async with api.sandbox() as sandbox:
        files = f"/v1/sandboxes/{sandbox}/files?path=/home/user/small/large"
        made = await api.execute(sandbox, argv=["/bin/sh", "-c", SMALL])
        assert made["exit_code"] == 0, made
        status, problem = await api.call("PUT", files, data=zeros(64 * MIB))
        assert (status, problem["code"], problem["fault"]) == (507, "disk_full", "task")
        assert "written and removed again" in problem["detail"]
        status, info = await api.call("PUT", files, data=zeros(3 * MIB))
        assert (status, info["size_bytes"]) == (200, 3 * MIB)


async def test_what_happens_in_a_guests_directory_is_told(api: Api) -> None:
    work = "mkdir out && echo 1 > out/log && mv out/log out/old && rm -r out && touch last"
    async with api.sandbox() as sandbox:
        url = f"/v1/sandboxes/{sandbox}/files/watch?path=/home/user&recursive=true"
        changes: list[tuple[str, str, str | None]] = []
        async with asyncio.timeout(60), api.session.get(url) as response:
            async for line in response.content:
                told = json.loads(line)
                if told["type"] == "watching":
                    await api.execute(sandbox, argv=["/bin/sh", "-c", work])
                    continue
                changes.append((told["event"], told["path"], told["destination"]))
                if told["path"] == "last":
                    break
    paths = [path for event, path, _ in changes if event == "created"]
    # Whoever is quicker than the look into a new directory is not seen to have been there.
    assert paths[0] == "out"
    assert set(paths) <= {"out", "out/log", "out/old", "last"}
    assert ("removed", "out", None) in changes
