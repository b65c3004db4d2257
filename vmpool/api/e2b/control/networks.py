"""Networks: what E2B's clients say about traffic, as policies of ours, and back. Pure.

With them what is allowed goes before what is denied, and what is neither is allowed; with us it is
the other way round. So what is denied is cut down to what nothing allows.
"""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Network,
    collapse_addresses,
    summarize_address_range,
)
from typing import TYPE_CHECKING, Any, Final

from vmpool.egress import RULES_MOST, Destination, NetworkMode, NetworkPolicy
from vmpool.errors import InvalidRequestError
from vmpool.network import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmpool.api.e2b.control.bodies import NetworkRules

ALL: Final = IPv4Network("0.0.0.0/0")

_ABSENT: Final = {
    "rules": "rules that change requests",
    "mask_request_host": "masking the host of requests",
    "https_ports": "ports that speak TLS in the guest",
    "dns_servers": "DNS servers of one's own",
    "egress_proxy": "a proxy for what goes out",
}


def policy_of(
    rules: NetworkRules | None, internet: bool | None, *, usual: NetworkMode
) -> NetworkPolicy:
    """Return the policy that is meant.

    Args:
        internet: Whether anything is reached at all; older clients always say yes.
        usual: How a sandbox is connected of which nothing else is said.

    Raises:
        InvalidRequestError: `not_supported`; or `invalid_network`, `invalid_domain`.
    """
    allow = () if rules is None else tuple(map(_destination, rules.allow_out or ()))
    deny = () if rules is None else tuple(map(_range, rules.deny_out or ()))
    if rules is not None:
        _refuse_absent(rules)
    if internet is False:
        deny = (*deny, ALL)
    if ALL in deny:
        return _restricted(allow)
    if not allow and not deny:
        return NetworkPolicy(mode=usual)
    if any(rule.domain is not None for rule in allow):
        raise InvalidRequestError(
            "domains are allowed where all else is denied",
            code="invalid_network",
            remedy="add '0.0.0.0/0' to denyOut",
        )
    denied = _without(deny, [rule.cidr for rule in allow if rule.cidr is not None])
    denying = tuple(Destination(cidr=each) for each in denied)
    return NetworkPolicy(mode=NetworkMode.OPEN, allow=allow, deny=denying)


def _restricted(allow: tuple[Destination, ...]) -> NetworkPolicy:
    if any(rule.cidr == ALL for rule in allow):
        return NetworkPolicy(mode=NetworkMode.OPEN)
    if not allow:
        return NetworkPolicy(mode=NetworkMode.NONE)
    return NetworkPolicy(mode=NetworkMode.RESTRICTED, allow=allow)


def rules_of(policy: NetworkPolicy) -> tuple[list[str], list[str]]:
    """Return what a policy allows and denies, as these clients say it."""
    allow, deny = list(map(_said, policy.allow)), list(map(_said, policy.deny))
    return allow, deny if policy.mode is NetworkMode.OPEN else [str(ALL)]


def _without(denied: Iterable[IPv4Network], allowed: Iterable[IPv4Network]) -> list[IPv4Network]:
    """Return what is denied and nothing allows, in order, as ranges.

    Raises:
        InvalidRequestError: `invalid_network`; those are more than a policy has rules.
    """
    parts: list[IPv4Network] = []
    for first, last in _spans_without(denied, allowed):
        parts.extend(summarize_address_range(IPv4Address(first), IPv4Address(last)))
        if len(parts) > RULES_MOST:
            raise InvalidRequestError(
                f"what is denied and not allowed is more than {RULES_MOST} ranges",
                code="invalid_network",
                remedy="deny or allow fewer, larger ranges",
            )
    return parts


def _spans_without(
    denied: Iterable[IPv4Network], allowed: Iterable[IPv4Network]
) -> Iterator[tuple[int, int]]:
    """Yield the first and last address of each stretch that is denied and that nothing allows."""
    holes = list(map(_span, collapse_addresses(allowed)))  # in order, and none touches another
    for each in collapse_addresses(denied):
        at, end = _span(each)
        for first, last in holes:
            if last < at or first > end:
                continue
            if first > at:
                yield at, first - 1
            at = last + 1
        if at <= end:
            yield at, end


def _span(network: IPv4Network) -> tuple[int, int]:
    return int(network.network_address), int(network.broadcast_address)


def _destination(text: str) -> Destination:
    if _looks_numeric(text):
        return Destination(cidr=_range(text))
    return Destination(domain=names.pattern(text))


def _range(text: str) -> IPv4Network:
    try:
        return IPv4Network(text, strict=False)
    except ValueError as err:
        raise InvalidRequestError(
            f"{text!r} is neither an address nor a range of IPv4", code="invalid_network"
        ) from err


def _looks_numeric(text: str) -> bool:
    return not text.strip("0123456789./") or ":" in text


def _said(rule: Destination) -> str:
    return rule.domain if rule.domain is not None else str(rule.cidr)


def _refuse_absent(rules: NetworkRules) -> None:
    for member, what in _ABSENT.items():
        given: Any = getattr(rules, member)
        if given:
            raise unsupported(f"network: {what}")


def unsupported(what: str, *, remedy: str = "") -> InvalidRequestError:
    """Return, as an error to raise, that something of E2B's is not here."""
    return InvalidRequestError(f"{what} is not here", code="not_supported", remedy=remedy)
