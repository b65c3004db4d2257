"""Soak: clients that ask for anything at random, of a server that is killed again and again.

Each client has sandboxes and checkpoints of its own, and knows what may have become of each: what
was answered last, and what was asked since and not answered. The next server must show one of the
two, answer what is asked again, and have nothing that nobody knows of.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import signal
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests import estate
from tests.estate import asked
from tests.serving import Api, Ground, Server, client, until
from vmpool.network.namespace import HOME, Namespace

CLIENTS = 3

SANDBOXES = 3
"""That a client wants at most; a fork may give it one more."""

ANSWER_SECONDS = 60.0
"""Within which everything is answered, or it hangs."""

ROUND_SECONDS = (0.2, 4.0)
"""For how long a server serves."""

ENDINGS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
"""How it ends; one that is asked to leaves what runs to the next."""

VALUE = "/home/user/value"

RUNNING, PAUSED, GONE = "running", "paused", "gone"

LEAVING = frozenset({"pool_closed", "server_draining"})
"""Codes of a server that is about to end."""

Outlook = tuple[str, int]
"""A sandbox's state, and the value in its file."""


class LeavingError(Exception):
    """The server is about to end, and does nothing more for anybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Where a soak takes place.

    Attributes:
        serve: Starts a server on `ground`, which leaves what runs when it is asked to end.
        remembers: Whether the files of a guest are part of its states.
        client: Connects to it.
        home: The network namespace that servers live in.
        network: What sandboxes that come and go ask for.
    """

    ground: Ground
    template: dict[str, Any]
    serve: Callable[[], Server]
    remembers: bool
    client: Callable[[Server], AbstractAsyncContextManager[Api]] = client
    home: Namespace = HOME
    network: dict[str, Any] | None = None

    @property
    def wanted(self) -> dict[str, Any]:
        """The request for a sandbox."""
        more = {} if self.network is None else {"network": self.network}
        return {"template": self.template["name"], "timeout": 600, **more}


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """A request for new sandboxes, which may be sent again.

    Attributes:
        values: What may be in the files of the new ones.
    """

    path: str
    body: dict[str, Any]
    key: str
    values: frozenset[int]


@dataclass(slots=True, kw_only=True)
class Client:
    """One client and what it has, for all that it knows.

    Attributes:
        sandboxes: What each may be.
        checkpoints: What may be in each; `None` stands for that there may be none.
        unanswered: What was asked for and may have to be asked again.
        done: How many requests were answered.
    """

    name: str
    chance: random.Random
    world: World
    sandboxes: dict[str, set[Outlook]] = field(default_factory=dict)
    checkpoints: dict[str, set[int | None]] = field(default_factory=dict)
    unanswered: Birth | None = None
    done: int = 0
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def go_on(self, api: Api) -> None:
        """Ask for one thing after the other, until the server is gone."""
        try:
            while True:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self._act(api)
                self.done += 1
        except (aiohttp.ClientError, LeavingError):
            return

    async def ask_again(self, api: Api) -> None:
        """Send once more what the last server did not answer."""
        if self.unanswered is not None:
            await self._bear(api, self.unanswered)

    def see(self, states: dict[str, str], names: set[str]) -> None:
        """Compare what there is with what there may be, and know better from now on."""
        for id, outlooks in list(self.sandboxes.items()):
            state = states.get(id, GONE)
            self.sandboxes[id] = {each for each in outlooks if each[0] == state}
            assert self.sandboxes[id], f"{id} is {state}, and was to be one of {outlooks}"
            if state == GONE:
                del self.sandboxes[id]
        for name, values in list(self.checkpoints.items()):
            found = {value for value in values if (value is not None) == (name in names)}
            assert found, f"checkpoint {name}: {name in names}, and was to have one of {values}"
            self.checkpoints[name] = found
            if name not in names:
                del self.checkpoints[name]

    async def look(self, api: Api, id: str) -> None:
        """See that a guest of ours answers, and with what."""
        look = f"cat {VALUE} || echo 0" if self.world.remembers else "echo 0"
        seen = (RUNNING, int(await executed(api, id, f"{look} 2> /dev/null")))
        assert seen in self.sandboxes[id], f"{id} is {seen}, and was to be {self.sandboxes[id]}"
        self.sandboxes[id] = {seen}

    # What it may do next.

    async def _act(self, api: Api) -> None:
        running = [id for id, outlooks in self.sandboxes.items() if is_in(outlooks, RUNNING)]
        paused = [id for id, outlooks in self.sandboxes.items() if is_in(outlooks, PAUSED)]
        verbs = ["create"] * (len(self.sandboxes) < SANDBOXES)
        verbs += ["sprout"] * (len(self.sandboxes) < SANDBOXES and bool(self.checkpoints))
        verbs += ["resume", "resume", "kill paused"] * bool(paused)
        if running:
            verbs += ["pause", "pause", "look", "write", "write", "keep", "kill"]
            verbs += ["fork"] * (len(self.sandboxes) < SANDBOXES)
            verbs += ["roll back", "roll back"] * bool(self.checkpoints)
        verbs += ["remove"] * len(self.checkpoints)
        verb = self.chance.choice(verbs)
        if verb in {"create", "sprout", "fork"}:
            await self._bear(api, self._birth(verb, running))
        elif verb == "remove":
            await self._remove(api, self.chance.choice(sorted(self.checkpoints)))
        elif verb in {"resume", "kill paused"}:
            await self._change(api, verb, self.chance.choice(paused))
        elif verb == "keep":
            await self._keep(api, self.chance.choice(running))
        elif verb == "look":
            await self.look(api, self.chance.choice(running))
        elif verb == "write":
            await self._write(api, self.chance.choice(running))
        else:
            await self._change(api, verb, self.chance.choice(running))

    def _birth(self, verb: str, running: list[str]) -> Birth:
        path, body, values = "/v1/sandboxes", {"template": self.world.template["name"]}, {0}
        if verb == "sprout":
            name = self.chance.choice(sorted(self.checkpoints))
            body, values = {"checkpoint": name}, {each or 0 for each in self.checkpoints[name]}
        elif verb == "fork":
            id = self.chance.choice(running)
            path, values = f"/v1/sandboxes/{id}/fork", {value for _, value in self.sandboxes[id]}
            body = {"count": self.chance.randint(1, 2)}
        return Birth(path=path, body=body, key=self._new_name(), values=frozenset(values))

    async def _bear(self, api: Api, birth: Birth) -> None:
        self.unanswered = birth
        answer = await told(
            api, "POST", birth.path, json=birth.body, headers={"Idempotency-Key": birth.key}
        )
        self.unanswered = None
        for born in [child["sandbox"] for child in answer.get("children", [{"sandbox": answer}])]:
            self.sandboxes[born["id"]] = {(RUNNING, value) for value in birth.values}

    async def _keep(self, api: Api, id: str) -> None:
        name, values = self._new_name(), {value for _, value in self.sandboxes[id]}
        self.checkpoints[name] = {None, *values}
        await told(api, "POST", f"/v1/sandboxes/{id}/checkpoints", json={"name": name})
        self.checkpoints[name] = set(values)

    async def _remove(self, api: Api, name: str) -> None:
        self.checkpoints[name].add(None)
        await told(api, "DELETE", f"/v1/checkpoints/{name}")
        del self.checkpoints[name]

    async def _write(self, api: Api, id: str) -> None:
        number = next(self._numbers) if self.world.remembers else 0
        self.sandboxes[id].add((RUNNING, number))
        await executed(api, id, f"echo {number} > {VALUE}" if self.world.remembers else "true")
        self.sandboxes[id] = {(RUNNING, number)}

    async def _change(self, api: Api, verb: str, id: str) -> None:
        """Have a sandbox be something else."""
        path, values = f"/v1/sandboxes/{id}", {value for _, value in self.sandboxes[id]}
        method, body = "POST", {}
        if verb == "roll back":
            name = self.chance.choice(sorted(self.checkpoints))
            becomes = {(RUNNING, value or 0) for value in self.checkpoints[name]}
            path, body = f"{path}/rollback", {"checkpoint": name}
        elif verb in {"pause", "resume"}:
            becomes = {(PAUSED if verb == "pause" else RUNNING, value) for value in values}
            path = f"{path}/{verb}"
        else:
            method, becomes = "DELETE", {(GONE, 0)}
        self.sandboxes[id] |= becomes
        await told(api, method, path, **({"json": body} if method == "POST" else {}))
        self.sandboxes[id] = becomes
        if is_in(becomes, GONE):
            del self.sandboxes[id]

    def _new_name(self) -> str:
        return f"{self.name}-{next(self._numbers)}"


def is_in(outlooks: set[Outlook], state: str) -> bool:
    """Whether a sandbox is in a state for certain."""
    return {each[0] for each in outlooks} == {state}


async def told(api: Api, method: str, path: str, **request: Any) -> dict[str, Any]:
    """Return what a request is answered, which must be good while the server stays.

    Raises:
        LeavingError: It does not.
    """
    status, answer = await api.call(method, path, **request)
    if status == 503 and answer["code"] in LEAVING:
        raise LeavingError
    if status == 410 and answer["code"] == "sandbox_ended" and method == "DELETE":
        return {}
    assert status in {200, 201, 204}, f"{method} {path}: {answer}"
    return dict(answer) if isinstance(answer, dict) else {}


async def executed(api: Api, sandbox: str, line: str) -> str:
    """Run a line of shell, and return what it wrote.

    Raises:
        LeavingError: As `told`; nobody knows whether it ran.
    """
    url, request = f"/v1/sandboxes/{sandbox}/exec", {"argv": ["/bin/sh", "-c", line]}
    async with api.session.post(url, json=request) as response:
        events = [json.loads(event) async for event in response.content]
    if response.status == 503 or events[-1].get("code") in LEAVING:
        raise LeavingError
    assert events[-1].get("exit_code") == 0, events
    return "".join(event["data"] for event in events if event["type"] == "stdout")


async def soak(world: World, *, seed: int, seconds: float) -> list[int]:
    """Have servers killed for so long; return how many requests each had answered."""
    chance = random.Random(seed)
    clients = [
        Client(name=f"c{number}", chance=random.Random(f"{seed}-{number}"), world=world)
        for number in range(CLIENTS)
    ]
    end = time.monotonic() + seconds
    answered: list[int] = []
    while time.monotonic() < end or len(answered) < 2 or sum(answered) <= len(answered):
        before = sum(each.done for each in clients)
        with world.serve() as server:
            async with client(server) as api:
                await verify(world, clients, api)
                await _worked(clients, api, server, chance)
        answered.append(sum(each.done for each in clients) - before)
    with world.serve() as server:
        async with client(server) as api:
            await verify(world, clients, api)
            await _emptied(clients, api, world.ground)
        assert server.stop(signal.SIGTERM) == 0
    assert not world.ground.clones
    return answered


async def verify(world: World, clients: list[Client], api: Api) -> None:
    """Fail unless a server that has just started has what it must, and nothing else."""
    await until(lambda: _has_template(world, api))
    states, names = await found(api)
    for each in clients:
        each.see(states, names)
        await each.ask_again(api)
    states, names = await found(api)
    assert states.keys() == {id for each in clients for id in each.sandboxes}, "nobody knows of it"
    assert names == {name for each in clients for name in each.checkpoints}, "nobody knows of it"
    for each in clients:
        for id in [id for id, outlooks in each.sandboxes.items() if is_in(outlooks, RUNNING)]:
            await each.look(api, id)

    async def objections() -> list[str]:
        status, template = await api.call("GET", f"/v1/templates/{world.template['name']}")
        assert status == 200, template
        return await asyncio.to_thread(_objections, world.ground, template["pool"])

    async def exact() -> bool:
        return not await objections()

    with contextlib.suppress(TimeoutError):
        await until(exact)
    assert not (left := await objections()), left


async def _has_template(world: World, api: Api) -> bool:
    status, template = await api.call("GET", f"/v1/templates/{world.template['name']}")
    if status == 404:
        await asked(api, "POST", "/v1/templates", 201, **world.template)
        return True
    return bool(template["state"] == "ready")


def _objections(ground: Ground, pool: dict[str, int]) -> list[str]:
    """Return in what machines, files, rows and places differ."""
    machines = {at.name for at in ground.clones}
    running = estate.rows(ground, "SELECT clone_id FROM sandboxes WHERE state = 'running'")
    kept = estate.rows(ground, "SELECT id FROM checkpoints")
    files = sorted(at.name for at in (ground.state / "checkpoints").iterdir())
    right = {
        f"the pool is not at rest: {pool}": pool["restoring"] == pool["dying"] == 0,
        f"{pool} and {len(machines)} machines": len(machines) == pool["held"] + pool["ready"],
        f"{pool} and {len(running)} sandboxes": pool["held"] == len(running),
        f"machines gone: {set(running) - machines}": set(running) <= machines,
        f"checkpoints {kept}, directories {files}": kept == files,
    }
    return [text for text, holds in right.items() if not holds]


async def found(api: Api) -> tuple[dict[str, str], set[str]]:
    """Return the states of all sandboxes, and the names of all checkpoints."""
    sandboxes = await asked(api, "GET", "/v1/sandboxes?limit=1000", 200)
    kept = await asked(api, "GET", "/v1/checkpoints?limit=1000", 200)
    return (
        {each["id"]: each["state"] for each in sandboxes["sandboxes"]},
        {each["name"] for each in kept["checkpoints"]},
    )


async def _worked(clients: list[Client], api: Api, server: Server, chance: random.Random) -> None:
    """Have clients ask until the server was ended, which comes at any moment."""
    async with asyncio.TaskGroup() as group:
        for each in clients:
            group.create_task(each.go_on(api))
        await asyncio.sleep(chance.uniform(*ROUND_SECONDS))  # the moment is what is tried
        number = chance.choice(ENDINGS)
        code = await asyncio.to_thread(server.stop, number)
        assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL), code


async def _emptied(clients: list[Client], api: Api, ground: Ground) -> None:
    for each in clients:
        for id in each.sandboxes:
            await asked(api, "DELETE", f"/v1/sandboxes/{id}", 204)
        for name in each.checkpoints:
            await asked(api, "DELETE", f"/v1/checkpoints/{name}", 204)
    assert not list((ground.state / "checkpoints").iterdir())
    assert not estate.rows(ground, "SELECT id FROM sandboxes WHERE ended_ns IS NULL")
