"""The control plane as E2B's clients speak it, word for word, over guests that are processes."""

from __future__ import annotations

import asyncio
import time
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.api.conftest import IMAGE
from vmpool.api.e2b.control import bodies, networks
from vmpool.config import ApiSettings
from vmpool.egress import NetworkMode, NetworkPolicy
from vmpool.errors import InvalidRequestError

if TYPE_CHECKING:
    from tests.api.conftest import Serve, Server

RANGES = st.builds(
    lambda number, bits: f"{IPv4Network((0x0A000000 + number, bits), strict=False)}",
    st.integers(0, 15),
    st.integers(28, 32),
)


class Client:
    """Somebody who has nothing but an API key."""

    def __init__(self, server: Server, key: str) -> None:
        self.server = server
        self.headers = {"X-API-KEY": key}

    async def call(self, method: str, path: str, **request: Any) -> tuple[int, Any]:
        """Send a request without the native interface's token."""
        headers = {"Authorization": "", **self.headers, **request.pop("headers", {})}
        return await self.server.call(method, path, headers=headers, **request)

    async def create(self, version: str = "/v2", **body: Any) -> dict[str, Any]:
        """Make a sandbox."""
        body = {"templateID": IMAGE, "timeout": 300, **body}
        status, made = await self.call("POST", f"{version}/sandboxes", json=body)
        assert status == 201, made
        return dict(made)


@pytest.fixture
def client(server: Server) -> Client:
    """Whoever made the sandboxes of a test."""
    return Client(server, server.token)


@pytest.fixture
def stranger(server: Server) -> Client:
    """Another tenant."""
    return Client(server, server.other_token)


@pytest.mark.parametrize("version", ["", "/v2"])
async def test_a_sandbox_is_made_looked_at_and_killed(client: Client, version: str) -> None:
    made = await client.create(version, metadata={"a": "b"}, envVars={"A": "1"}, unheardOf=[1])
    assert made["templateID"] == IMAGE
    assert made["clientID"]
    assert made["sandboxID"].isalnum()
    assert made["envdAccessToken"]
    assert made["trafficAccessToken"] is None
    path = f"/sandboxes/{made['sandboxID']}"
    status, detail = await client.call("GET", path)
    assert (status, detail["state"], detail["metadata"]) == (200, "running", {"a": "b"})
    assert detail["envdAccessToken"] == made["envdAccessToken"]
    assert detail["lifecycle"] == {"autoResume": False, "onTimeout": "kill"}
    assert await client.call("DELETE", path) == (204, b"")
    for method in ("GET", "DELETE"):
        status, error = await client.call(method, path)
        assert (status, error["code"], error["error_code"]) == (404, 404, "sandbox_ended")


async def test_a_connect_only_lengthens_and_a_timeout_does_both(client: Client) -> None:
    made = await client.create(timeout=100)
    path = f"/sandboxes/{made['sandboxID']}"

    async def end() -> str:
        return str((await client.call("GET", path))[1]["endAt"])

    before = await end()
    status, again = await client.call("POST", f"/v2{path}/connect", json={"timeout": 10})
    assert (status, again) == (200, made)
    assert await end() == before
    assert (await client.call("POST", f"{path}/connect", json={"timeout": 900}))[0] == 200
    longer = await end()
    assert longer > before
    assert await client.call("POST", f"{path}/timeout", json={"timeout": 5}) == (204, b"")
    assert await end() < before


async def test_what_is_paused_comes_back_with_its_token(client: Client) -> None:
    made = await client.create()
    path = f"/sandboxes/{made['sandboxID']}"
    assert await client.call("POST", f"{path}/pause") == (204, b"")
    status, error = await client.call("POST", f"{path}/pause", json={})
    assert (status, error["code"]) == (409, 409)
    assert [one["state"] for one in (await client.call("GET", "/v2/sandboxes"))[1]] == ["paused"]
    assert (await client.call("GET", "/sandboxes"))[1] == []
    assert (await client.call("GET", "/v2/sandboxes?state=running"))[1] == []
    status, again = await client.call("POST", f"/v2{path}/connect", json={})
    assert (status, again) == (201, made)


async def test_a_list_is_filtered_ordered_and_in_pages(client: Client, stranger: Client) -> None:
    odd = {"a b": "c&d=é"}
    made = [await client.create(metadata=odd | {"n": str(n)}) for n in range(3)]
    ids = [one["sandboxID"] for one in reversed(made)]

    async def listed(query: str) -> list[str]:
        status, found = await client.call("GET", f"/v2/sandboxes?{query}")
        assert status == 200, found
        return [one["sandboxID"] for one in found]

    # As the clients do: every word escaped, then as a form, then as a query.
    form = urlencode({quote(name): quote(value) for name, value in odd.items()})
    assert await listed(urlencode({"metadata": form})) == ids
    assert await listed(urlencode({"metadata": form + "&n=1"})) == [ids[1]]
    assert await listed("metadata=n%3D9") == []
    assert await listed("order=asc") == ids[::-1]
    started = (await client.call("GET", f"/sandboxes/{ids[0]}"))[1]["startedAt"]
    assert await listed(urlencode({"startedAfter": started})) == [ids[0]]
    assert (await stranger.call("GET", "/v2/sandboxes")) == (200, [])

    for order in ("desc", "asc"):
        paged: list[str] = []
        url: str | None = f"{client.server.url}/v2/sandboxes?limit=1&order={order}"
        while url is not None:
            async with client.server.session.get(url, headers=client.headers) as response:
                paged += [one["sandboxID"] for one in await response.json()]
                token = response.headers.get("x-next-token")
            url = token and f"{url.partition('&nextToken')[0]}&nextToken={token}"
        assert paged == (ids if order == "desc" else ids[::-1])


@pytest.mark.parametrize(
    "query",
    [
        {"metadata": "&".join(f"a{number}=b" for number in range(65))},
        {"startedAfter": "yesterday"},
    ],
)
async def test_a_filter_that_is_none_is_refused_though_there_is_nothing_to_filter(
    client: Client, query: dict[str, str]
) -> None:
    for path in ("/sandboxes", "/v2/sandboxes"):
        status, error = await client.call("GET", f"{path}?{urlencode(query)}")
        assert (status, error["error_code"]) == (400, "invalid_request"), error


async def test_children_and_snapshots_go_on_where_a_sandbox_is(client: Client) -> None:
    made = await client.create(metadata={"of": "me"})
    path = f"/sandboxes/{made['sandboxID']}"
    status, children = await client.call("POST", f"{path}/fork", json={"count": 2})
    assert status == 201
    assert len({child["sandbox"]["envdAccessToken"] for child in children} | {""}) == 3
    status, kept = await client.call("POST", f"{path}/snapshots", json={"name": "mine"})
    assert (status, kept["names"]) == (201, ["mine"])
    assert await client.call("GET", "/snapshots?name=mine") == (200, [kept])
    child = children[0]["sandbox"]["sandboxID"]
    assert await client.call("GET", f"/snapshots?sandboxID={child}") == (200, [])
    status, tagged = await client.call("POST", f"{path}/snapshots", json={"name": "mine:v2"})
    assert (status, tagged["names"]) == (201, ["mine:v2"])
    assert await client.call("GET", "/snapshots?name=mine:v2") == (200, [tagged])
    assert await client.call("GET", "/snapshots?name=mine") == (200, [tagged, kept])
    status, moved = await client.call("POST", f"{path}/snapshots", json={"name": "me/mine:latest"})
    assert (status, moved["names"]) == (201, ["mine"])
    assert await client.call("GET", "/snapshots?name=mine") == (200, [moved, tagged])
    assert (await client.call("DELETE", f"/templates/{kept['snapshotID']}"))[0] == 204
    kept = moved
    assert (await client.call("POST", f"{path}/snapshots", json={"name": "a b:c"}))[0] == 400
    status, error = await client.call("POST", f"{path}/snapshots", json={"name": "me/step.0"})
    assert (status, error["error_code"]) == (400, "checkpoint_name_invalid")
    for reference in (kept["snapshotID"], "mine", "team/mine:default", "mine:v2"):
        again = await client.create(templateID=reference)
        assert again["templateID"] == IMAGE


async def test_ports_are_everybodys_unless_they_are_not(client: Client) -> None:
    private = await client.create(network={"allowPublicTraffic": False})
    token = private["trafficAccessToken"]
    assert token.startswith("vmt_")
    port = {"E2b-Sandbox-Id": private["sandboxID"], "E2b-Sandbox-Port": "8000"}
    status, refused = await client.call("GET", "/", headers=port)
    assert (status, refused["error_code"]) == (403, "port_private")
    opened = {**port, "e2b-traffic-access-token": token}
    closed = {
        "sandboxId": private["sandboxID"],
        "message": "The sandbox is running but port is not open",
        "port": 8000,
        "code": 502,
    }
    assert await client.call("GET", "/", headers=opened) == (502, closed)
    interpreter = {**port, "E2b-Sandbox-Port": "49999"}
    assert (await client.call("GET", "/contexts", headers=interpreter))[0] == 403
    own = {"e2b-traffic-access-token": token}
    assert (await client.call("GET", "/contexts", headers=interpreter | own))[0] == 200
    path = f"/sandboxes/{private['sandboxID']}/connect"
    assert (await client.call("POST", path))[1]["trafficAccessToken"] == token
    public = await client.create()
    port = {"E2b-Sandbox-Id": public["sandboxID"], "E2b-Sandbox-Port": "8000"}
    assert (await client.call("GET", "/", headers=port))[0] == 502


async def test_a_traffic_token_that_was_revoked_stays_so(client: Client) -> None:
    made = await client.create(network={"allowPublicTraffic": False})
    ports = f"/v1/sandboxes/{made['sandboxID']}/ports"
    port = {"E2b-Sandbox-Id": made["sandboxID"], "E2b-Sandbox-Port": "8000"}

    async def status(token: str) -> int:
        headers = port | {"e2b-traffic-access-token": token}
        return (await client.call("GET", "/", headers=headers))[0]

    async def connected() -> str:
        answers = await asyncio.gather(
            *(client.call("POST", f"/sandboxes/{made['sandboxID']}/connect") for _ in range(3))
        )
        (token,) = {answer["trafficAccessToken"] for _, answer in answers}
        return str(token)

    revoked = []
    token = made["trafficAccessToken"]
    for _ in range(2):
        assert await status(token) == 502
        (row,) = (await client.server.call("GET", ports))[1]["tokens"]
        assert (await client.server.call("DELETE", f"{ports}/tokens/{row['id']}"))[0] == 204
        assert await status(token) == 403
        revoked.append(token)
        token = await connected()
        assert [await status(each) for each in (*revoked, token)] == [403] * len(revoked) + [502]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"templateID": "nowhere"}, "template_not_found"),
        ({"timeout": "5"}, "invalid_request"),
        ({"timeout": 10**8}, "invalid_timeout"),
        ({"metadata": {"a": "x" * 1025}}, "invalid_request"),
        ({"metadata": {"x" * 129: "a"}}, "invalid_request"),
        ({"metadata": {str(number): "a" for number in range(65)}}, "invalid_request"),
        ({"envVars": {"A=B": "1"}}, "invalid_request"),
        ({"envVars": {"A": "x" * (1 << 17)}}, "arguments_too_large"),
        ({"autoPause": True, "autoPauseMemory": False}, "disk_missing"),
        ({"iam": {"tokens": {"a": {}}}}, "not_supported"),
        ({"volumeMounts": [{"name": "a", "path": "/a"}]}, "not_supported"),
        ({"network": {"dnsServers": ["8.8.8.8"]}}, "not_supported"),
        ({"network": {"denyOut": ["fe80::1"]}}, "invalid_network"),
        ({"network": {"allowOut": ["example.com"]}}, "invalid_network"),
    ],
)
async def test_what_is_not_here_is_refused_in_words(
    client: Client, body: dict[str, Any], said: str
) -> None:
    body = {"templateID": IMAGE, **body}
    status, error = await client.call("POST", "/v2/sandboxes", json=body)
    assert error["error_code"] == said, error
    assert error["code"] == status
    assert error["message"]
    assert client.server.host.sandboxes(owner=client.server.owner) == []


async def test_files_that_are_memory_are_not_kept_alone(client: Client) -> None:
    made = await client.create()
    path = f"/sandboxes/{made['sandboxID']}"
    status, error = await client.call("POST", f"{path}/pause", json={"memory": False})
    assert (status, error["error_code"]) == (400, "disk_missing")  # 409 is: paused already
    _, detail = await client.call("GET", path)
    assert (detail["state"], detail["pauseMode"]) == ("running", "full")


async def test_nobody_gets_at_what_is_anothers(client: Client, stranger: Client) -> None:
    made = await client.create()
    path = f"/sandboxes/{made['sandboxID']}"
    for method, below in (("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/connect")):
        assert (await stranger.call(method, path + below))[0] == 404
    for key in ("", "e2b_00", "x" * 600):
        status, error = await client.call("GET", path, headers={"X-API-KEY": key})
        assert (status, error["code"]) == (401, 401)
    assert (await client.call("GET", path))[0] == 200


async def test_a_sandbox_is_named_once(client: Client, serving: Serve) -> None:
    async with serving(api=ApiSettings(domain="sbx.test")) as server:
        there = Client(server, server.token)
        made = await there.create()
        assert made["domain"] == "sbx.test"
        id = made["sandboxID"]
        own = {"X-Access-Token": made["envdAccessToken"]}
        by_host = {"Host": f"49983-{id}.sbx.test"}
        by_header = {"E2b-Sandbox-Id": id, "E2b-Sandbox-Port": "49983"}
        rpc: dict[str, Any] = {"json": {}}

        async def ask(*headers: dict[str, str]) -> tuple[int, Any]:
            merged = {name: value for each in headers for name, value in each.items()}
            return await there.call("POST", "/process.Process/List", headers=merged, **rpc)

        for way in (by_host, by_header, by_host | by_header):
            assert await ask(way, own) == (200, {"processes": []})
            assert (await ask(way))[0] == 401
            assert (await ask(way, {"X-Access-Token": server.token}))[0] == 401
            assert (await there.call("POST", "/nowhere", headers=way | own))[0] == 404
        for wrong in ({"E2b-Sandbox-Port": "49999"}, {"E2b-Sandbox-Id": "another"}):
            status, error = await ask(by_host, by_header, own, wrong)
            assert (status, error["error_code"]) == (400, "sandbox_ambiguous")
        for wrong in ({"E2b-Sandbox-Port": "70000"}, {"E2b-Sandbox-Id": "../x"}):
            status, error = await ask(by_header, own, wrong)
            assert (status, error["error_code"]) == (400, "invalid_sandbox_header")
        await there.call("DELETE", f"/sandboxes/{id}")
        gone = {"sandboxId": id, "message": "The sandbox was not found", "code": 502}
        assert await ask(by_header, own) == (502, gone)


async def test_what_is_sent_twice_is_done_once(client: Client) -> None:
    key = {"Idempotency-Key": "abc"}
    body = {"templateID": IMAGE}
    first = await client.call("POST", "/v2/sandboxes", json=body, headers=key)
    assert await client.call("POST", "/v2/sandboxes", json=body, headers=key) == first
    assert len(client.server.host.sandboxes(owner=client.server.owner)) == 1


async def test_a_path_that_is_not_here_is_told_as_clients_read_it(client: Client) -> None:
    for method, path in (("GET", "/nowhere"), ("PATCH", "/sandboxes")):
        status, error = await client.call(method, path)
        assert error["code"] == status
        assert status in {404, 405}
    for path in ("/volumes", "/secrets/mine"):
        status, error = await client.call("GET", path)
        assert (status, error["error_code"]) == (400, "not_supported")


async def test_what_a_guest_uses_is_told_when_it_is_asked_for(client: Client) -> None:
    made = await client.create()
    path = f"/sandboxes/{made['sandboxID']}/metrics"
    status, metrics = await client.call("GET", path)
    assert status == 200
    (metric,) = metrics
    assert metric["memTotal"] >= metric["memUsed"] > 0
    assert metric["diskTotal"] >= metric["diskUsed"] > 0
    assert metric["cpuCount"] > 0
    now = metric["timestampUnix"]
    assert await client.call("GET", f"{path}?start={now + 1000}") == (200, [])
    assert await client.call("GET", f"{path}?end={now - 1000}") == (200, [])
    await client.call("POST", f"/sandboxes/{made['sandboxID']}/pause")
    assert metric in (await client.call("GET", path))[1]


class Inside:
    """Whoever talks to one sandbox."""

    def __init__(self, client: Client, made: dict[str, Any]) -> None:
        self.client = client
        self.headers = {
            "E2b-Sandbox-Id": made["sandboxID"],
            "E2b-Sandbox-Port": "49983",
            "X-Access-Token": made["envdAccessToken"],
        }

    async def processes(self) -> tuple[int, Any]:
        """Ask something of the guest."""
        return await self.client.call(
            "POST", "/process.Process/List", headers=self.headers, json={}
        )


async def test_what_is_paused_wakes_on_traffic_if_it_was_made_so(client: Client) -> None:
    options: dict[str, Any] = {"autoPause": True, "autoResume": {"enabled": True}}
    wakes, stays = await client.create(**options), await client.create(autoPause=True)
    for made in (wakes, stays):
        assert await client.call("POST", f"/sandboxes/{made['sandboxID']}/pause") == (204, b"")
    assert (await Inside(client, wakes).processes())[0] == 200
    status, gone = await Inside(client, stays).processes()
    assert (status, gone["message"]) == (502, "The sandbox was not found")
    assert "was not found" in gone["message"]
    states = {
        made["sandboxID"]: (await client.call("GET", f"/sandboxes/{made['sandboxID']}"))[1]
        for made in (wakes, stays)
    }
    assert [one["state"] for one in states.values()] == ["running", "paused"]
    assert states[wakes["sandboxID"]]["lifecycle"] == {"autoResume": True, "onTimeout": "pause"}


async def test_nobody_wakes_a_sandbox_without_its_token(client: Client) -> None:
    made = await client.create(autoPause=True, autoResume={"enabled": True})
    path = f"/sandboxes/{made['sandboxID']}"
    await client.call("POST", f"{path}/pause")
    other = await client.create()
    assert (await Inside(client, made | {"envdAccessToken": "x"}).processes())[0] == 401
    stolen = made | {"envdAccessToken": other["envdAccessToken"]}
    assert (await Inside(client, stolen).processes())[0] == 401
    assert (await client.call("GET", path))[1]["state"] == "paused"


async def test_who_only_asks_after_a_private_sandbox_does_not_wake_it(client: Client) -> None:
    options: dict[str, Any] = {"autoPause": True, "autoResume": {"enabled": True}}
    made = await client.create(network={"allowPublicTraffic": False}, **options)
    path = f"/sandboxes/{made['sandboxID']}"
    inside = Inside(client, made)
    stranger = {**inside.headers, "X-Access-Token": "", "e2b-traffic-access-token": "x"}
    for port, well in (("49983", 204), ("49999", 200)):
        stranger["E2b-Sandbox-Port"] = inside.headers["E2b-Sandbox-Port"] = port
        assert (await client.call("GET", "/health", headers=stranger))[0] == well
        await client.call("POST", f"{path}/pause")
        status, gone = await client.call("GET", "/health", headers=stranger)
        assert (status, gone["message"]) == (502, "The sandbox was not found")
        assert (await client.call("GET", path))[1]["state"] == "paused"
        assert (await client.call("GET", "/health", headers=inside.headers))[0] == well
        assert (await client.call("GET", path))[1]["state"] == "running"
    opens = {**stranger, "e2b-traffic-access-token": made["trafficAccessToken"]}
    await client.call("POST", f"{path}/pause")
    assert (await client.call("GET", "/health", headers=opens))[0] == 200


async def test_a_sandbox_whose_time_is_up_is_paused_or_killed_as_asked(client: Client) -> None:
    cases: tuple[tuple[dict[str, Any], str | None], ...] = (
        ({"autoPause": True}, "paused"),
        ({}, None),
    )
    for options, state in cases:
        made = await client.create(**options)
        path = f"/sandboxes/{made['sandboxID']}"
        assert await client.call("POST", f"{path}/timeout", json={"timeout": 0}) == (204, b"")
        async with asyncio.timeout(60):
            seen: Any = "running"
            while seen == "running":
                seen = (await client.call("GET", path))[1].get("state")
        assert seen == state


def test_rules_hold_in_their_order_and_not_in_ours() -> None:
    rules = bodies.NetworkRules
    policy_of, open_ = networks.policy_of, NetworkMode.OPEN

    def told(given: bodies.NetworkRules | None, internet: bool | None = None) -> NetworkPolicy:
        return policy_of(given, internet, usual=NetworkMode.NONE)

    assert told(None) == told(None, internet=True) == NetworkPolicy()
    assert told(None, internet=False).mode is NetworkMode.NONE
    assert told(rules(deny_out=["0.0.0.0/0"])).mode is NetworkMode.NONE
    named = told(rules(allow_out=["example.com", "1.1.1.1"], deny_out=["0.0.0.0/0"]))
    assert named.mode is NetworkMode.RESTRICTED
    assert networks.rules_of(named) == (["example.com", "1.1.1.1/32"], ["0.0.0.0/0"])
    cut = told(rules(allow_out=["8.8.8.8"], deny_out=["8.8.8.8/30", "9.0.0.0/8"]))
    assert cut.mode is open_
    assert networks.rules_of(cut)[1] == ["8.8.8.9/32", "8.8.8.10/31", "9.0.0.0/8"]
    assert told(rules(deny_out=["8.8.8.8"], allow_out=["8.0.0.0/8"])).deny == ()
    assert told(rules(allow_out=["0.0.0.0/0"], deny_out=["0.0.0.0/0"])).mode is open_


def test_rules_that_would_be_cut_to_shreds_are_refused_at_once() -> None:
    scattered = [f"{number // 4}.{number % 4 * 64}.0.1" for number in range(256)]
    shreds = bodies.NetworkRules(allow_out=scattered, deny_out=["0.0.0.0/1"] * 256)
    began = time.process_time()
    with pytest.raises(InvalidRequestError) as caught:
        networks.policy_of(shreds, None, usual=NetworkMode.NONE)
    assert caught.value.error_code == "invalid_network"
    assert "more than 256 ranges" in str(caught.value)
    assert time.process_time() - began < 5


@given(st.lists(RANGES, max_size=6), st.lists(RANGES, min_size=1, max_size=6))
def test_exactly_what_is_denied_and_not_allowed_is_denied(
    allowed: list[str], denied: list[str]
) -> None:
    rules = bodies.NetworkRules(allow_out=allowed, deny_out=denied)
    found = networks.policy_of(rules, None, usual=NetworkMode.NONE).deny

    def held(ranges: list[str]) -> set[int]:
        """Return which of the addresses of 10.0.0.0/28 lie in ranges."""
        return {
            number
            for number, address in enumerate(IPv4Network("10.0.0.0/28"))
            if any(address in IPv4Network(each) for each in ranges)
        }

    parts = [rule.cidr for rule in found if rule.cidr is not None]
    assert held([str(part) for part in parts]) == held(denied) - held(allowed)
    assert sum(part.num_addresses for part in parts) == len(held(denied) - held(allowed))


def test_what_is_denied_many_times_over_is_one_rule() -> None:
    rules = bodies.NetworkRules(deny_out=["9.0.0.0/8"] * 256 + ["8.0.0.0/8"])
    found = networks.policy_of(rules, None, usual=NetworkMode.NONE)
    assert networks.rules_of(found)[1] == ["8.0.0.0/7"]
