"""Estate: what a client has at a server, built up and looked at over HTTP, whoever serves by then.

A sandbox that works: a process that counts, an interpreter that remembers, a file. One that sleeps
and has the same in it. A checkpoint of the first.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from dataclasses import dataclass
from typing import Any

from tests.serving import Api, Ground, until

KEPT = "kept"
"""The checkpoint's name."""

COUNTS = "/home/user/counts"
NOTES = "/home/user/notes"
COUNT = f"""
import time
with open({COUNTS!r}, "w", buffering=1) as counts:
    number = 0
    while True:
        number += 1
        print(number, time.monotonic(), file=counts)
        time.sleep(0.2)
"""

CELLS = {
    "python": ("remembered = 40 + 2", "print(remembered)"),
    "bash": ("remembered=42", "echo $remembered"),
}
"""What an interpreter is told to remember, and how it is asked."""

STALL_SECONDS = 2.0
"""How late a counter may be on a busy machine; a guest that stood still is later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """How far a counter has come.

    Attributes:
        guest: Seconds on the guest's clock, which stands while its processors do.
        asked: Seconds on ours before we looked, and `seen` after.
    """

    number: int
    guest: float
    asked: float
    seen: float

    def require_progress_since(self, before: Moment) -> None:
        """Fail unless the counter has gone on, and its guest never stood still."""
        passed, least = self.guest - before.guest, self.asked - before.seen
        assert self.number > before.number
        assert passed > least - STALL_SECONDS, f"{passed} s in the guest, {least} s here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estate:
    """What somebody has.

    Attributes:
        working: As the server describes the sandbox that runs, its deadline included.
        asleep: The id of the one that is paused.
        counter: The process in both, by its number in the guest.
        context: The interpreter in both, and `language` its.
        moment: How far the counter of the one that runs had come.
    """

    working: dict[str, Any]
    asleep: str
    counter: int
    context: str
    language: str
    moment: Moment

    @property
    def id(self) -> str:
        """The sandbox that runs."""
        return str(self.working["id"])

    async def require_going_on(self, api: Api) -> None:
        """Fail unless the one that runs has never noticed anything."""
        found = await described(api, self.id)
        assert found == self.working, found
        (await moment(api, self.id)).require_progress_since(self.moment)
        await self.require_state(api, self.id)

    async def require_use(self, api: Api) -> None:
        """Resume, fork and make a sandbox of the checkpoint; all of them have the same in them."""
        await asked(api, "POST", f"/v1/sandboxes/{self.asleep}/resume", 200)
        fork = await asked(api, "POST", f"/v1/sandboxes/{self.id}/fork", 201, count=1)
        sprout = await asked(api, "POST", "/v1/sandboxes", 201, checkpoint=KEPT)
        for id in (self.asleep, fork["children"][0]["sandbox"]["id"], sprout["id"]):
            await self.require_state(api, id)

    async def require_state(self, api: Api, sandbox: str) -> None:
        """Fail unless a sandbox has process, interpreter and file."""
        path = f"/v1/sandboxes/{sandbox}"
        (process,) = (await asked(api, "GET", f"{path}/processes", 200))["processes"]
        assert (process["pid"], process["ended"]) == (self.counter, None)
        assert await cell(api, sandbox, self.context, CELLS[self.language][1]) == "42\n"
        assert await asked(api, "GET", f"{path}/files?path={NOTES}", 200) == b"written before"
        since = await moment(api, sandbox)

        async def counts() -> bool:
            return (await moment(api, sandbox)).number > since.number

        await until(counts, 120)


async def build(api: Api, language: str) -> Estate:
    """Make all of it, with an interpreter of `language`."""
    working = await asked(
        api, "POST", "/v1/sandboxes", 201, template=api.template, timeout=900, env={"A": "1"}
    )
    path = f"/v1/sandboxes/{working['id']}"
    await api.call("PUT", f"{path}/files?path={NOTES}", data=b"written before")
    context = (await asked(api, "POST", f"{path}/contexts", 201, language=language))["id"]
    await cell(api, working["id"], context, CELLS[language][0])
    argv = ["python3", "-c", COUNT]
    counter = (await asked(api, "POST", f"{path}/processes", 201, argv=argv, tag="counts"))["pid"]
    await moment(api, working["id"])
    await asked(api, "POST", f"{path}/checkpoints", 201, name=KEPT)
    asleep = (await asked(api, "POST", "/v1/sandboxes", 201, checkpoint=KEPT))["id"]
    await asked(api, "POST", f"/v1/sandboxes/{asleep}/pause", 200)
    return Estate(
        working=await described(api, working["id"]),
        asleep=asleep,
        counter=counter,
        context=context,
        language=language,
        moment=await moment(api, working["id"]),
    )


async def asked(api: Api, method: str, path: str, wanted: int, **body: Any) -> Any:
    """Return what a request that must succeed is answered."""
    request = {"json": body} if method == "POST" else {}
    status, answer = await api.call(method, path, **request)
    assert status == wanted, answer
    return answer


async def described(api: Api, sandbox: str) -> dict[str, Any]:
    """Return how a sandbox is described, without how long making it took."""
    answer = await asked(api, "GET", f"/v1/sandboxes/{sandbox}", 200)
    return {name: value for name, value in answer.items() if name != "timings_ms"}


async def cell(api: Api, sandbox: str, context: str, code: str) -> str:
    """Run something in an interpreter; return what it wrote."""
    url = f"/v1/sandboxes/{sandbox}/contexts/{context}/exec"
    async with api.session.post(url, json={"code": code}) as response:
        assert response.status == 200, await response.text()
        lines = [json.loads(line) async for line in response.content]
    assert lines[-1].get("exit_code") == 0, lines
    return "".join(line["data"] for line in lines if line["type"] == "stdout")


async def moment(api: Api, sandbox: str) -> Moment:
    """Return how far a counter has come, of which every number must be there."""
    asked_at = time.monotonic()
    look = f"while ! [ -s {COUNTS} ]; do sleep 0.1; done; cat {COUNTS}"
    out = await api.execute(sandbox, argv=["/bin/sh", "-c", look])
    lines = [line.split() for line in out["stdout"].split("\n")[:-1]]
    assert [int(number) for number, _ in lines] == list(range(1, len(lines) + 1))
    return Moment(
        number=len(lines), guest=float(lines[-1][1]), asked=asked_at, seen=time.monotonic()
    )


def rows(ground: Ground, query: str) -> list[str]:
    """Return the one column of what a server's journal is asked."""
    with contextlib.closing(sqlite3.connect(ground.state / "vmpool.db")) as journal:
        return sorted(row[0] for row in journal.execute(query))


def clone_of(ground: Ground, sandbox: str) -> str:
    """Return the id of a sandbox's machine, as the journal has it."""
    (clone,) = rows(ground, f"SELECT clone_id FROM sandboxes WHERE id = '{sandbox}'")
    return clone


async def has_spare(api: Api) -> bool:
    """Whether the pool has a clone that nobody has."""
    template = await asked(api, "GET", f"/v1/templates/{api.template}", 200)
    return bool(template["pool"]["ready"])


async def settled(ground: Ground) -> None:
    """Return once machines and files are those that the journal knows; without spares."""

    async def exact() -> bool:
        machines = rows(ground, "SELECT clone_id FROM sandboxes WHERE state = 'running'")
        kept = rows(ground, "SELECT id FROM checkpoints")
        return (
            [at.name for at in ground.clones] == machines
            and len(ground.hypervisors()) == len(machines)
            and sorted(at.name for at in (ground.state / "checkpoints").iterdir()) == kept
        )

    await until(exact)
