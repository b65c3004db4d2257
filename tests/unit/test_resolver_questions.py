"""No byte of a guest's leaves for a name that is denied, and no answer leads where it may not."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.network import questions
from vmpool.network.permission import Permission
from vmpool.network.questions import Conclusion, Question, Rule, Treatment

RESTRICTED = Permission(
    names=("pypi.org", "*.pypi.org"),
    denied_names=("bad.pypi.org",),
    networks=(IPv4Network("10.1.0.0/16"),),
    denied_networks=(IPv4Network("192.0.2.128/25"),),
    protected=(IPv4Network("10.0.0.0/8"), IPv4Network("127.0.0.0/8")),
)
OPEN = Permission(names=None, protected=RESTRICTED.protected)

REFUSED_TYPES = ["ANY", "AXFR", "IXFR", "NULL", "DNSKEY", "HINFO", "TYPE65280", "OPT"]


def query(name: str, kind: str = "A", *, edns: bool = True) -> dns.message.Message:
    return dns.message.make_query(name, kind, use_edns=0 if edns else -1, payload=4096)


def judged(
    message: dns.message.Message, permission: Permission = RESTRICTED
) -> Question | Conclusion | bytes | None:
    return questions.judge(message.to_wire(), permission)


def asked(name: str, kind: str = "A", permission: Permission = RESTRICTED) -> Question:
    question = judged(query(name, kind), permission)
    assert isinstance(question, Question)
    return question


def refused(message: dns.message.Message, permission: Permission = RESTRICTED) -> Conclusion:
    conclusion = judged(message, permission)
    assert isinstance(conclusion, Conclusion)
    assert not conclusion.addresses
    return conclusion


def answer_of(question: Question, *lines: str) -> dns.message.QueryMessage:
    answer = dns.message.make_response(question.message, recursion_available=True)
    assert isinstance(answer, dns.message.QueryMessage)
    for line in lines:
        owner, ttl, _, kind, data = line.split(maxsplit=4)
        answer.answer.append(dns.rrset.from_text(owner + ".", int(ttl), "IN", kind, data))
    read = dns.message.from_wire(answer.to_wire(max_size=questions.STREAM_BYTES))
    assert isinstance(read, dns.message.QueryMessage)
    return read


def concluded(
    question: Question, *lines: str, permission: Permission = RESTRICTED
) -> tuple[Conclusion, dns.message.Message]:
    conclusion = questions.conclude(question, answer_of(question, *lines), permission)
    return conclusion, dns.message.from_wire(conclusion.encode(questions.STREAM_BYTES))


def addresses_in(message: dns.message.Message) -> list[str]:
    return [record.to_text() for rrset in message.answer for record in rrset]


@pytest.mark.parametrize(
    "name", ["pypi.org", "files.pypi.org", "FiLeS.PyPi.oRg", "a.b.c.pypi.org."]
)
def test_an_allowed_name_is_asked_for_in_lower_case(name: str) -> None:
    question = asked(name)
    assert question.name == name.lower().rstrip(".")
    assert question.treatment is Treatment.ADDRESSES


@pytest.mark.parametrize(
    "name",
    [
        *("example.org", "pypi.org.evil.example", "xpypi.org", "org", ".", "bad.pypi.org"),
        *("BAD.pypi.org", r"a\000b.pypi.org", r"a\.pypi.org", r"\255.pypi.org", "-a.pypi.org"),
        ".".join(["x" * 60] * 3) + ".evil.example",
    ],
)
@pytest.mark.parametrize("kind", ["A", "AAAA", "TXT", "ANY", "HTTPS"])
def test_a_denied_name_does_not_exist_and_is_told_of(name: str, kind: str) -> None:
    conclusion = refused(query(name, kind))
    reply = dns.message.from_wire(conclusion.encode(512))
    assert reply.rcode() == dns.rcode.NXDOMAIN
    assert not reply.answer
    assert conclusion.denials == ((Rule.NAME, None),)
    assert conclusion.name
    assert conclusion.name.isascii()


def test_a_refusal_says_why_to_those_who_can_read_it() -> None:
    reply = refused(query("example.org")).message
    assert [option.otype for option in reply.options] == [dns.edns.OptionType.EDE]
    assert not refused(query("example.org", edns=False)).message.options


def test_a_refusal_is_kept_by_nobody() -> None:
    assert not refused(query("example.org")).message.authority


@pytest.mark.parametrize("kind", ["AAAA", "HTTPS", "SVCB"])
def test_what_would_lead_past_the_firewall_is_empty_and_not_asked_for(kind: str) -> None:
    conclusion = refused(query("pypi.org", kind))
    assert conclusion.message.rcode() == dns.rcode.NOERROR
    assert not conclusion.message.answer
    assert not conclusion.denials


@pytest.mark.parametrize("permission", [RESTRICTED, OPEN], ids=["restricted", "open"])
@pytest.mark.parametrize("kind", REFUSED_TYPES)
def test_types_that_nobody_needs_are_refused(kind: str, permission: Permission) -> None:
    message = query("pypi.org")
    message.question[0].rdtype = dns.rdatatype.from_text(kind)
    conclusion = refused(message, permission)
    assert conclusion.denials == ((Rule.RECORD_TYPE, None),)


@pytest.mark.parametrize("kind", ["CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT"])
def test_records_of_allowed_names_are_passed_on_and_open_nothing(kind: str) -> None:
    data = {
        "MX": "10 mail.evil.example.",
        "SOA": "ns.evil.example. root.evil.example. 1 2 3 4 5",
        "SRV": "1 1 443 evil.example.",
        "TXT": '"v=spf1 ip4:8.8.8.8"',
    }.get(kind, "evil.example.")
    conclusion, reply = concluded(asked("pypi.org", kind), f"pypi.org 300 IN {kind} {data}")
    assert addresses_in(reply) == [data]
    assert not conclusion.addresses


def test_the_addresses_that_are_told_are_the_ones_to_open() -> None:
    conclusion, reply = concluded(
        asked("pypi.org"), "pypi.org 300 IN A 192.0.2.1", "pypi.org 300 IN A 192.0.2.2"
    )
    assert sorted(addresses_in(reply)) == ["192.0.2.1", "192.0.2.2"]
    assert conclusion.addresses == (IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"))
    assert conclusion.ttl == reply.answer[0].ttl == 300


@pytest.mark.parametrize(
    ("ttl", "kept"), [(0, 60), (59, 60), (61, 61), (3601, 3600), (2**31 - 1, 3600)]
)
def test_a_lifetime_is_neither_too_short_to_connect_nor_too_long_to_be_true(
    ttl: int, kept: int
) -> None:
    conclusion, reply = concluded(asked("pypi.org"), f"pypi.org {ttl} IN A 192.0.2.1")
    assert conclusion.ttl == reply.answer[0].ttl == kept


def test_an_alias_is_answered_under_the_name_that_was_asked_for() -> None:
    conclusion, reply = concluded(
        asked("Files.pypi.org"),
        "files.pypi.org 900 IN CNAME edge.cdn.example.",
        "edge.cdn.example 90 IN A 192.0.2.7",
        "unrelated.example 90 IN A 192.0.2.8",
    )
    assert reply.answer[0].name.to_text() == "Files.pypi.org."
    assert addresses_in(reply) == ["192.0.2.7"]
    assert conclusion.ttl == 90


def test_records_of_other_names_are_not_told() -> None:
    conclusion, reply = concluded(asked("pypi.org"), "evil.example 90 IN A 192.0.2.8")
    assert not reply.answer
    assert not conclusion.addresses


def test_a_ring_of_aliases_is_no_answer() -> None:
    _, reply = concluded(
        asked("a.pypi.org"),
        "a.pypi.org 9 IN CNAME b.pypi.org.",
        "b.pypi.org 9 IN CNAME a.pypi.org.",
    )
    assert reply.rcode() == dns.rcode.SERVFAIL


@pytest.mark.parametrize("permission", [RESTRICTED, OPEN], ids=["restricted", "open"])
@pytest.mark.parametrize("address", ["10.2.0.1", "127.0.0.1"])
def test_a_name_does_not_lead_inside(address: str, permission: Permission) -> None:
    conclusion, reply = concluded(
        asked("pypi.org"),
        f"pypi.org 300 IN A {address}",
        "pypi.org 300 IN A 192.0.2.1",
        permission=permission,
    )
    assert addresses_in(reply) == ["192.0.2.1"]
    assert conclusion.addresses == (IPv4Address("192.0.2.1"),)
    assert conclusion.denials == ((Rule.REBINDING, IPv4Address(address)),)


def test_a_name_that_leads_inside_alone_has_no_address() -> None:
    conclusion, reply = concluded(asked("pypi.org"), "pypi.org 300 IN A 10.2.0.1")
    assert reply.rcode() == dns.rcode.NOERROR
    assert not reply.answer
    assert not conclusion.addresses


def test_a_name_leads_inside_where_the_policy_names_the_network() -> None:
    conclusion, _ = concluded(asked("pypi.org"), "pypi.org 300 IN A 10.1.2.3")
    assert conclusion.addresses == (IPv4Address("10.1.2.3"),)


def test_a_name_does_not_lead_to_a_denied_network() -> None:
    conclusion, _ = concluded(asked("pypi.org"), "pypi.org 300 IN A 192.0.2.200")
    assert not conclusion.addresses


def test_a_name_that_was_denied_meanwhile_is_not_answered() -> None:
    conclusion, reply = concluded(
        asked("pypi.org"), "pypi.org 300 IN A 192.0.2.1", permission=Permission(names=())
    )
    assert reply.rcode() == dns.rcode.NXDOMAIN
    assert not conclusion.addresses


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP])
def test_who_gets_no_answer_says_so(rcode: dns.rcode.Rcode) -> None:
    question = asked("pypi.org")
    answer = answer_of(question)
    answer.set_rcode(rcode)
    for each in (answer, None):
        conclusion = questions.conclude(question, each, RESTRICTED)
        assert conclusion.message.rcode() == dns.rcode.SERVFAIL


def test_what_does_not_fit_is_not_told_and_not_opened() -> None:
    lines = [f"pypi.org 300 IN A 192.0.2.{number}" for number in range(1, 33)]
    question = asked("pypi.org")
    conclusion = questions.conclude(question, answer_of(question, *lines), RESTRICTED)
    wire = conclusion.encode(512)
    reply = dns.message.from_wire(wire)
    assert reply.flags & dns.flags.TC
    assert not reply.answer
    assert conclusion.opened_by(wire) == ()
    whole = questions.conclude(question, answer_of(question, *lines), RESTRICTED)
    wire = whole.encode(questions.STREAM_BYTES)
    assert len(whole.opened_by(wire)) == 32


def test_one_answer_leads_to_so_many_addresses_and_no_more() -> None:
    lines = [f"pypi.org 300 IN A 198.51.{number // 250}.{number % 250}" for number in range(500)]
    conclusion, reply = concluded(asked("pypi.org"), *lines)
    assert len(conclusion.addresses) == len(addresses_in(reply)) == questions.ADDRESSES_MOST


@pytest.mark.parametrize(("payload", "taken"), [(0, 512), (512, 512), (1000, 1000), (65_535, 1232)])
def test_a_datagram_is_as_long_as_its_asker_takes(payload: int, taken: int) -> None:
    message = dns.message.make_query("pypi.org", "A", use_edns=0, payload=payload)
    question = judged(message)
    assert isinstance(question, Question)
    assert question.datagram_bytes == questions.failure(question).datagram_bytes == taken


def test_an_asker_without_extensions_takes_what_they_took_in_1987() -> None:
    question = judged(query("pypi.org", edns=False))
    assert isinstance(question, Question)
    assert question.datagram_bytes == questions.failure(question).datagram_bytes == 512


def test_an_answer_is_not_taken_for_a_question() -> None:
    assert judged(dns.message.make_response(query("pypi.org"))) is None


@pytest.mark.parametrize(
    ("wire", "rcode"),
    [
        (b"\x12\x34\x01\x00\x00\x01" + bytes(6), dns.rcode.FORMERR),
        (b"\x12\x34\x01\x00" + bytes(8), dns.rcode.FORMERR),
        (b"\x12\x34\x01\x00\x00\x02" + bytes(6) + b"\0\0\1\0\1" * 2, dns.rcode.FORMERR),
        (b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\0\0\1\0\3", dns.rcode.FORMERR),
        (b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\xc0\x0c\0\1\0\1", dns.rcode.FORMERR),
        (b"\x12\x34\x29\x00\x00\x01" + bytes(6) + b"\0\0\1\0\1", dns.rcode.NOTIMP),
        (b"\x12\x34\x01\x00\x00\x01" + bytes(501), dns.rcode.FORMERR),
    ],
    ids=["nothing", "no question", "two", "chaos", "ring", "update", "long"],
)
def test_what_cannot_be_read_gets_a_header_back(wire: bytes, rcode: dns.rcode.Rcode) -> None:
    reply = questions.judge(wire, OPEN)
    assert isinstance(reply, bytes)
    assert reply[:2] == b"\x12\x34"
    read = dns.message.from_wire(reply)
    assert read.rcode() == rcode
    assert read.flags & dns.flags.QR


@given(st.binary(max_size=600))
def test_any_bytes_are_judged(wire: bytes) -> None:
    check_judged(wire)


@given(st.integers(0, 60), st.binary(min_size=1, max_size=8), st.sampled_from(["A", "TXT", "SOA"]))
def test_any_damage_to_a_message_is_judged(at: int, damage: bytes, kind: str) -> None:
    wire = query("files.pypi.org", kind).to_wire()
    check_judged(wire[:at] + damage + wire[at + len(damage) :])


def check_judged(wire: bytes) -> None:
    found = questions.judge(wire, OPEN)
    if isinstance(found, Question):
        assert found.name == found.name.lower()
        found = questions.failure(found)
    if isinstance(found, Conclusion):
        assert found.name.isascii()
        found = found.encode(found.datagram_bytes)
    assert found is None or (len(found) <= questions.DATAGRAM_BYTES and found[:2] == wire[:2])
