"""Names are permitted by the same policy that the firewall judges packets by."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from vmpool.egress import Destination, NetworkMode, NetworkPolicy, Ports, Protocol
from vmpool.errors import HostError
from vmpool.network import addressing, plan
from vmpool.network.permission import Permission

POLICY = NetworkPolicy(
    mode=NetworkMode.RESTRICTED,
    allow=(
        Destination(domain="*.pypi.org", ports=(Ports(443, 443),)),
        Destination(cidr=IPv4Network("10.1.0.0/16")),
        Destination(cidr=IPv4Network("0.0.0.0/0")),
    ),
    deny=(
        Destination(domain="bad.pypi.org"),
        Destination(cidr=IPv4Network("192.0.2.0/25")),
        Destination(cidr=IPv4Network("192.0.2.128/25"), protocol=Protocol.TCP),
        Destination(cidr=IPv4Network("192.0.3.0/24"), ports=(Ports(22, 22),)),
    ),
)
HOST = (IPv4Network("198.51.100.7/32"),)


def test_a_restricted_sandbox_may_ask_for_what_is_allowed_and_not_denied() -> None:
    permission = Permission.of(POLICY)
    assert permission.allows_name("files.pypi.org")
    assert not permission.allows_name("bad.pypi.org")
    assert not permission.allows_name("example.org")


def test_an_open_one_may_ask_for_all_that_is_not_denied() -> None:
    permission = Permission.of(NetworkPolicy(mode=NetworkMode.OPEN, deny=POLICY.deny))
    assert permission.allows_name("example.org")
    assert not permission.allows_name("bad.pypi.org")


def test_one_without_a_network_may_ask_for_nothing() -> None:
    assert not Permission.of(NetworkPolicy()).allows_name("example.org")


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("8.8.8.8", True),
        ("10.1.2.3", True),
        ("10.2.0.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("198.51.100.7", False),
        ("192.0.2.1", False),
        ("192.0.2.129", True),
        ("192.0.3.1", True),
    ],
    ids=[
        *("public", "named", "private", "loopback", "metadata", "multicast", "host"),
        *("denied", "denied for tcp", "denied for a port"),
    ],
)
def test_a_name_leads_where_the_policy_lets_it(address: str, allowed: bool) -> None:
    permission = Permission.of(POLICY, protected=HOST)
    assert permission.allows_answer(IPv4Address(address)) is allowed


def test_no_name_leads_to_what_the_operator_closed() -> None:
    everywhere = tuple(Destination(cidr=each) for each in plan.PROTECTED)
    policy = NetworkPolicy(mode=NetworkMode.OPEN, allow=everywhere)
    closed = addressing.closed(["169.254.0.0/16", "203.0.113.0/24"])
    permission = Permission.of(policy, closed=closed)
    assert not permission.allows_answer(IPv4Address("169.254.169.254"))
    assert not permission.allows_answer(IPv4Address("203.0.113.9"))
    assert permission.allows_answer(IPv4Address("10.1.2.3"))


def test_what_closes_nothing_is_no_setting() -> None:
    with pytest.raises(HostError) as caught:
        addressing.closed(["10.0.0.1/8"])
    assert caught.value.error_code == "invalid_settings"
