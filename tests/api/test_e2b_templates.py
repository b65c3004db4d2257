"""Template builds as E2B's clients ask for them, and as they never would."""

from __future__ import annotations

import asyncio
import getpass
import io
import subprocess
import tarfile
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.api import template_builds
from tests.api.template_builds import BASE, Builds, step_of
from tests.fake_host import until
from vmpool.api.e2b import defaults
from vmpool.api.e2b.templates import archives as archives_module
from vmpool.api.e2b.templates import build as build_module
from vmpool.api.e2b.templates import copying, recipe, workshop
from vmpool.api.e2b.templates.archives import Archives
from vmpool.api.e2b.templates.build import LEFT_OUT, Build, Lines, State, build_id
from vmpool.api.e2b.templates.builder import PASSING, STEPS_KEPT
from vmpool.api.e2b.templates.recipe import Become, Copy, Enter, Know, Recipe, Run, Setting, Step
from vmpool.errors import CallerError, TooLargeError
from vmpool.model import Stream
from vmpool.store import BuildRow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


DIGEST = "0" * 64


builds = template_builds.builds


async def test_steps_become_a_template_and_are_not_done_again(
    builds: Builds, tmp_path: Path
) -> None:
    steps = [
        ("RUN", "echo one >> done; echo said; echo $WORD"),
        ("ENV", "WORD", "known"),
        ("RUN", "echo $WORD >> done"),
    ]
    first = await builds.build("made", *steps)
    assert first["status"] == "ready", first
    assert "said" in first["messages"]
    assert (tmp_path / "done").read_text() == "one\nknown\n"
    catalogue, owner = builds.server.host.catalogue, builds.server.owner
    status = catalogue.status(f"{owner}/made")
    assert status.env == {
        defaults.DIRECTORY: str(tmp_path),
        defaults.USER: "user",
        "WORD": "known",
    }
    again = await builds.build("made:other", *steps, ("RUN", "echo three >> done"))
    assert [said for said in again["messages"] if said.startswith("CACHED")] == [
        "CACHED [builder 1/4] RUN echo one >> done; echo said; echo $WORD",
        "CACHED [builder 2/4] ENV WORD",
        "CACHED [builder 3/4] RUN echo $WORD >> done",
    ]
    assert (tmp_path / "done").read_text() == "one\nknown\nthree\n"
    forced = await builds.build("made", *steps, force=True)
    assert not any(said.startswith("CACHED") for said in forced["messages"])
    assert not builds.server.host.sandboxes(owner=owner)
    created = await builds.ask("POST", "/v2/sandboxes", templateID="made:other")
    assert created[0] == 201, created
    await builds.ask("DELETE", f"/sandboxes/{created[1]['sandboxID']}")


async def test_other_variables_make_another_state(builds: Builds, tmp_path: Path) -> None:
    for word in ("a", "b", "a"):
        await builds.build("made", ("ENV", "WORD", word), ("RUN", "echo $WORD >> done"))
    assert (tmp_path / "done").read_text() == "a\nb\n"


async def test_a_step_that_fails_is_named_and_nothing_is_left(builds: Builds) -> None:
    ended = await builds.build("made", ("RUN", "true"), ("RUN", "echo why >&2; exit 3"))
    assert ended["status"] == "error"
    assert ended["reason"] == {
        "message": "failed to run command 'echo why >&2; exit 3': exit status 3",
        "step": "2",
    }
    assert ended["messages"][-2:] == ["why", ended["reason"]["message"]]
    assert not builds.server.host.sandboxes(owner=builds.server.owner)
    assert (await builds.ask("GET", "/templates/aliases/made"))[0] == 404


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (("RUN", "whoami", "root123"), "unauthenticated: invalid username: 'root123'"),
        (("COPY", "a", "/b", "", ""), "were not sent"),
    ],
)
async def test_what_a_step_lacks_is_said_as_its_reason(
    builds: Builds, step: tuple[str, ...], words: str
) -> None:
    template, build = await builds.promise("made")
    path = f"/templates/{template}/builds/{build}"
    wire = step_of(*step, filesHash=DIGEST) if step[0] == "COPY" else step_of(*step)
    await builds.ask("POST", f"/v2{path}", fromTemplate=BASE, steps=[wire])
    ended = await builds.followed(f"{path}/status")
    assert ended["status"] == "error"
    assert words in ended["reason"]["message"]


async def test_an_image_of_a_registry_is_refused_with_what_to_do(builds: Builds) -> None:
    ended = await builds.build("made", fromTemplate=None, fromImage="python:3.13")
    assert (ended["status"], ended["reason"]["step"]) == ("error", "base")
    assert "vmpool image import" in ended["reason"]["message"]


async def test_a_template_that_is_not_there_ends_the_build(builds: Builds) -> None:
    ended = await builds.build("made", fromTemplate="nowhere")
    assert (ended["status"], ended["reason"]["step"]) == ("error", "base")
    assert "no template 'nowhere'" in ended["reason"]["message"]


async def test_what_is_started_is_waited_for(builds: Builds, tmp_path: Path) -> None:
    ended = await builds.build(
        "made", startCmd="echo up > started; echo x > ready", readyCmd="test -e ready"
    )
    assert ended["status"] == "ready", ended
    assert (tmp_path / "started").read_text() == "up\n"
    query = "action=sandbox.checkpoint"
    _, log = await builds.server.call("GET", f"/v1/audit?{query}")
    names = [entry["detail"].get("name", "") for entry in log["entries"]]
    assert names[0].startswith(PASSING), "the next server finds it if this one is killed"
    kept = await builds.server.host.checkpoints(owner=builds.server.owner, sandbox=None)
    assert not [each for each in kept if (each.name or "").startswith(PASSING)]
    names = [
        each.name
        for each in await builds.server.host.checkpoints(owner=builds.server.owner, sandbox=None)
    ]
    assert names == [BASE]


async def test_tags_are_names_of_one_build(builds: Builds) -> None:
    ended = await builds.build("made:one", promised={"tags": ["two"]})
    assert ended["status"] == "ready"
    _, tags = await builds.ask("GET", "/templates/made/tags")
    assert {each["tag"]: each["buildID"] for each in tags} == dict.fromkeys(
        ("one", "two"), ended["buildID"]
    )
    status, answer = await builds.ask("POST", "/templates/tags", target="made:one", tags=["best"])
    assert (status, answer) == (201, {"tags": ["best"], "buildID": ended["buildID"]})
    assert (await builds.ask("DELETE", "/templates/tags", name="made", tags=["one"]))[0] == 204
    assert (await builds.ask("GET", "/templates/aliases/made:one"))[0] == 404
    assert (await builds.ask("DELETE", "/templates/tags", name="made", tags=["none"]))[0] == 404
    _, every = await builds.ask("GET", "/v2/templates")
    mine = {each["templateID"]: each for each in every if not each["public"]}
    assert set(mine) == {"made:two", "made:best"}
    assert mine["made:two"]["buildStatus"] == "ready"
    assert (await builds.ask("DELETE", "/templates/made"))[0] == 204
    assert (await builds.ask("DELETE", "/templates/made"))[0] == 404
    assert (await builds.ask("GET", "/templates/made/tags"))[0] == 404


async def test_what_is_everybodys_is_not_removed_by_its_name(builds: Builds) -> None:
    status, answer = await builds.ask("DELETE", "/templates/python")
    assert (status, answer["error_code"]) == (403, "scope_missing")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"name": ":tag"}, "template_name_invalid"),
        ({"name": "name:"}, "template_name_invalid"),
        ({"name": "a b"}, "template_name_invalid"),
        ({"tags": ["x"]}, "template_name_invalid"),
        ({"name": "name", "tags": [":bad"]}, "invalid_request"),
        ({"name": "name", "tags": ["x"] * 17}, "invalid_request"),
        ({"name": "name", "cpuCount": 0}, "invalid_request"),
    ],
)
async def test_names_that_are_none_are_refused(
    builds: Builds, body: dict[str, Any], code: str
) -> None:
    status, answer = await builds.ask("POST", "/v3/templates", **body)
    assert (status, answer["code"], answer["error_code"]) == (400, 400, code)


@pytest.mark.parametrize(
    "step",
    [
        {"type": "RUN", "args": []},
        {"type": "RUN", "args": ["a\0b"]},
        {"type": "HEALTHCHECK", "args": ["x"]},
        {"type": "ENV", "args": ["a"]},
        {"type": "ENV", "args": ["a=b", "c"]},
        {"type": "COPY", "args": ["a", "b"]},
        {"type": "COPY", "args": ["a", "b", "", "9z"], "filesHash": DIGEST},
        {"type": "COPY", "args": ["a", "b"], "filesHash": "../../etc"},
    ],
)
async def test_steps_that_are_none_are_refused(builds: Builds, step: dict[str, Any]) -> None:
    template, build = await builds.promise("made")
    path = f"/v2/templates/{template}/builds/{build}"
    status, answer = await builds.ask("POST", path, fromTemplate=BASE, steps=[step])
    assert (status, answer["code"]) == (400, 400), answer


async def test_builds_are_their_tenants_own_and_begun_once(builds: Builds) -> None:
    template, build = await builds.promise("made")
    path = f"/templates/{template}/builds/{build}"
    other = Builds(builds.server, builds.server.other_token)
    assert (await other.ask("GET", f"{path}/status"))[0] == 404
    status, answer = await other.ask("POST", f"/v2{path}", steps=[])
    assert (status, answer["error_code"]) == (403, "scope_missing")
    assert (await builds.ask("GET", f"/templates/another/builds/{build}/status"))[0] == 404
    assert (await builds.ask("POST", f"/v2{path}", fromTemplate=BASE))[0] == 202
    status, answer = await builds.ask("POST", f"/v2{path}", fromTemplate=BASE)
    assert (status, answer["error_code"]) == (409, "build_begun")
    assert (await builds.followed(f"{path}/status"))["status"] == "ready"
    assert (await other.ask("GET", "/templates/aliases/made"))[0] == 404


async def test_a_tenant_has_so_many_builds_and_no_more(builds: Builds) -> None:
    for _ in range(workshop.TENANT_MOST):
        await builds.promise("made")
    status, answer = await builds.ask("POST", "/v3/templates", name="made")
    assert (status, answer["error_code"]) == (429, "builds_busy")


async def test_files_are_sent_to_an_address_and_known_by_what_they_are(builds: Builds) -> None:
    template, _ = await builds.promise("made")
    path = f"/templates/{template}/files/{DIGEST}"
    status, found = await builds.ask("GET", path)
    assert (status, found["present"]) == (201, False)
    async with (
        aiohttp.ClientSession() as stranger,
        stranger.put(found["url"], data=b"\x1f\x8b packed") as sent,
    ):
        assert sent.status == 200, await sent.text()
    assert (await builds.ask("GET", path))[1]["present"]
    (file,) = (builds.server.host.settings.state / "uploads").glob("*/*")
    assert file.read_bytes() == b"\x1f\x8b packed"  # as it was sent
    status, answer = await builds.server.call("PUT", "/templates/uploads/guessed", data=b"x")
    assert (status, answer["error_code"]) == (404, "upload_not_found")
    assert (await builds.ask("GET", f"/templates/{template}/files/short"))[0] == 404


async def test_a_build_is_ended_with_its_server(builds: Builds, tmp_path: Path) -> None:
    host, owner = builds.server.host, builds.server.owner
    ending = workshop.Workshop(host)
    steps = (Step(change=Run(line="touch begun; sleep 600")),)
    build = ending.promise(owner=owner, name="made", tags=("default",))
    ending.begin(build, Recipe(base=BASE, steps=steps))
    await until((tmp_path / "begun").exists)
    await ending.close()
    assert build.reason == "the server was stopped; build it again"
    assert not host.sandboxes(owner=owner)


async def test_a_server_that_comes_after_knows_what_became_of_builds(builds: Builds) -> None:
    host, owner = builds.server.host, builds.server.owner
    await builds.build("made")
    _, promised = await builds.promise("later")
    made, lost = [
        BuildRow(
            id=id, owner=owner, name="n", tags=("one",), state="building", step="2", reason="",
            made_ns=time.time_ns(),
        )
        for id in (build_id(host.catalogue.status(f"{owner}/made").snapshot), "lost")
    ]  # fmt: skip
    for row in (made, lost):
        await host.store.builds.save(row, keep=10)
    following = workshop.Workshop(host)
    await following.open()
    states = [following.find(id, owner=owner).state for id in (made.id, lost.id, promised)]
    assert states == [State.READY, State.ERROR, State.WAITING]
    assert following.find("lost", owner=owner).reason == "the server was killed; build it again"
    following.begin(following.find(promised, owner=owner), Recipe(base=BASE, steps=()))
    await until(lambda: following.find(promised, owner=owner).over)
    await following.close()
    ended = {row.id: (row.state, row.step) for row in await host.store.builds.all()}
    assert (ended[made.id][0], ended["lost"]) == ("ready", ("error", "2"))
    assert ended[promised][0] == "ready"


async def test_builds_of_the_same_steps_at_once_are_in_nobodys_way(
    builds: Builds, tmp_path: Path
) -> None:
    steps = [("RUN", f"echo {number} >> done") for number in range(3)]
    ended = await asyncio.gather(*(builds.build(name, *steps) for name in ("one", "two")))
    assert [each["status"] for each in ended] == ["ready", "ready"], ended
    assert (tmp_path / "done").read_text().count("2") >= 1


async def test_the_oldest_steps_make_room(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    assert STEPS_KEPT > 2
    monkeypatch.setattr("vmpool.api.e2b.templates.builder.STEPS_KEPT", 2)
    await builds.build("made", *[("RUN", f"true {number}") for number in range(4)])
    kept = await builds.server.host.checkpoints(owner=builds.server.owner, sandbox=None)
    assert sorted(each.name[:5] for each in kept) == [BASE, "step.", "step."]


# What needs no server.


async def bytes_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_archives_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives_module, "SIZE_MOST", 10)
    monkeypatch.setattr(archives_module, "TENANT_MOST", 16)
    archives = Archives(tmp_path / "uploads")
    with pytest.raises(TooLargeError):
        await archives.receive(archives.address("a", DIGEST), bytes_of(b"12345", b"678901"))
    assert not list((tmp_path / "uploads").glob("*/*"))
    for digest in ("1" * 64, "2" * 64):
        await archives.receive(archives.address("a", digest), bytes_of(b"123456789"))
    assert archives.find("a", "1" * 64) is None
    assert archives.find("a", "2" * 64) is not None
    assert archives.find("b", "2" * 64) is None


async def test_a_half_written_archive_is_swept(tmp_path: Path) -> None:
    archives = Archives(tmp_path)
    (tmp_path / "whose").mkdir()
    (tmp_path / "whose" / ".partial-1").write_bytes(b"")
    archives.sweep()
    assert not list((tmp_path / "whose").iterdir())


def test_a_log_ends_somewhere_and_its_lines_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "ENTRIES_MOST", 4)
    monkeypatch.setattr(build_module, "LINE_MOST", 3)
    build = Build(id="b", owner="a", name="n", tags=())
    lines = Lines(build)
    for piece in ("é".encode()[:1], "é".encode()[1:] + b"\nab", b"cdef"):
        lines.feed(Stream.STDOUT, piece)
    lines.close()
    lines.feed(Stream.STDERR, b"more\nmore\n")
    assert [entry.message for entry in build.entries] == ["é", "abc", "def", LEFT_OUT]


def test_a_recipe_says_what_holds_for_its_steps() -> None:
    setting = Setting()
    for change in (Enter(directory="app"), Become(user="root"), Know(env={"A": "1"})):
        setting = setting.after(Step(change=change))
    assert setting == Setting(user="root", directory="/home/user/app", env={"A": "1"})
    assert setting.path("x/") == "/home/user/app/x/"
    assert setting.path("../..") == "/home"
    assert setting.path("/") == "/"


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ([{f"A{number}": "x" * 100_000} for number in range(11)], "arguments_too_large"),
        ([{f"A{number}": ""} for number in range(513)], "invalid_request"),
        ([{"A": "x" * (1 << 17)}], "arguments_too_large"),
        ([{"A=B": ""}], "invalid_request"),
    ],
)
def test_variables_that_no_sandbox_could_have_are_refused(
    variables: list[dict[str, str]], code: str
) -> None:
    steps = tuple(Step(change=Know(env=env)) for env in variables)
    with pytest.raises(CallerError) as caught:
        Recipe(base="base", steps=steps)
    assert caught.value.error_code == code


def test_the_name_of_a_state_is_that_of_all_that_led_to_it() -> None:
    def last(base: str, *changes: recipe.Change) -> str:
        steps = tuple(Step(change=change) for change in changes)
        return list(recipe.names(Recipe(base="base", steps=steps), base))[-1]

    run, other = Run(line="a"), Run(line="b")
    assert last("x", run) == last("x", run)
    every = [
        last("x", run),
        last("y", run),
        last("x", run, run),
        last("x", other, run),
        last("x", Run(line="a", user="root")),
        last("x", Become(user="a")),
        last("x", Enter(directory="a")),
    ]
    assert len(set(every)) == len(every)


def packed(path: Path, **files: str) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name.replace("__", "/"))
            entry.size, entry.mode = len(content), 0o640
            archive.addfile(entry, io.BytesIO(content.encode()))
    return path


@pytest.mark.parametrize(
    ("source", "target", "found"),
    [
        ("a.txt", "new.txt", {"new.txt"}),
        ("a.txt", "some/deep/", {"some/deep/a.txt"}),
        ("a.txt", "there", {"there/a.txt"}),
        ("*.txt", "all", {"all/a.txt", "all/b.txt"}),
        ("d", "d2", {"d2/x", "d2/.hidden"}),
        ("d", "d2/", {"d2/x", "d2/.hidden"}),
        (".", "every", {"every/a.txt", "every/b.txt", "every/d/x", "every/d/.hidden"}),
        ("d/**", "flat", {"flat/x", "flat/.hidden"}),
    ],
)
def test_files_are_copied_where_a_dockerfile_would(
    tmp_path: Path, source: str, target: str, found: set[str]
) -> None:
    inside = {"a.txt": "a", "b.txt": "b", "d__x": "x", "d__.hidden": "h"}
    archive = packed(tmp_path / "archive", **inside)
    root = tmp_path / "root"
    (root / "there").mkdir(parents=True, mode=0o700)
    setting = Setting(user=getpass.getuser(), directory=str(root))
    step = Copy(source=source, target=target, files=DIGEST)
    command = copying.unpack(step, setting, str(archive), timeout=1.0)
    subprocess.run(command.argv, check=True, cwd="/")
    assert {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} == found
    assert (root / "there").stat().st_mode & 0o777 == 0o700
    assert not archive.exists()


def test_a_mode_is_given_and_what_is_missing_is_said(tmp_path: Path) -> None:
    setting = Setting(user=getpass.getuser(), directory=str(tmp_path))
    archive = packed(tmp_path / "archive", a="x")
    step = Copy(source="a", target="b", files=DIGEST, mode="0600")
    subprocess.run(copying.unpack(step, setting, str(archive), timeout=1.0).argv, check=True)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
    archive = packed(tmp_path / "archive", a="x")
    step = Copy(source="c", target="b", files=DIGEST)
    ended = subprocess.run(
        copying.unpack(step, setting, str(archive), timeout=1.0).argv,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (1, "no file is called 'c'\n")
