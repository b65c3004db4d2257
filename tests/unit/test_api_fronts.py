"""What a hostile server in a guest may say under our addresses, and what it hears."""

from __future__ import annotations

import itertools
import re
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.api.fronts import (
    Front,
    by_host,
    host_of,
    path_of,
    request_headers,
    response_headers,
)
from vmpool.errors import TaskError

API = "pool.example:8700"
PREFIX = path_of("abc", 8000)
BY_PATH = Front(sandbox_id="abc", port=8000, authority=API, prefix=PREFIX)
BY_HOST = Front(sandbox_id="abc", port=8000, authority="8000-abc.box.example", prefix="")
BY_HEADER = Front(sandbox_id="abc", port=8000, authority=API, prefix="", is_shared=True)
OURS = "e2b_" + "0" * 40


def asked(front: Front, *headers: tuple[str, str]) -> dict[str, str]:
    told = request_headers(
        front, headers, peer="192.0.2.1", scheme="http", is_ours=lambda token: token == OURS
    )
    assert len({name.lower() for name, _ in told}) == len(told)
    return dict(told)


def answered(front: Front, *headers: tuple[str, str], target: str = "/a/b") -> dict[str, str]:
    return dict(response_headers(front, target, headers))


def redirected(location: str, *, target: str = "/a/b?c") -> str:
    return answered(BY_PATH, ("location", location), target=target)["location"]


def test_a_guest_sees_where_it_is_asked_and_by_whom() -> None:
    forwarded = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "http"}
    assert asked(BY_PATH, ("Host", API), ("Accept", "*/*")) == {
        "Host": "localhost:8000",
        "Accept": "*/*",
        **forwarded,
        "X-Forwarded-Host": API,
        "X-Forwarded-Prefix": PREFIX,
    }
    assert asked(BY_HOST) == {
        "Host": "8000-abc.box.example",
        **forwarded,
        "X-Forwarded-Host": "8000-abc.box.example",
    }


def test_what_is_said_of_the_way_here_goes_on_and_what_is_made_up_does_not() -> None:
    told = asked(
        BY_PATH,
        ("x-forwarded-for", "203.0.113.9"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "elsewhere"),
        ("x-forwarded-prefix", "/elsewhere"),
        ("forwarded", "for=elsewhere"),
    )
    assert told["X-Forwarded-For"] == "203.0.113.9, 192.0.2.1"
    assert told["X-Forwarded-Proto"] == "https"
    assert "elsewhere" not in str(told)


@pytest.mark.parametrize("front", [BY_PATH, BY_HOST, BY_HEADER])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Authorization", f"Bearer {OURS}"),
        ("authorization", OURS),
        ("Authorization", f"Bearer {OURS}\u00a0"),
        ("Authorization", f"Bearer {OURS} \u00a0"),
        ("X-API-Key", OURS),
        ("X-Access-Token", OURS),
        ("vmpool-traffic-token", "any"),
        ("E2b-Traffic-Access-Token", "any"),
        ("Connection", "keep-alive"),
        ("Transfer-Encoding", "chunked"),
        ("Content-Length", "1"),
        ("Proxy-Authorization", "any"),
        ("TE", "trailers"),
        ("Upgrade", "h2c"),
        ("Expect", "100-continue"),
    ],
)
def test_what_is_ours_never_reaches_a_guest(front: Front, name: str, value: str) -> None:
    told = asked(front, (name, value))
    assert name.lower() not in {given.lower() for given in told}
    assert OURS not in str(told)


def test_what_is_the_guests_own_does() -> None:
    assert asked(BY_PATH, ("Authorization", "Bearer its-own"))["Authorization"] == "Bearer its-own"
    assert asked(BY_HOST, ("Cookie", "a=b"))["Cookie"] == "a=b"
    assert "Cookie" not in asked(BY_PATH, ("Cookie", "a=b"))


def test_ports_that_headers_tell_apart_have_no_cookies_in_common() -> None:
    assert "Cookie" not in asked(BY_HEADER, ("Cookie", "of=another"))
    whole = [("Set-Cookie", "a=b"), ("Strict-Transport-Security", "max-age=1"), ("X-Own", "1")]
    told = answered(BY_HEADER, *whole, ("Location", "/c"))
    assert told == {"X-Own": "1", "Location": "/c", "Content-Security-Policy": "sandbox"}
    assert asked(BY_HEADER)["Host"] == API


def test_what_connection_names_goes_no_further() -> None:
    assert "X-Hop" not in asked(BY_PATH, ("Connection", "close, X-Hop"), ("X-Hop", "1"))
    assert "x-hop" not in answered(BY_PATH, ("connection", "x-hop"), ("x-hop", "1"))


def test_a_page_below_our_origin_is_sandboxed_and_leaves_nothing_in_it() -> None:
    told = response_headers(
        BY_PATH,
        "/",
        [
            ("content-security-policy", "default-src *"),
            ("set-cookie", "a=b"),
            ("service-worker-allowed", "/"),
            ("clear-site-data", '"*"'),
            ("alt-svc", 'h2="evil.example:443"'),
            ("refresh", "0;url=/v1/run"),
            ("strict-transport-security", "max-age=1"),
            ("x-own", "1"),
        ],
    )
    assert told == [
        ("content-security-policy", "default-src *"),
        ("x-own", "1"),
        ("Content-Security-Policy", "sandbox"),
    ]


@pytest.mark.parametrize(
    ("cookie", "kept"),
    [
        ("a=b; Path=/; Domain=box.example; Secure", "a=b; Path=/; Secure"),
        ("a=domain; DOMAIN = .box.example", "a=domain"),
        ("a=b;domain", "a=b"),
        ("domain=b; HttpOnly", "domain=b; HttpOnly"),
    ],
)
def test_a_cookie_is_its_hosts_alone(cookie: str, kept: str) -> None:
    assert answered(BY_HOST, ("set-cookie", cookie)) == {"set-cookie": kept}


@pytest.mark.parametrize(
    ("location", "leads_to"),
    [
        ("/login", f"{PREFIX}/login"),
        ("c?d#e", f"{PREFIX}/a/c?d#e"),
        ("../../../v1/run", f"{PREFIX}/v1/run"),
        ("?x=1", f"{PREFIX}/a/b?x=1"),
        ("", f"{PREFIX}/a/b?c"),
        ("http://localhost:8000/x", f"{PREFIX}/x"),
        ("http://LOCALHOST:8000", f"{PREFIX}/"),
        (f"{PREFIX}/x", f"{PREFIX}/x"),
        (f"http://{API}{PREFIX}/x", f"{PREFIX}/x"),
        ("https://elsewhere.example/v1/run", "https://elsewhere.example/v1/run"),
        ("//elsewhere.example/v1/run", "http://elsewhere.example/v1/run"),
        ("/ü b\\c", f"{PREFIX}/%C3%BC%20b%5Cc"),
        ("/\\elsewhere.example", f"{PREFIX}/%5Celsewhere.example"),
        ("app-scheme:done", "app-scheme:done"),
        ("https://192.0.2.1/x", "https://192.0.2.1/x"),
        ("https://[2001:db8::1]/x", "https://[2001:db8::1]/x"),
    ],
)
def test_a_redirection_stays_below_the_port_or_leaves_for_good(
    location: str, leads_to: str
) -> None:
    assert redirected(location) == leads_to


@pytest.mark.parametrize(
    "location",
    [
        f"http://{API}/v1/run",
        f"http://user@{API}/v1/run",
        f"//{API.upper()}/v1/run",
        "http://pool.example.:8700/v1/run",
        f"{PREFIX}/%2e%2e/x",
        "/.%2E/x",
        "/x/%2e",
        "..\\",
        "x%5C..%2fy",
        f"http://{API}{PREFIX}/%2E%2e/8001/",
        f"http://{API}{PREFIX}x",
        "http://localhost:8000:1/",
        "http://[/",
        # Whose host a client finds elsewhere than where it stands, or writes otherwise.
        "https:/v1/run",
        "https:v1/run",
        f"https:///{API}/v1/run",
        "http://p%6Fol.example:8700/v1/run",
        "http://\uff50ool.example:8700/v1/run",
        "http://0x7f.1:8700/v1/run",
        "http://127.1:8700/v1/run",
        "http://[0::1]:8700/v1/run",
    ],
)
def test_a_redirection_to_the_interface_is_refused(location: str) -> None:
    with pytest.raises(TaskError) as caught:
        redirected(location)
    assert caught.value.error_code == "port_redirect_refused"


PIECES = st.lists(
    st.sampled_from(
        [
            *("/", "//", "..", ".", "%2e", "%2E", "%2f", "\\", "v1", "run", "?", "#", "@", ":"),
            *("http:", "https:", API, "pool.example", PREFIX, "localhost:8000", "\t", "%", "é"),
        ]
    ),
    max_size=8,
).map("".join)


@given(location=PIECES, target=PIECES)
def test_no_redirection_reaches_the_interface(location: str, target: str) -> None:
    try:
        leads_to = redirected(location, target="/" + target)
    except TaskError:
        return
    # As a client resolves it; one that takes escaped dots and slashes for real ones, too.
    escaped = re.sub("%(2e|2f|5c)", lambda code: unquote(code[0]), leads_to, flags=re.IGNORECASE)
    seen_as = (leads_to, escaped.replace("\\", "/"))
    for scheme, seen in itertools.product(("http", "https"), seen_as):
        try:
            there = urlsplit(urljoin(f"{scheme}://{API}{PREFIX}/a/b", seen))
            own = there.hostname == "pool.example" and there.port == 8700
        except ValueError:
            continue
        assert not own or there.path.startswith(f"{PREFIX}/")


@pytest.mark.parametrize(
    ("authority", "found"),
    [
        ("8000-abc.box.example", (8000, "abc")),
        ("8000-ABC.Box.Example.:443", (8000, "abc")),
        ("65535-abc.box.example", (65535, "abc")),
        ("65536-abc.box.example", None),
        ("0-abc.box.example", None),
        ("abc.box.example", None),
        ("8000-abc.evil.example", None),
        ("8000-abc.box.example.evil.example", None),
        ("x.8000-abc.box.example", None),
        ("box.example", None),
        ("", None),
    ],
)
def test_a_host_name_names_a_port(authority: str, found: tuple[int, str] | None) -> None:
    for domain in ("box.example", "box.example:8443"):
        front = by_host(authority, domain)
        assert (None if front is None else (front.port, front.sandbox_id)) == found
    assert by_host(authority, "") is None


def test_a_name_leads_back_to_its_port() -> None:
    front = by_host(host_of("abc", 8000, "box.example:8443"), "box.example:8443")
    assert front is not None
    assert (front.sandbox_id, front.port, front.has_origin) == ("abc", 8000, True)
