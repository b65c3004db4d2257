"""A server on real machines that dies between two steps of a verb; the next one tells which.

Every server but the first is started on what a dead one has left, and dies itself at the next
place. CI tries a few of them; `VMPOOL_TEST_CRASHES=all` tries every one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import aiohttp
import pytest

from tests import estate
from tests.crashes import is_promised, places, verb_of
from tests.estate import Estate, asked
from tests.serving import Api, Ground, Server, client
from tests.tcg.conftest import TEMPLATE, UpServer
from vmpool import faults

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host, pytest.mark.timeout(900)]

FEW = (
    "capture.paused",
    "capture.taken",
    "pause.recorded",
    "fork.woken",
    "rollback.recorded",
    "resume.recorded",
)

ORDER = ("capture", "checkpoint", "pause", "create", "fork", "rollback", "resume", "remove", "kill")
"""Of verbs: what prepares one does not come by its own places, nor what tidies up after another."""

SETTINGS = """\
insecure_no_tokens = true
[checkpoints]
waiting = 0
"""

SPARE = "spare"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a client finds.

    Attributes:
        states: Of sandboxes, by id.
        machines: Of those that run, by id, as the journal has it.
        checkpoints: Their names, or ids.
    """

    states: dict[str, str]
    machines: dict[str, str]
    checkpoints: frozenset[str]

    def states_but(self, *ids: str) -> dict[str, str]:
        """Return the states of others."""
        return {id: state for id, state in self.states.items() if id not in ids}


@pytest.fixture
def bare(ground: Ground, server: UpServer) -> Iterator[Ground]:
    """A state directory beside the shared server's, over the same images and snapshots."""
    with ground.beside("c") as other:
        (other.state / "vmpool.toml").write_text(SETTINGS)
        yield other


async def test_a_crash_at_any_place_costs_nothing_that_was_promised(bare: Ground) -> None:
    # Not of pauses that keep a disk alone: the template here has none, and test_faults tries them.
    tried = [place for place in places() if verb_of(place) in ORDER]
    wanted = tried if os.environ.get("VMPOOL_TEST_CRASHES") == "all" else FEW
    chain = sorted(wanted, key=lambda place: ORDER.index(verb_of(place)))
    image = (bare.state / "images/names" / TEMPLATE).read_text()
    template = {"name": TEMPLATE, "image": image, "limits": {"ready": 0}}
    async with serving(bare, "") as (server, api):
        await asked(api, "POST", "/v1/templates", 201, **template)
        mine = await estate.build(api, "bash")
        subject, before = mine.id, await view(api, bare)
        server.stop(signal.SIGKILL)
    for died_at, place in itertools.pairwise(["", *chain, ""]):
        async with serving(bare, place) as (server, api):
            await estate.settled(bare)
            after = await view(api, bare)
            require_change(died_at, subject, before, after)
            if after.states[mine.id] == "running":
                await mine.require_state(api, mine.id)
            if place:
                subject, before = await broken(server, api, mine, place)


@contextlib.asynccontextmanager
async def serving(ground: Ground, place: str) -> AsyncIterator[tuple[Server, Api]]:
    """Serve until the block is left; a server that comes by `place` dies there."""
    settings = {"VMPOOL_CONFIG": os.fspath(ground.state / "vmpool.toml"), faults.VARIABLE: place}
    with Server(ground, TEMPLATE, "serve", environment=settings) as server:
        async with client(server) as api:
            yield server, api


async def view(api: Api, ground: Ground) -> View:
    """Look at everything."""
    sandboxes = (await asked(api, "GET", "/v1/sandboxes", 200))["sandboxes"]
    kept = (await asked(api, "GET", "/v1/checkpoints", 200))["checkpoints"]
    query = "SELECT id || ' ' || clone_id FROM sandboxes WHERE state = 'running'"
    return View(
        states={each["id"]: each["state"] for each in sandboxes},
        machines=dict(row.split() for row in estate.rows(ground, query)),
        checkpoints=frozenset(each["name"] or each["id"] for each in kept),
    )


async def broken(server: Server, api: Api, mine: Estate, place: str) -> tuple[str, View]:
    """Have a server die at a place; return whom that was about, and what was there just before."""
    verb = verb_of(place)
    subject = await prepared(api, mine, server.ground, verb)
    before = await view(api, server.ground)
    with pytest.raises(aiohttp.ClientError):
        pytest.fail(f"it did not come by {place!r}: {await do(api, verb, subject)}")
    assert server.process.wait(60) == -signal.SIGKILL
    return subject, before


async def prepared(api: Api, mine: Estate, ground: Ground, verb: str) -> str:
    """Tidy up, and return a sandbox that a verb can be tried on."""
    there = await view(api, ground)
    others = sorted(there.states_but(mine.id, mine.asleep))
    if verb == "kill":
        return others[0] if others else await created(api)
    for other in others:
        await asked(api, "DELETE", f"/v1/sandboxes/{other}", 204)
    if verb == "remove" and SPARE not in there.checkpoints:
        await asked(api, "POST", f"/v1/sandboxes/{mine.id}/checkpoints", 201, name=SPARE)
    if verb != "resume":
        if there.states[mine.id] == "paused":
            await asked(api, "POST", f"/v1/sandboxes/{mine.id}/resume", 200)
        return mine.id
    if there.states[mine.asleep] == "running":
        await asked(api, "POST", f"/v1/sandboxes/{mine.asleep}/pause", 200)
    return mine.asleep


async def created(api: Api) -> str:
    """Return the id of a new sandbox."""
    made = await asked(api, "POST", "/v1/sandboxes", 201, template=api.template)
    return str(made["id"])


async def do(api: Api, verb: str, subject: str) -> tuple[int, object]:
    """Do what ends the server."""
    sandbox = f"/v1/sandboxes/{subject}"
    method, path, body = {
        "create": ("POST", "/v1/sandboxes", {"template": api.template}),
        "capture": ("POST", f"{sandbox}/checkpoints", {}),
        "checkpoint": ("POST", f"{sandbox}/checkpoints", {}),
        "fork": ("POST", f"{sandbox}/fork", {"count": 2}),
        "rollback": ("POST", f"{sandbox}/rollback", {"checkpoint": estate.KEPT}),
        "pause": ("POST", f"{sandbox}/pause", {}),
        "resume": ("POST", f"{sandbox}/resume", {}),
        "remove": ("DELETE", f"/v1/checkpoints/{SPARE}", None),
        "kill": ("DELETE", sandbox, None),
    }[verb]
    return await api.call(method, path, json=body)


def require_change(place: str, subject: str, before: View, after: View) -> None:
    """Fail unless what was promised at a place is there, and nothing else has changed."""
    promised = is_promised(place)
    come = after.states.keys() - before.states.keys()
    state = after.states.get(subject)
    match verb := verb_of(place):
        case "create" | "fork":
            assert bool(come) == promised, place
        case "kill":
            assert (state is None) == promised, place
        case "pause" | "resume":
            assert state == ("paused" if (verb == "pause") == promised else "running"), place
        case "rollback":
            moved = before.machines[subject] != after.machines[subject]
            assert moved == promised, place
        case "remove":
            assert after.checkpoints == before.checkpoints - ({SPARE} if promised else set()), place
        case _:
            more = len(after.checkpoints) - len(before.checkpoints)
            assert more == promised, place
    assert after.states_but(subject, *come) == before.states_but(subject), place
    if verb not in {"create", "fork"}:
        assert not come, place
