"""Plan: what the kernel is told of a policy, as text for nftables; a pure function.

One table in a sandbox's slot. Packets that its guest sends are judged one by one until one is
admitted; that marks the connection, and the packets of a marked one pass, both ways. The mark is
another one for each plan, so a plan that takes another's place judges every connection anew, at
once and in both directions. Everything of a plan is put in place in one transaction.

In the order of judgement: not from the guest's own address; closed by the operator; denied; allowed
within what is protected; protected; allowed; the mode.
"""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Network, collapse_addresses
from typing import TYPE_CHECKING

from vmpool.egress import NetworkMode, Protocol
from vmpool.model import GUEST_MAC
from vmpool.network.addressing import GATEWAY, GUEST

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from ipaddress import IPv4Address

    from vmpool.egress import Destination, NetworkPolicy

TABLE = "vmpool"
"""Of the family inet, in each slot's namespace."""

TAP = "tap"
"""The guest's link, in its slot."""

UP = "up"
"""The link to the router, in each slot."""

UPLINK = "uplink"
"""The router's link to the namespace that the server lives in."""

UPLINKS = "vmpool-"
"""What the other end of it begins with, in the server's own namespace; a tag follows."""

LOG_GROUP = 77
"""The netlink group that denials are told to; a prefix says why."""

PROTECTED = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.168.0.0/16",
        "224.0.0.0/3",
    )
)
"""What is reached only by a rule for addresses within it: "this" network, private and shared ones,
loopback, link-local with the metadata services of clouds, special purposes, multicast and beyond
(RFC 6890)."""

ADDRESSES_MOST = 4096
"""That one rule's domain leads to at one time."""

CONNECTIONS_MOST = 4096
"""Of one guest at one time. Its slot counts those that its policy admitted; the host, whose own
table has those of all guests, counts once more, by address: rules that are replaced begin anew."""

_EVENTS = "limit rate 50/second burst 100 packets log"


def slot(
    policy: NetworkPolicy,
    *,
    address: IPv4Address,
    mark: int,
    protected: Iterable[IPv4Network] = (),
    closed: Collection[IPv4Network] = (),
) -> str:
    """Return the script that puts a policy in place in a new slot.

    Args:
        address: What the slot is known by outside.
        mark: From 1 to 2**31 - 1.
        protected: Of this host, beyond `PROTECTED`.
        closed: What no policy opens.
    """
    # One block: a chain that is named twice in one transaction costs a grace period of the kernel.
    return _script(
        _table(
            [
                *_declared(domain_sets(policy).values()),
                *_skeleton(address, protected),
                *(
                    line
                    for name, rules in _judging(policy, mark, closed)
                    for line in _chain(name, rules)
                ),
            ]
        )
    )


def replacement(
    policy: NetworkPolicy,
    *,
    mark: int,
    before: NetworkPolicy,
    closed: Collection[IPv4Network] = (),
) -> str:
    """Return the script that puts a policy in the place of another.

    Args:
        mark: Another than that of the policy whose place it takes.
        closed: What no policy opens.
    """
    sets = set(domain_sets(policy).values())
    stale = set(domain_sets(before).values()) - sets
    judging = list(_judging(policy, mark, closed))
    return _script(
        _table(_declared(sets)),
        [f"flush chain inet {TABLE} {name}" for name, _ in judging],
        [f"add rule inet {TABLE} {name} {rule}" for name, rules in judging for rule in rules],
        [f"delete set inet {TABLE} {name}" for name in sorted(stale)],
    )


def router_end(number: int) -> str:
    """Return what the link to a slot is called in the router."""
    return f"s{number}"


def router() -> str:
    """Return the script that keeps slots from each other."""
    return _script(
        _table(
            [
                *_chain("input", ["type filter hook input priority filter; policy drop;"]),
                *_chain(
                    "forward",
                    [
                        "type filter hook forward priority filter; policy drop;",
                        f'iifname "s*" oifname "{UPLINK}" accept',
                        f'iifname "{UPLINK}" oifname "s*" accept',
                    ],
                ),
            ]
        )
    )


def home(table: str, *, uplink: str, within: IPv4Network, closed: Iterable[str]) -> str:
    """Return the script by which the host sends on what comes from slots, and takes none of it.

    Args:
        table: What the table is called; it takes the place of one that is there.
        uplink: The link to the router.
        closed: Links that the host did not forward from before; to slots alone they do.
    """
    names = ", ".join(f'"{name}"' for name in closed)
    elements = f" elements = {{ {names} }};" if names else ""
    rules = [
        f"set closed {{ type ifname;{elements} }}",
        f"set crowds {{ type ipv4_addr; size {within.num_addresses}; flags dynamic; }}",
        *_chain(
            "input",
            ["type filter hook input priority filter - 5;", f'iifname "{uplink}" drop'],
        ),
        *_chain(
            "forward",
            [
                "type filter hook forward priority filter - 5;",
                f'iifname "{uplink}" ip saddr != {within} drop',
                f'iifname "{uplink}" ct state new add @crowds'
                f" {{ ip saddr ct count over {CONNECTIONS_MOST} }} drop",
                f'iifname @closed oifname != "{UPLINKS}*" drop',
                f'oifname "{uplink}" ct state != {{ established, related }} drop',
            ],
        ),
        *_chain(
            "leave",
            [
                "type nat hook postrouting priority srcnat;",
                f'ip saddr {within} oifname != "{uplink}" masquerade',
            ],
        ),
    ]
    block = [f"table inet {table} {{", *(f"  {rule}" for rule in rules), "}"]
    return _script([f"table inet {table}", f"delete table inet {table}"], block)


def domain_sets(policy: NetworkPolicy) -> dict[int, str]:
    """Return the names of the sets of addresses that allowed domains lead to at present.

    Returns:
        Index in `policy.allow` → name; the same for the same rule in another policy, so that what
        is open stays open when policies change.
    """
    return {
        index: _set_name(rule) for index, rule in enumerate(policy.allow) if rule.domain is not None
    }


def opening(name: str, addresses: Iterable[IPv4Address], seconds: int) -> str:
    """Return the script that adds addresses which are not in a set, for so many seconds."""
    elements = ", ".join(f"{address} timeout {seconds}s" for address in addresses)
    return _script([f"add element inet {TABLE} {name} {{ {elements} }}"])


def renewal(name: str, addresses: Collection[IPv4Address], seconds: int) -> str:
    """Return the script that has addresses be in a set for so many seconds from now.

    An element that is there keeps its time unless it is made anew, which costs a grace period.
    """
    bare = ", ".join(map(str, addresses))
    return _script(
        [
            f"add element inet {TABLE} {name} {{ {bare} }}",
            f"delete element inet {TABLE} {name} {{ {bare} }}",
        ]
    ) + opening(name, addresses, seconds)


def _set_name(rule: Destination) -> str:
    what = f"{rule.domain} {rule.protocol} {' '.join(map(str, rule.ports))}"
    return "names_" + hashlib.sha256(what.encode()).hexdigest()[:16]


def _declared(sets: Iterable[str]) -> Iterator[str]:
    for name in sorted(set(sets)):
        yield f"set {name} {{ type ipv4_addr; flags timeout; size {ADDRESSES_MOST}; }}"


def _skeleton(address: IPv4Address, protected: Iterable[IPv4Network]) -> Iterator[str]:
    """Yield what is the same for every policy of a slot."""
    networks = ", ".join(map(str, [*PROTECTED, *_outside(protected)]))
    yield f"set protected {{ type ipv4_addr; flags interval; elements = {{ {networks} }}; }}"
    for name in ("sent", "received", "denied"):
        yield f"counter {name} {{ }}"
    yield from _chain("discard", ["counter name denied drop"])
    # An answer at once: what is not allowed is no secret, and nobody has to wait for a timeout.
    rejections = ["meta l4proto tcp reject with tcp reset", "reject with icmpx admin-prohibited"]
    yield from _chain("refuse", ["counter name denied", *rejections])
    for reason in ("protected", "unlisted", "gateway", "crowded"):
        yield from _chain(reason, [_log(reason), "goto refuse"])
    for reason in ("ipv6", "spoofed"):
        yield from _chain(reason, [_log(reason), "goto discard"])
    yield from _hooks(address)


def _hooks(address: IPv4Address) -> Iterator[str]:
    """Yield where packets come in; at first what is no packet of this guest's is dropped."""
    yield from _chain(
        "entry",
        [
            "type filter hook prerouting priority raw; policy accept;",
            f'iifname "{TAP}" meta nfproto != ipv4 goto ipv6',
            f'iifname "{TAP}" ether saddr != {GUEST_MAC} goto spoofed',
            f'iifname "{TAP}" ip saddr != {GUEST} goto spoofed',
            # Questions come by the hundred, and the kernel need not keep each in mind.
            f'iifname "{TAP}" ip daddr {GATEWAY} notrack',
        ],
    )
    yield from _chain(
        "answers",
        [
            "type filter hook output priority raw; policy accept;",
            f'oifname "{TAP}" ip saddr {GATEWAY} notrack',
        ],
    )
    yield from _chain(
        "input",
        [
            "type filter hook input priority filter; policy drop;",
            'iifname "lo" accept',
            f'iifname "{TAP}" ip daddr {GATEWAY} meta l4proto {{ tcp, udp }} th dport 53 accept',
            f'iifname "{TAP}" goto gateway',
        ],
    )
    yield from _chain(
        "forward",
        [
            "type filter hook forward priority filter; policy drop;",
            f'iifname "{TAP}" oifname "{UP}" goto sending',
            f'iifname "{UP}" oifname "{TAP}" goto receiving',
        ],
    )
    yield from _chain(
        "leave",
        [
            "type nat hook postrouting priority srcnat; policy accept;",
            f'oifname "{UP}" ip saddr {GUEST} snat ip to {address}',
        ],
    )


def _judging(
    policy: NetworkPolicy, mark: int, closed: Collection[IPv4Network]
) -> Iterator[tuple[str, list[str]]]:
    """Yield the chains that a policy makes, with their rules."""
    yield (
        "admit",
        [
            f"ct state new ct count over {CONNECTIONS_MOST} goto crowded",
            f"ct mark set {mark}",
            "counter name sent accept",
        ],
    )
    yield "sending", list(_sending(policy, mark, closed))
    yield "receiving", list(_receiving(policy, mark, closed))


def _sending(policy: NetworkPolicy, mark: int, closed: Collection[IPv4Network]) -> Iterator[str]:
    """Yield the rules for what the guest sends."""
    yield f"ct mark {mark} counter name sent accept"
    yield "ct state invalid goto discard"
    yield from _closed(closed, "ip daddr", "protected")
    for index, match in _denied(policy, "ip daddr", "dport"):
        yield f"{match} {_log(f'deny {index}')}"
        yield f"{match} goto refuse"
    yield from _admitted(policy, "ip daddr", "dport", protected="protected", unlisted="unlisted")


def _receiving(policy: NetworkPolicy, mark: int, closed: Collection[IPv4Network]) -> Iterator[str]:
    """Yield the rules for what comes back; nothing comes that the guest did not begin.

    Of a connection that another policy admitted, it is judged by where the guest had sent to.
    """
    yield "ct direction original goto discard"
    yield f"ct mark {mark} ct state established,related counter name received accept"
    yield "ct state != established goto discard"
    yield from _closed(closed, "ip saddr", "discard")
    for _, match in _denied(policy, "ip saddr", "sport"):
        yield f"{match} goto discard"
    yield from _admitted(policy, "ip saddr", "sport", protected="discard", unlisted="discard")


def _closed(networks: Collection[IPv4Network], address: str, chain: str) -> Iterator[str]:
    if networks:
        apart = ", ".join(map(str, collapse_addresses(networks)))  # overlaps are no set
        yield f"{address} {{ {apart} }} goto {chain}"


def _denied(policy: NetworkPolicy, address: str, port: str) -> Iterator[tuple[int, str]]:
    for index, rule in enumerate(policy.deny):
        if rule.cidr is not None:  # of a denied name nobody learns the addresses
            for match in _matches(rule, address, port):
                yield index, match


def _admitted(
    policy: NetworkPolicy, address: str, port: str, *, protected: str, unlisted: str
) -> Iterator[str]:
    """Yield the rules for what is not denied.

    Args:
        protected: Chain for what is, and not allowed; `unlisted` for what no rule is about.
    """
    within = [rule for rule in policy.allow if _within_protected(rule)]
    beyond = [rule for rule in policy.allow if not _within_protected(rule)]
    for rule in within:
        yield from (f"{match} goto admit" for match in _matches(rule, address, port))
    yield f"{address} @protected goto {protected}"
    if policy.mode is NetworkMode.OPEN:
        yield "goto admit"
        return
    for rule in beyond:
        yield from (f"{match} goto admit" for match in _matches(rule, address, port))
    yield f"goto {unlisted}"


def _matches(rule: Destination, address: str, port: str) -> Iterator[str]:
    """Yield what matches a rule, as the beginning of an nftables rule."""
    where = f"{address} " + (f"@{_set_name(rule)}" if rule.cidr is None else str(rule.cidr))
    ports = ", ".join(map(str, rule.ports))
    match rule.protocol:
        case Protocol.ANY if not ports:
            yield where
        case Protocol.ANY:
            yield f"{where} meta l4proto {{ tcp, udp }} th {port} {{ {ports} }}"
        case Protocol.TCP | Protocol.UDP if not ports:
            yield f"{where} meta l4proto {rule.protocol}"
        case Protocol.TCP | Protocol.UDP:
            yield f"{where} {rule.protocol} {port} {{ {ports} }}"


def _within_protected(rule: Destination) -> bool:
    return rule.cidr is not None and any(rule.cidr.subnet_of(each) for each in PROTECTED)


def _outside(networks: Iterable[IPv4Network]) -> Iterator[IPv4Network]:
    """Yield the networks that `PROTECTED` does not hold already; overlaps are no set."""
    for network in networks:
        if not any(network.overlaps(each) for each in PROTECTED):
            yield network


def _log(reason: str) -> str:
    return f'{_EVENTS} prefix "{reason}" group {LOG_GROUP}'


def _chain(name: str, rules: Iterable[str]) -> list[str]:
    return [f"chain {name} {{", *(f"  {rule}" for rule in rules), "}"]


def _table(lines: Iterable[str]) -> list[str]:
    return [f"table inet {TABLE} {{", *(f"  {line}" for line in lines), "}"]


def _script(*parts: list[str]) -> str:
    return "".join(f"{line}\n" for part in parts for line in part)
