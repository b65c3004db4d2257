"""Plans of policies: whole, as golden files, and held against a model of what is allowed."""

from __future__ import annotations

import os
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.egress_model import allowed
from vmpool import egress
from vmpool.egress import NetworkPolicy, Ports
from vmpool.errors import HostError, InvalidRequestError
from vmpool.network import addressing, plan
from vmpool.network.addressing import Range
from vmpool_agent import ethernet

GOLDEN = Path(__file__).parents[1] / "golden" / "network"
ADDRESS = IPv4Address("10.213.1.0")

POLICIES: dict[str, dict[str, Any]] = {
    "none": {"mode": "none"},
    "open": {"mode": "open"},
    "open-but": {
        "mode": "open",
        "allow": [{"cidr": "192.168.7.0/24", "protocol": "tcp"}],
        "deny": [{"cidr": "203.0.113.0/24", "ports": [25]}, {"domain": "*.example.org"}],
    },
    "restricted": {
        "mode": "restricted",
        "allow": [
            {"domain": "*.pypi.org", "ports": [443]},
            {"cidr": "203.0.113.0/24", "protocol": "tcp", "ports": [443, "8000-8100"]},
            {"cidr": "10.1.0.0/16"},
        ],
    },
}


def golden(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.nft"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", POLICIES)
def test_plans_are_as_recorded(name: str) -> None:
    golden(name, plan.slot(egress.policy(POLICIES[name]), address=ADDRESS, mark=7))


def test_a_replacement_is_as_recorded() -> None:
    before, after = egress.policy(POLICIES["restricted"]), egress.policy(POLICIES["open"])
    golden("replacement", plan.replacement(after, mark=8, before=before))


def test_the_hosts_own_rules_are_as_recorded() -> None:
    golden("router", plan.router())
    network = IPv4Network("10.213.0.0/16")
    golden("home", plan.home("vmpool_t", uplink="vmpool-t", within=network, closed=["eth0"]))


def test_guest_and_host_agree_on_the_link() -> None:
    assert str(addressing.GUEST) == ethernet.GUEST
    assert str(addressing.GATEWAY) == ethernet.GATEWAY


def test_a_rule_that_stays_keeps_the_addresses_that_its_names_led_to() -> None:
    one = egress.policy(POLICIES["restricted"])
    other = egress.policy({**POLICIES["restricted"], "deny": [{"cidr": "203.0.113.9/32"}]})
    (name,) = plan.domain_sets(one).values()
    assert plan.domain_sets(other) == {0: name}
    assert "delete set" not in plan.replacement(other, mark=8, before=one)
    assert f"delete set inet vmpool {name}" in plan.replacement(
        egress.UNCONNECTED, mark=8, before=one
    )


addresses = st.sampled_from(
    ["203.0.113.5", "203.0.113.9", "10.1.2.3", "8.8.8.8", "169.254.169.254"]
)
cidrs = st.sampled_from(
    ["203.0.113.0/24", "203.0.113.9/32", "10.1.0.0/16", "0.0.0.0/0", "169.254.169.254/32"]
)
rules = st.fixed_dictionaries(
    {"cidr": cidrs, "protocol": st.sampled_from(["tcp", "udp", "any"])},
    optional={"ports": st.lists(st.sampled_from([443, "400-500", 53]), min_size=1, max_size=2)},
)
policies = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["restricted", "open"]),
        "allow": st.lists(rules, max_size=3),
        "deny": st.lists(rules, max_size=2),
    }
).map(egress.policy)


def judged(script: str, address: IPv4Address, protocol: str, port: int) -> bool:
    """Follow the chain `sending` as the kernel does, for a packet that begins a connection."""
    lines = script.partition("chain sending {\n")[2].partition("  }\n")[0].splitlines()
    for line in map(str.strip, lines):
        if line.startswith("ct ") or " log " in line:
            continue
        match, _, verdict = line.rpartition("goto ")
        words = match.replace("{ ", "").replace(" }", "").replace(",", "").split()
        if matches(words, address, protocol, port):
            return verdict == "admit"
    raise AssertionError("the chain has no end")


def matches(words: list[str], address: IPv4Address, protocol: str, port: int) -> bool:
    rest = list(words)
    if rest[:2] == ["ip", "daddr"]:
        where, rest = rest[2], rest[3:]
        networks = plan.PROTECTED if where == "@protected" else (IPv4Network(where),)
        if not any(address in network for network in networks):
            return False
    if rest[:2] == ["meta", "l4proto"]:
        protocols = [word for word in rest[2:4] if word in {"tcp", "udp"}]
        if protocol not in protocols:
            return False
        rest = rest[2 + len(protocols) :]
    if rest:
        of, ports = rest[0], [Ports.parse(word) for word in rest[2:]]
        return of in {"th", protocol} and any(p.first <= port <= p.last for p in ports)
    return True


@given(
    policies,
    addresses.map(IPv4Address),
    st.sampled_from(["tcp", "udp"]),
    st.sampled_from([443, 53]),
)
def test_a_plan_admits_what_its_policy_allows(
    policy: NetworkPolicy, address: IPv4Address, protocol: str, port: int
) -> None:
    script = plan.slot(policy, address=ADDRESS, mark=7)
    assert judged(script, address, protocol, port) is allowed(policy, address, protocol, port)


@given(policies)
def test_a_policy_comes_back_from_the_journal_as_it_was(policy: NetworkPolicy) -> None:
    assert egress.parse(egress.text(policy)) == policy


@pytest.mark.parametrize(
    "members",
    [
        {"mode": "open", "allow": [{}]},
        {"mode": "open", "allow": [{"cidr": "10.0.0.0/8", "domain": "example.com"}]},
        {"mode": "open", "allow": [{"cidr": "10.0.0.1/8"}]},
        {"mode": "open", "allow": [{"cidr": "fd00::/8"}]},
        {"mode": "open", "deny": [{"cidr": "10.0.0.0/8", "ports": [0]}]},
        {"mode": "open", "deny": [{"cidr": "10.0.0.0/8", "ports": ["90-80"]}]},
        {"mode": "open", "deny": [{"cidr": "10.0.0.0/8", "ports": ["443; drop"]}]},
        {"mode": "open", "deny": [{"cidr": "10.0.0.0/8", "ports": ["99999999999"]}]},
        {"mode": "open", "deny": [{"cidr": "10.0.0.0/8"}] * 257},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(members: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        egress.policy(members)
    assert caught.value.error_code == "invalid_network"


@pytest.mark.parametrize("text", ["10.213.0.0/24", "10.213.0.1/16", "fd00::/8", "nothing"])
def test_a_range_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(HostError) as caught:
        Range.parse(text)
    assert caught.value.error_code == "invalid_settings"
