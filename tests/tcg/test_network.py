"""What a guest reaches over its network, and what it does not, on a real machine.

The server lives in a namespace that the test makes, and so does the internet.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests import internet as nets
from tests.internet import Internet
from tests.serving import Api, Ground, Server, opened_ground
from vmpool.network import namespace

pytestmark = [
    pytest.mark.tcg,
    pytest.mark.shares_host,
    pytest.mark.skipif(os.geteuid() != 0, reason="networks are root's to make"),
    pytest.mark.asyncio(loop_scope="module"),
]

TRY = """
import socket, sys
kind, address, port, text = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4].encode()
one = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
one.settimeout(10)
try:
    one.connect((address, port))
    one.send(text)
    print("answer", one.recv(4096).decode())
except OSError as err:
    print(type(err).__name__, err)
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def internet() -> AsyncIterator[Internet]:
    async with nets.opened() as opened:
        yield opened


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with opened_ground("images", "snapshots") as opened:
        (opened.state / "vmpool.toml").write_text(f'[network]\ndns = ["{nets.WORLD}"]\n')
        yield opened


def start(ground: Ground, internet: Internet) -> Server:
    vmpool = os.fspath(Path(sys.executable).with_name("vmpool"))
    return Server(
        ground,
        "base",
        *("up", "--template", "base", "--ready", "2"),
        environment={"VMPOOL_CONFIG": os.fspath(ground.state / "vmpool.toml")},
        program=(*internet.program(), vmpool),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(ground: Ground, internet: Internet) -> AsyncIterator[Server]:
    running = start(ground, internet)
    try:
        await asyncio.to_thread(running.__enter__)
        yield running
    finally:
        await asyncio.to_thread(running.stop)


@pytest_asyncio.fixture(loop_scope="module")
async def api(server: Server, internet: Internet) -> AsyncIterator[Api]:
    async with internet.client(server) as connected:
        yield connected


async def attempt(
    api: Api, sandbox: str, address: str, text: str, *, kind: str = "tcp", port: int = nets.PORT
) -> str:
    """Have the guest send a text; return what came of it."""
    argv = ["python3", "-c", TRY, kind, address, str(port), text]
    done = await api.execute(sandbox, argv=argv, timeout=60)
    return str(done["stdout"]).strip() or str(done)


def restricted(**more: Any) -> dict[str, Any]:
    allow = [{"cidr": f"{nets.ALLOWED}/32", "protocol": "tcp", "ports": [nets.PORT]}]
    return {"mode": "restricted", "allow": allow, **more}


async def test_what_is_allowed_is_reached_from_the_hosts_address(
    api: Api, internet: Internet
) -> None:
    async with api.sandbox(network=restricted()) as sandbox:
        assert await attempt(api, sandbox, nets.ALLOWED, "hi") == f"answer {nets.HOME} hi"


async def test_what_is_not_allowed_is_refused_at_once(api: Api, internet: Internet) -> None:
    async with api.sandbox(network=restricted()) as sandbox:
        for address, port in ((nets.OTHER, nets.PORT), (nets.ALLOWED, nets.ALSO)):
            said = await attempt(api, sandbox, address, "denied", port=port)
            assert said.startswith("ConnectionRefusedError"), said
        said = await attempt(api, sandbox, nets.ALLOWED, "denied", kind="udp")
        assert "answer" not in said
        status, shown = await api.call("GET", f"/v1/sandboxes/{sandbox}/network")
        assert status == 200
        assert shown["traffic"]["denied_packets"] >= 3
    assert not any(text == "denied" for _, _, text in internet.heard)


async def test_an_open_network_ends_before_what_is_protected(api: Api, internet: Internet) -> None:
    async with api.sandbox(network={"mode": "open"}) as sandbox:
        assert (await attempt(api, sandbox, nets.OTHER, "open")).startswith("answer")
        for address in (nets.HOME, nets.PRIVATE, nets.METADATA, "169.254.77.1"):
            assert "answer" not in await attempt(api, sandbox, address, "denied")
    assert not any(text == "denied" for _, _, text in internet.heard)


async def test_a_sandbox_without_a_network_learns_so_at_once(api: Api) -> None:
    async with api.sandbox() as sandbox:
        assert "unreachable" in await attempt(api, sandbox, nets.ALLOWED, "denied")
    ran = await api.run(argv=["python3", "-c", TRY, "tcp", nets.ALLOWED, str(nets.PORT), "no"])
    assert "unreachable" in ran["stdout"]


async def test_a_run_has_the_network_that_it_asks_for(api: Api) -> None:
    argv = ["python3", "-c", TRY, "tcp", nets.ALLOWED, str(nets.PORT), "run"]
    ran = await api.run(argv=argv, network=restricted())
    assert ran["stdout"].strip() == f"answer {nets.HOME} run", ran


async def test_an_allowed_name_is_resolved_and_opened(api: Api, internet: Internet) -> None:
    internet.zone.add(f"files.example.com 60 IN A {nets.OTHER}")
    internet.zone.add(f"evil.example.net 60 IN A {nets.OTHER}")
    network = {"mode": "restricted", "allow": [{"domain": "*.example.com", "ports": [nets.PORT]}]}
    async with api.sandbox(network=network) as sandbox:
        assert "answer" not in await attempt(api, sandbox, nets.OTHER, "before")
        assert (await attempt(api, sandbox, "files.example.com", "name")).startswith("answer")
        assert "answer" not in await attempt(api, sandbox, "evil.example.net", "other")
    assert "evil.example.net" not in internet.zone.names


async def test_rules_are_replaced_while_a_connection_is_up(api: Api) -> None:
    hold = f"""
import socket, sys, time
one = socket.create_connection(("{nets.ALLOWED}", {nets.PORT}))
one.settimeout(10)
for number in range(200):
    try:
        one.send(b"%d" % number)
        one.recv(100)
        print("up", flush=True)
    except OSError as err:
        print("down", type(err).__name__, flush=True)
        break
    time.sleep(0.05)
"""
    async with api.sandbox(network=restricted()) as sandbox:
        body = {"argv": ["python3", "-c", hold]}
        async with api.session.post(f"/v1/sandboxes/{sandbox}/exec", json=body) as response:
            said = ""
            replaced = False
            async for line in response.content:
                said += line.decode()
                if not replaced and said.count("up") > 3:
                    replaced = True
                    denying = restricted(deny=[{"cidr": f"{nets.ALLOWED}/32"}])
                    status, shown = await api.call(
                        "PUT", f"/v1/sandboxes/{sandbox}/network", json=denying
                    )
                    assert status == 200, shown
                    assert len(shown["deny"]) == 1
        assert "down" in said
        assert "answer" not in await attempt(api, sandbox, nets.ALLOWED, "denied")
        path = f"/v1/sandboxes/{sandbox}/network"
        assert (await api.call("PUT", path, json={"mode": "none"}))[0] == 200
        assert "unreachable" in await attempt(api, sandbox, nets.ALLOWED, "denied")
        assert (await api.call("PUT", path, json=restricted()))[0] == 200
        assert (await attempt(api, sandbox, nets.ALLOWED, "again")).startswith("answer")


async def test_a_policy_stays_with_its_sandbox_and_its_children(api: Api) -> None:
    async with api.sandbox(network=restricted()) as sandbox:
        path = f"/v1/sandboxes/{sandbox}"
        status, forked = await api.call("POST", f"{path}/fork", json={"count": 1})
        assert status == 201, forked
        child = forked["children"][0]["sandbox"]["id"]
        status, kept = await api.call("POST", f"{path}/checkpoints", json={})
        assert status == 201, kept
        assert (await api.call("POST", f"{path}/pause", json={}))[0] == 200
        assert (await api.call("POST", f"{path}/resume", json={}))[0] == 200
        rolled = await api.call("POST", f"{path}/rollback", json={"checkpoint": kept["id"]})
        assert rolled[0] == 200, rolled
        made = {"checkpoint": kept["id"], "template": None}
        async with (
            api.sandbox(**made) as sprout,
            api.sandbox(**made, network={"mode": "none"}) as alone,
        ):
            for each in (sandbox, child, sprout):
                assert (await attempt(api, each, nets.ALLOWED, "kin")).startswith("answer")
                assert "answer" not in await attempt(api, each, nets.OTHER, "denied")
            assert "unreachable" in await attempt(api, alone, nets.ALLOWED, "denied")
        assert (await api.call("DELETE", f"/v1/sandboxes/{child}"))[0] == 204


@pytest.mark.timeout(900)  # three servers come up
async def test_what_a_killed_server_leaves_is_adopted_or_cleared(
    ground: Ground, server: Server, internet: Internet
) -> None:
    with ground.beside("n") as own:
        (own.state / "vmpool.toml").write_text(
            f'[network]\ndns = ["{nets.WORLD}"]\nrange = "10.214.0.0/16"\n'
        )
        one = start(own, internet)
        try:
            made = await leave_one(one, internet)
        finally:
            await asyncio.to_thread(one.stop, signal.SIGKILL)
        two = start(own, internet)
        try:
            await asyncio.to_thread(two.__enter__)
            async with internet.client(two) as api:
                assert (await attempt(api, made, nets.ALLOWED, "second")).startswith("answer")
                assert "answer" not in await attempt(api, made, nets.OTHER, "denied")
                assert (await api.call("DELETE", f"/v1/sandboxes/{made}"))[0] == 204
        finally:
            await asyncio.to_thread(two.stop)
        ours = hashlib.sha256(os.fsencode(own.state.resolve())).hexdigest()[:6]
    assert not list(namespace.named(f"vmpool-{ours}"))
    assert ours not in internet.run(internet.home, "nft", "list", "ruleset")
    assert ours not in internet.run(internet.home, "ip", "link")


async def leave_one(server: Server, internet: Internet) -> str:
    """Return a sandbox that has been connected and used."""
    await asyncio.to_thread(server.__enter__)
    async with internet.client(server) as api:
        body = {"template": "base", "network": restricted()}
        status, made = await api.call("POST", "/v1/sandboxes", json=body)
        assert status == 201, made
        assert (await attempt(api, made["id"], nets.ALLOWED, "first")).startswith("answer")
    return str(made["id"])
