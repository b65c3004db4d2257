"""What a QEMU process is cut off from, and how it ends. Any program stands in for QEMU."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.stand_ins import isolated
from vmpool.cancellation import uninterrupted
from vmpool.engine.qemu import process
from vmpool.engine.qemu.jail.wall import Wall
from vmpool.engine.qemu.output import LIMIT_BYTES, Output
from vmpool.engine.qemu.process import Process
from vmpool.errors import HostError
from vmpool.precedence import USUAL, before_guests

if TYPE_CHECKING:
    from collections.abc import Mapping

INSPECT = """
import json, os
status = dict(line.rstrip("\\n").split(":\\t", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(), "pid": os.getpid(),
    "session": os.getsid(0), "cwd": os.getcwd(), "no_new_privs": status["NoNewPrivs"],
    "capabilities": status["CapEff"], "environment": sorted(os.environ),
    "namespaces": {n: os.readlink(f"/proc/self/ns/{n}") for n in ("net", "ipc", "uts", "pid")},
    "links": [line.split(":")[0].strip() for line in open("/proc/self/net/dev") if ":" in line],
    "descriptors": sorted(int(n) for n in os.listdir("/proc/self/fd")),
}))
"""


async def spawned(
    *argv: str, slots: Mapping[int, int] | None = None, log: int | None = None
) -> Process:
    walled = await asyncio.to_thread(isolated)
    with tempfile.TemporaryFile() as null, walled.for_one() as jail:
        return await process.spawn(
            argv,
            slots=slots or {},
            log=null.fileno() if log is None else log,
            jail=jail,
        )


def children() -> set[str]:
    """Return the process ids of this process's children, those that nobody has reaped too."""
    found: set[str] = set()
    for thread in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            found.update(thread.read_text().split())
    return found


def namespace(name: str) -> str:
    return str(Path(f"/proc/self/ns/{name}").readlink())


async def inspected() -> dict[str, Any]:
    read, write = os.pipe()
    os.set_inheritable(read, True)  # what we inherited ourselves must not go further
    with tempfile.TemporaryFile("w+") as log:
        try:
            child = await spawned(
                "/usr/bin/python3", "-c", INSPECT, slots={9: write, 255: read}, log=log.fileno()
            )
            code = await child.wait()
        finally:
            os.close(read)
            os.close(write)
        log.seek(0)
        text = log.read()
    assert code == 0, text
    found: dict[str, Any] = json.loads(text)
    return found


async def test_a_process_gets_its_descriptors_and_no_other() -> None:
    found = await inspected()
    assert [fd for fd in found["descriptors"] if fd != 3] == [0, 1, 2, 9, 255]  # 3 lists them


async def test_a_process_has_no_privileges_and_no_network() -> None:
    found = await inspected()
    assert found["no_new_privs"] == "1"
    assert int(found["capabilities"], 16) == 0
    assert found["cwd"] == "/"
    assert found["session"] in {found["pid"], 0}
    assert set(found["environment"]) <= {"LC_ALL", "PATH"}
    walls = (await asyncio.to_thread(isolated)).walls
    if Wall.NAMESPACES in walls:
        for name in ("net", "ipc", "uts"):
            assert found["namespaces"][name] != namespace(name)
        assert found["links"] == ["lo"]
    if Wall.ACCOUNT in walls:
        assert found["pid"] == 1  # it can name no other process
        assert 0 not in {*found["uid"], *found["gid"], *found["groups"]}


async def test_spawning_changes_nothing_of_ours() -> None:
    def ours() -> object:
        names = ("net", "ipc", "uts", "pid")
        namespaces = [namespace(name) for name in names]
        return os.getresuid(), os.getgroups(), namespaces, Path.cwd()

    before = ours()
    await (await spawned("true")).wait()
    assert ours() == before
    with tempfile.TemporaryFile():  # as the account that we are
        pass


@pytest.mark.parametrize("code", [0, 7])
async def test_an_exit_code_is_told_to_all_who_wait(code: int) -> None:
    child = await spawned("sh", "-c", f"exit {code}")
    assert set(await asyncio.gather(child.wait(), child.wait())) == {code}
    assert await child.wait() == code
    assert child.exit_code == code


async def test_a_cancelled_wait_disturbs_nobody() -> None:
    child = await spawned("sleep", "60")
    waits = [asyncio.ensure_future(child.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    waits[0].cancel()
    await child.kill()
    assert await waits[1] == -signal.SIGKILL


async def test_a_cancelled_kill_still_reaps() -> None:
    child = await spawned("sleep", "60")
    kill = asyncio.ensure_future(child.kill())
    await asyncio.sleep(0)
    kill.cancel()
    with pytest.raises(asyncio.CancelledError):
        await kill
    assert child.exit_code == -signal.SIGKILL


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("steps", range(6))
async def test_a_cancelled_spawn_leaves_no_process(steps: int, times: int) -> None:
    before = children()
    with tempfile.TemporaryFile() as log, isolated().for_one() as jail:
        spawn = asyncio.ensure_future(
            process.spawn(("sleep", "60"), slots={}, log=log.fileno(), jail=jail)
        )
        for _ in range(steps):
            await asyncio.sleep(0)
        for _ in range(times):
            spawn.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await spawn
    assert children() == before


async def test_a_process_that_cannot_be_held_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = children()
    with monkeypatch.context() as patched:
        patched.setattr(os, "pidfd_open", refuse)
        with pytest.raises(HostError) as caught:
            await spawned("sleep", "60")
    assert caught.value.error_code == "process_unheld"
    assert children() == before


async def test_a_process_that_is_not_our_child_is_watched_and_killed() -> None:
    # A shell's background process, whose parent has ended: the pid is all that is left.
    script = "sleep 60 >/dev/null & echo $!"
    shell = await asyncio.create_subprocess_exec(
        *("setsid", "sh", "-c", script), stdout=asyncio.subprocess.PIPE
    )
    assert shell.stdout is not None
    pid = int(await shell.stdout.readline())
    await shell.wait()
    orphan = Process.open(pid)
    await orphan.kill()
    assert orphan.exit_code == process.UNKNOWN_EXIT


async def test_a_missing_program_is_said_to_be_missing() -> None:
    with pytest.raises(HostError) as caught:
        await spawned("qemu-system-none")
    assert caught.value.error_code == "qemu_missing"


async def test_work_that_must_end_ends_before_a_cancellation_is_told() -> None:
    gate, done = asyncio.Event(), []

    async def work() -> None:
        await gate.wait()
        done.append(True)

    task = asyncio.ensure_future(uninterrupted(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [True]


async def test_an_error_of_uninterrupted_work_is_raised() -> None:
    async def work() -> None:
        raise HostError("no")

    with pytest.raises(HostError):
        await uninterrupted(work())


async def test_output_is_kept_within_a_limit_and_the_process_lives_on() -> None:
    kept = Output.create()
    script = "yes x | tr -d '\\n' | head -c 100000; echo; exit 7"
    child = await spawned("sh", "-c", script, log=kept.fileno())
    assert await child.wait() == 7
    assert os.fstat(kept.fileno()).st_size == LIMIT_BYTES
    assert set(kept.tail) == {"x"}
    kept.close()
    assert len(kept.tail) == 4096


async def test_the_last_words_of_a_process_outlive_its_output_and_are_text() -> None:
    kept = Output.create()
    assert kept.tail == ""
    await (await spawned("printf", "first\\n\\377last\\n", log=kept.fileno())).wait()
    kept.close()
    kept.close()
    assert kept.tail == "first\n\ufffdlast"


async def test_what_a_process_said_is_found_by_who_comes_later_when_the_file_is_ours() -> None:
    kept = Output.create()
    child = await spawned("sh", "-c", "echo said; exec sleep 60", log=kept.fileno())
    async with asyncio.timeout(30):
        while not kept.tail:  # noqa: ASYNC110 -- a file in memory has no event
            await asyncio.sleep(0.005)
    found = Output.of(child.pid)
    kept.close()
    assert found.tail == "said"
    await child.kill()
    found.close()
    assert found.tail == "said"
    assert Output.of(child.pid).tail == ""


async def test_what_a_process_put_in_its_logs_place_is_not_read(tmp_path: Path) -> None:
    secret, pipe = tmp_path / "secret", tmp_path / "pipe"
    secret.write_text("not for everyone")
    os.mkfifo(pipe)  # which nobody writes: who opens it to read could wait for ever
    unsealed = os.memfd_create("qemu.log")
    os.write(unsealed, b"neither")
    for descriptor in (
        os.open(secret, os.O_RDONLY),
        os.open(secret, os.O_PATH),
        os.open(pipe, os.O_RDWR),
        unsealed,
    ):
        child = await spawned("sleep", "60", log=descriptor)
        assert Output.of(child.pid).tail == ""
        await child.kill()
        os.close(descriptor)


async def test_a_process_that_was_let_go_lives_on_and_is_another_holders() -> None:
    child = await spawned("sleep", "60")
    assert child.is_alive
    later = Process.open(child.pid)
    child.release()
    child.release()
    await child.kill()  # no longer ours
    assert not child.is_alive
    assert later.is_alive
    await later.kill()
    assert not later.is_alive
    assert later.exit_code == -signal.SIGKILL


async def test_it_does_not_go_first_though_the_server_does() -> None:
    with tempfile.TemporaryFile("w+") as log, before_guests():
        show = "import os; print(os.nice(0))"
        child = await spawned("/usr/bin/python3", "-c", show, log=log.fileno())
        assert await child.wait() == 0
        log.seek(0)
        assert log.read() == f"{USUAL}\n"
