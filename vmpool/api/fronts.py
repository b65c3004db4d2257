"""Fronts: the addresses under which a port of a sandbox is shown, and what that costs its headers.

Pure. A port has either a host name of its own, and with it an origin of its own, which browsers
keep apart from all others; or a path below the interface's own origin. Whoever serves there is
hostile: below the interface's origin nothing it says may reach beyond its path, so that address is
for programs, and browsers run nothing that comes from it. So is an origin that ports share, where
headers of requests say which is meant.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from vmpool.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Headers = Iterable[tuple[str, str]]

TRAFFIC_TOKEN_HEADERS: Final = ("vmpool-traffic-token", "e2b-traffic-access-token")
"""What opens ports and nothing else; the second is how E2B's clients say it."""

_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_NOT_ASKED: Final = _HOP_BY_HOP | {
    *TRAFFIC_TOKEN_HEADERS,
    "content-length",  # said anew, as the body goes out
    "expect",  # answered on this side
    "forwarded",
    "host",
    "x-forwarded-host",
    "x-forwarded-prefix",
    "x-forwarded-proto",
}
_CREDENTIALS: Final = frozenset({"authorization", "x-access-token", "x-api-key"})
"""Where callers put tokens of ours, and those of the guest's own programs."""

_NOT_ANSWERED: Final = _HOP_BY_HOP | {"alt-svc", "clear-site-data", "date", "server"}
_BEYOND_ITS_PATH: Final = frozenset(
    {
        "accept-ch",
        "nel",
        "origin-agent-cluster",
        "public-key-pins",
        "public-key-pins-report-only",
        "refresh",
        "report-to",
        "reporting-endpoints",
        "service-worker-allowed",
        "set-cookie",
        "set-cookie2",
        "strict-transport-security",
        "www-authenticate",
    }
)
"""What a browser takes as said by, or for, a whole origin."""

_CLIMBS: Final = re.compile(r"(?:^|[/\\]|%2f|%5c)(?:\.|%2e){1,2}(?:[/\\]|%2f|%5c|$)", re.IGNORECASE)
_PLAIN: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "\\")
_DEFAULT_PORTS: Final = frozenset({None, 80, 443})
_NAME: Final = re.compile(r"[a-z0-9._-]+")
_HOST: Final = re.compile(r"(?P<port>[1-9][0-9]{0,4})-(?P<id>[a-z0-9]{1,64})\.(?P<domain>.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """One way to one port.

    Attributes:
        authority: The `Host` that the caller asked for.
        prefix: The path below which the port is; empty where all paths are its own.
        is_shared: Whether its authority is others' as well, and headers of requests say whose.
    """

    sandbox_id: str
    port: int
    authority: str
    prefix: str
    is_shared: bool = False

    @property
    def has_paths(self) -> bool:
        """Whether all paths of its origin are its own."""
        return not self.prefix

    @property
    def has_origin(self) -> bool:
        """Whether it has an origin of its own."""
        return self.has_paths and not self.is_shared

    @property
    def guest_authority(self) -> str:
        """The `Host` that the guest sees."""
        return self.authority if self.has_paths else f"localhost:{self.port}"


def path_of(sandbox_id: str, port: int) -> str:
    """Return the path below which a port is found."""
    return f"/v1/sandboxes/{sandbox_id}/ports/{port}"


def host_of(sandbox_id: str, port: int, domain: str) -> str:
    """Return the host name, with the domain's port if it has one, of a port of a sandbox."""
    return f"{port}-{sandbox_id}.{domain}"


def by_host(authority: str, domain: str) -> Front | None:
    """Return the port that a `Host` names; `None` for one that names none.

    Args:
        authority: The header; a port in it does not matter.
        domain: Below which ports have names, perhaps with a port; empty for none.
    """
    if not domain:
        return None
    name = _without_port(authority.lower()).rstrip(".")
    found = _HOST.fullmatch(name)
    if found is None or found["domain"] != _without_port(domain.lower()):
        return None
    port = int(found["port"])
    if port >= 1 << 16:
        return None
    return Front(sandbox_id=found["id"], port=port, authority=authority, prefix="")


def request_headers(
    front: Front, headers: Headers, *, peer: str, scheme: str, is_ours: Callable[[str], bool]
) -> list[tuple[str, str]]:
    """Return what the guest is told of a request, beside the length of its body.

    Args:
        headers: As the caller sent them.
        peer: Address of the caller.
        scheme: How it came to us.
        is_ours: Whether a credential opens something of ours; a guest must never have it.
    """
    given = list(headers)
    named = {word.strip().lower() for one in _all(given, "connection") for word in one.split(",")}
    told = [("Host", front.guest_authority)]
    for name, value in given:
        lower = name.lower()
        if lower in _NOT_ASKED or lower in named or lower == "x-forwarded-for":
            continue
        if lower == "cookie" and not front.has_origin:
            continue
        if lower in _CREDENTIALS and any(map(is_ours, value.split())):
            continue
        told.append((name, value))
    chain = [*_all(given, "x-forwarded-for"), peer]
    told += [
        ("X-Forwarded-For", ", ".join(chain)),
        ("X-Forwarded-Proto", _scheme(given, scheme)),
        ("X-Forwarded-Host", front.authority),
    ]
    if front.prefix:
        told.append(("X-Forwarded-Prefix", front.prefix))
    return told


def response_headers(front: Front, target: str, headers: Headers) -> list[tuple[str, str]]:
    """Return what the caller is told of what a guest answered.

    Args:
        target: What the guest was asked for: path and query.
        headers: As the guest sent them, hostile.

    Raises:
        TaskError: `port_redirect_refused`; it leads out of its path, to the interface itself, or
            perhaps so, as some clients read it.
    """
    given = list(headers)
    named = {word.strip().lower() for one in _all(given, "connection") for word in one.split(",")}
    chunked = any(name.lower() == "transfer-encoding" for name, _ in given)
    told: list[tuple[str, str]] = []
    for name, value in given:
        lower = name.lower()
        if lower in _NOT_ANSWERED or lower in named or (chunked and lower == "content-length"):
            continue
        if not front.has_origin and lower in _BEYOND_ITS_PATH:
            continue
        if lower == "set-cookie":
            told.append((name, _cookie_of_its_host(value)))
        elif lower == "location" and not front.has_paths:
            told.append((name, _redirect(front, target, value)))
        else:
            told.append((name, value))
    if not front.has_origin:
        # Beside what the guest itself forbids: all policies hold. Without scripts and in an origin
        # of its own, a page is no way to what the browser keeps for ours.
        told.append(("Content-Security-Policy", "sandbox"))
    return told


def _redirect(front: Front, target: str, location: str) -> str:
    """Return where a redirection of a guest leads from outside.

    A client follows one to its own origin with the token that it sent, so it must not leave the
    port; to other origins it does not take the token along.
    """
    try:
        there = urljoin(f"http://{front.guest_authority}{target}", quote(location, safe=_PLAIN))
        parts = urlsplit(there)
        inside = _is_same(parts.hostname, parts.port, front.guest_authority)
        outside = _is_same(parts.hostname, parts.port, front.authority)
    except ValueError as err:
        raise _refused(location) from err
    if parts.scheme not in {"http", "https"}:
        return there
    if not _is_plain(parts.hostname or ""):
        raise _refused(location)
    if not (inside or outside):
        return there
    path = parts.path or "/"
    below = path.startswith(f"{front.prefix}/")
    if _CLIMBS.search(path) or not (inside or below):
        raise _refused(location)
    path = path if below else front.prefix + path
    return urlunsplit(("", "", path, parts.query, parts.fragment))


def _is_plain(hostname: str) -> bool:
    """Whether all clients find the same host there.

    Some take a URL without one for relative to where they are, look for it behind more slashes,
    decode it, or know more ways to write an address.
    """
    name = hostname.rstrip(".")
    if ":" not in name and not name.rpartition(".")[2][:1].isdigit():
        return _NAME.fullmatch(name) is not None
    try:
        return str(ipaddress.ip_address(name)) == name
    except ValueError:
        return False


def _is_same(hostname: str | None, port: int | None, authority: str) -> bool:
    own = urlsplit(f"//{authority}")
    if (hostname or "").rstrip(".").lower() != (own.hostname or "").rstrip(".").lower():
        return False
    return port == own.port or (port in _DEFAULT_PORTS and own.port in _DEFAULT_PORTS)


def _refused(location: str) -> TaskError:
    return TaskError(
        f"the server in the guest redirects out of its path, to {location[:200]!r}",
        code="port_redirect_refused",
        remedy="have it redirect within its path, or give ports names of their own: api.domain",
    )


def _cookie_of_its_host(cookie: str) -> str:
    """Return a cookie for the host that set it alone: others below the domain are other guests."""
    first, *attributes = cookie.split(";")
    kept = [one for one in attributes if one.partition("=")[0].strip().lower() != "domain"]
    return ";".join([first, *kept])


def _scheme(headers: Headers, scheme: str) -> str:
    """Return how the caller came, as whoever ends its encryption in front of us says."""
    said = [value.lower() for value in _all(headers, "x-forwarded-proto")]
    return said[0] if said in (["http"], ["https"]) else scheme


def _all(headers: Headers, wanted: str) -> list[str]:
    return [value for name, value in headers if name.lower() == wanted]


def _without_port(authority: str) -> str:
    name, colon, port = authority.rpartition(":")
    return name if colon and port.isdecimal() else authority
