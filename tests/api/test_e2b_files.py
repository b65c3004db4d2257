"""The RPC service 'filesystem.Filesystem' as E2B's clients ask it, and otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.api.e2b_inside import OCTETS, SERVICE, Inside

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.conftest import Server


@pytest.fixture
async def inside(server: Server) -> Inside:
    made = await server.make_sandbox()
    return Inside(server, made["id"], made["access_token"])


async def test_a_path_is_described(inside: Inside, tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_bytes(b"12345")
    file.chmod(0o640)
    entry = (await inside.ask("Stat", path=str(file)))["entry"]
    assert entry["modifiedTime"].endswith("Z")
    assert entry["owner"]
    assert entry["group"]
    del entry["modifiedTime"], entry["owner"], entry["group"]
    assert entry == {
        "name": "file.txt",
        "type": "FILE_TYPE_FILE",
        "path": str(file),
        "size": "5",
        "mode": 0o640,
        "permissions": "-rw-r-----",
        "metadata": {},
        "isSymlink": False,
    }


async def test_of_a_link_its_end_is_described(inside: Inside, tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    directory.mkdir(mode=0o750)
    (tmp_path / "link").symlink_to("middle")
    (tmp_path / "middle").symlink_to("directory")
    (tmp_path / "lost").symlink_to("nowhere")
    entry = (await inside.ask("Stat", path=f"{tmp_path}/link"))["entry"]
    assert (entry["type"], entry["isSymlink"]) == ("FILE_TYPE_DIRECTORY", True)
    assert (entry["symlinkTarget"], entry["size"]) == (str(directory), str(len("middle")))
    assert (entry["mode"], entry["permissions"]) == (0o750, "drwxr-x---")
    lost = (await inside.ask("Stat", path=f"{tmp_path}/lost"))["entry"]
    assert (lost["type"], lost["symlinkTarget"]) == ("FILE_TYPE_UNSPECIFIED", "nowhere")


async def test_a_directory_is_listed_to_the_depth_asked(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "c").touch()

    async def names(**depth: int) -> list[str]:
        answer = await inside.ask("ListDir", path=str(tmp_path), **depth)
        return [entry["name"] for entry in answer["entries"]]

    assert await names() == await names(depth=0) == await names(depth=1) == ["a"]
    assert await names(depth=2) == ["a", "b", "c"]
    assert await names(depth=2**32 - 1) == ["a", "b", "c"]


async def test_directories_are_made_moved_and_removed(inside: Inside, tmp_path: Path) -> None:
    made = await inside.ask("MakeDir", path=f"{tmp_path}/x/y")
    assert (made["entry"]["type"], made["entry"]["mode"]) == ("FILE_TYPE_DIRECTORY", 0o755)
    moved = await inside.ask("Move", source=f"{tmp_path}/x/y", destination=f"{tmp_path}/new/z")
    assert moved["entry"]["path"] == f"{tmp_path}/new/z"
    assert await inside.ask("Remove", path=f"{tmp_path}/new") == {}
    assert await inside.ask("Remove", path=f"{tmp_path}/new") == {}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


async def test_what_the_guest_refuses_has_the_word_that_clients_know(
    inside: Inside, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    nowhere, file = f"{tmp_path}/nowhere", f"{tmp_path}/file"
    assert await inside.refusal("Stat", path=nowhere) == (404, "not_found")
    assert await inside.refusal("ListDir", path=nowhere) == (404, "not_found")
    assert await inside.refusal("ListDir", path=file) == (400, "invalid_argument")
    assert await inside.refusal("MakeDir", path=file) == (400, "invalid_argument")
    assert await inside.refusal("MakeDir", path=f"{file}/x") == (400, "invalid_argument")
    assert await inside.refusal("MakeDir", path=f"{tmp_path}/directory") == (409, "already_exists")
    assert await inside.refusal("Move", source=nowhere, destination=file) == (404, "not_found")
    assert await inside.refusal("CreateWatcher", path=nowhere) == (404, "not_found")
    assert await inside.refusal("CreateWatcher", path=file) == (400, "invalid_argument")


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("Stat", {"path": 7}),
        ("Stat", ["path"]),
        ("ListDir", {"path": "/", "depth": -1}),
        ("ListDir", {"path": "/", "depth": 2**32}),
        ("WatchDir", {"path": "/"}),
    ],
)
async def test_what_no_client_sends_is_refused(inside: Inside, method: str, body: Any) -> None:
    status, answer = await inside.server.call(
        "POST", SERVICE + method, json=body, headers=inside.headers
    )
    assert (status // 100, answer["code"]) == (4, "invalid_argument")


@pytest.mark.parametrize(("path", "why"), [("a\0b", "holds a NUL"), ("a" * 4096, "over 4095")])
async def test_no_path_goes_to_the_guest_that_none_can_have(
    inside: Inside, path: str, why: str
) -> None:
    for method, body in (
        ("Stat", {"path": path}),
        ("ListDir", {"path": path}),
        ("MakeDir", {"path": path}),
        ("Remove", {"path": path}),
        ("Move", {"source": path, "destination": "x"}),
        ("Move", {"source": "x", "destination": path}),
        ("CreateWatcher", {"path": path}),
    ):
        status, answer = await inside.call(method, **body)
        assert (status, answer["code"]) == (400, "invalid_argument")
        assert why in answer["message"]


async def test_an_account_that_is_not_there_is_refused_by_its_name(inside: Inside) -> None:
    headers = inside.headers | {"Authorization": "Basic bm9ib2R5MTI6"}  # nobody12:
    status, answer = await inside.server.call(
        "POST", SERVICE + "Stat", json={"path": "/"}, headers=headers
    )
    assert (status, answer["code"]) == (401, "unauthenticated")
    assert "invalid username: 'nobody12'" in answer["message"]
    status, answer = await inside.http("GET", params={"path": "/x", "username": "nobody12"})
    assert (status, answer["code"]) == (401, 401)
    assert answer["message"].startswith("error looking up user 'nobody12': ")


async def events(read: Any, count: int) -> list[tuple[str, str]]:
    told = []
    for _ in range(count):
        _, message = await read()
        told.append((message["filesystem"]["type"], message["filesystem"]["name"]))
    return [(kind.removeprefix("EVENT_TYPE_"), name) for kind, name in told]


async def test_what_happens_is_streamed(inside: Inside, tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    async with inside.watching(path=str(top), recursive=True) as read:
        assert await read() == (0, {"start": {}})
        # An empty one is written by nothing, also not by being made so.
        await inside.http("POST", params={"path": f"{top}/e"}, data=b"", headers=OCTETS)
        assert await events(read, 2) == [("CREATE", "e"), ("CHMOD", "e")]
        # Written again it is: what had nothing in it has nothing of its writer's.
        await inside.http("POST", params={"path": f"{top}/e"}, data=b"", headers=OCTETS)
        assert ("WRITE", "e") in await events(read, 2)
        await inside.http("POST", params={"path": f"{top}/f"}, data=b"x", headers=OCTETS)
        assert await events(read, 3) == [("CREATE", "f"), ("CHMOD", "f"), ("WRITE", "f")]
        (top / "f").rename(top / "g")
        assert await events(read, 2) == [("RENAME", "f"), ("CREATE", "g")]
        (top / "sub").mkdir()
        (top / "sub" / "h").write_bytes(b"")
        assert await events(read, 2) == [("CREATE", "sub"), ("CREATE", "sub/h")]
        (top / "g").unlink()
        assert await events(read, 1) == [("REMOVE", "g")]
        top.rename(tmp_path / "elsewhere")
        assert await events(read, 1) == [("REMOVE", ".")]
        assert await read() == (2, {})


async def test_an_event_tells_what_is_there_if_that_is_asked_for(
    inside: Inside, tmp_path: Path
) -> None:
    async with inside.watching(path=str(tmp_path), includeEntry=True) as read:
        await read()
        (tmp_path / "f").touch()
        entry = (await read())[1]["filesystem"]["entry"]
        assert (entry["path"], entry["type"]) == (f"{tmp_path}/f", "FILE_TYPE_FILE")
        (tmp_path / "f").unlink()
        told = (await read())[1]["filesystem"]
        while told["type"] != "EVENT_TYPE_REMOVE":
            told = (await read())[1]["filesystem"]
        assert "entry" not in told


async def test_a_watch_that_cannot_be_is_refused_in_its_stream(inside: Inside) -> None:
    async with inside.watching(path="/nowhere") as read:
        flags, message = await read()
        assert (flags, message["error"]["code"]) == (2, "not_found")


async def test_a_watcher_tells_what_happened_when_it_is_asked(
    inside: Inside, tmp_path: Path
) -> None:
    id = (await inside.ask("CreateWatcher", path=str(tmp_path), includeEntry=True))["watcherId"]

    async def take() -> list[dict[str, Any]]:
        return list((await inside.ask("GetWatcherEvents", watcherId=id))["events"])

    assert await take() == []
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "f").chmod(0o600)
    taken = await take()
    assert [(one["type"], one["name"]) for one in taken] == [
        ("EVENT_TYPE_CREATE", "f"),
        ("EVENT_TYPE_WRITE", "f"),
        ("EVENT_TYPE_CHMOD", "f"),
    ]
    assert {one["entry"]["mode"] for one in taken} == {0o600}
    assert await take() == []
    assert await inside.ask("RemoveWatcher", watcherId=id) == {}
    assert await inside.refusal("GetWatcherEvents", watcherId=id) == (404, "not_found")
    assert await inside.refusal("RemoveWatcher", watcherId=id) == (404, "not_found")


async def test_a_watcher_outlives_its_directory_and_not_its_machine(
    inside: Inside, tmp_path: Path
) -> None:
    top = tmp_path / "top"
    top.mkdir()
    id = (await inside.ask("CreateWatcher", path=str(top)))["watcherId"]
    top.rmdir()
    (event,) = (await inside.ask("GetWatcherEvents", watcherId=id))["events"]
    assert (event["type"], event["name"]) == ("EVENT_TYPE_REMOVE", ".")
    assert (await inside.ask("GetWatcherEvents", watcherId=id))["events"] == []
    id = (await inside.ask("CreateWatcher", path=str(tmp_path)))["watcherId"]
    for turn in ("pause", "resume"):
        status, _ = await inside.server.call("POST", f"/v1/sandboxes/{inside.id}/{turn}", json={})
        assert status == 200
    assert await inside.refusal("GetWatcherEvents", watcherId=id) == (404, "not_found")


async def test_watchers_are_as_many_as_a_sandbox_may_have(inside: Inside, tmp_path: Path) -> None:
    ids = [(await inside.ask("CreateWatcher", path=str(tmp_path)))["watcherId"] for _ in range(64)]
    assert await inside.refusal("CreateWatcher", path=str(tmp_path)) == (429, "resource_exhausted")
    await inside.ask("RemoveWatcher", watcherId=ids[0])
    await inside.ask("CreateWatcher", path=str(tmp_path))


async def test_a_watcher_is_its_own_sandboxs(inside: Inside, tmp_path: Path) -> None:
    id = (await inside.ask("CreateWatcher", path=str(tmp_path)))["watcherId"]
    made = await inside.server.make_sandbox()
    other = Inside(inside.server, made["id"], made["access_token"])
    assert await other.refusal("GetWatcherEvents", watcherId=id) == (404, "not_found")
    other.token = inside.token
    status, answer = await other.call("Stat", path="/")
    assert status == 401
    assert answer["code"] in {401, "unauthenticated"}
