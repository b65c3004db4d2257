"""Questions: what becomes of a guest's DNS message, and of the answer that it gets from outside.

Decides alone: nothing is sent or opened here. The name that is asked for decides; where an allowed
name's aliases lead is the business of those who keep it. Of a message no byte goes on but a name
that the policy allows, in lower case, and the type: there is nothing else to hide data in.

What is done with each type of record is one table, `_TREATMENTS`. Types that are not in it are
refused: `ANY`, transfers of zones, and whatever comes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from dns.rdatatype import RdataType

from vmpool.network import names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dns.name import Name

    from vmpool.network.permission import Permission

QUESTION_BYTES: Final = 512
"""Of a message from a guest; a name and its type need less than 300."""
DATAGRAM_BYTES: Final = 1232
"""Of an answer by datagram, to those who can take more than 512 (DNS Flag Day 2020)."""
STREAM_BYTES: Final = 65_535
"""Of an answer by stream (RFC 1035, 4.2.2)."""
SHORTEST_TTL: Final = 60
"""Seconds: who resolves a name once and connects a little later still finds it open."""
LONGEST_TTL: Final = 3600
"""Seconds: so long at most an address stays open after its owner gave it up."""
ADDRESSES_MOST: Final = 32
"""Of one answer; others are as good as absent."""

_HEADER_BYTES: Final = 12


class Treatment(Enum):
    """What is done with questions of a type."""

    ADDRESSES = "asked outside; the addresses are opened"
    RECORDS = "asked outside; nothing is opened"
    EMPTY = "answered at once: there are none"


_TREATMENTS: Final = {
    dns.rdatatype.A: Treatment.ADDRESSES,
    dns.rdatatype.AAAA: Treatment.EMPTY,  # guests have no IPv6
    dns.rdatatype.HTTPS: Treatment.EMPTY,  # its hints are addresses that nobody opened
    dns.rdatatype.SVCB: Treatment.EMPTY,
    dns.rdatatype.CNAME: Treatment.RECORDS,
    dns.rdatatype.MX: Treatment.RECORDS,
    dns.rdatatype.NS: Treatment.RECORDS,
    dns.rdatatype.PTR: Treatment.RECORDS,
    dns.rdatatype.SOA: Treatment.RECORDS,
    dns.rdatatype.SRV: Treatment.RECORDS,
    dns.rdatatype.TXT: Treatment.RECORDS,
}


class Rule(StrEnum):
    """Why a name was not answered, or not wholly."""

    NAME = "dns-name"
    """The policy does not allow it."""
    RECORD_TYPE = "dns-type"
    """Of a type that nobody may ask for."""
    REBINDING = "dns-rebinding"
    """Its answer holds an address that a name may not lead to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A guest's question that may be asked outside.

    Attributes:
        name: As `names.canonical` returns it.
    """

    message: dns.message.Message
    name: str
    type: RdataType
    treatment: Treatment

    @property
    def datagram_bytes(self) -> int:
        """How much its asker takes in one datagram."""
        return _datagram_bytes(self.message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """What a guest is answered, and what that entails.

    Attributes:
        addresses: To be opened before the answer leaves, for `ttl` seconds.
        denials: What to tell of, as rule and the address that was kept back, if it was one.
    """

    message: dns.message.Message
    name: str = ""
    addresses: tuple[IPv4Address, ...] = ()
    ttl: int = 0
    denials: tuple[tuple[Rule, IPv4Address | None], ...] = ()

    @property
    def datagram_bytes(self) -> int:
        """How much its receiver takes in one datagram."""
        return _datagram_bytes(self.message)

    def encode(self, limit: int) -> bytes:
        """Return the answer's bytes, at most `limit`: without records when they do not fit."""
        wire = self.message.to_wire(max_size=limit, prefer_truncation=True)
        if not self._truncated(wire):
            return wire
        self.message.answer.clear()
        self.message.flags |= dns.flags.TC
        return self.message.to_wire(max_size=limit)

    def opened_by(self, wire: bytes) -> tuple[IPv4Address, ...]:
        """Return the addresses that an answer of `encode` tells the guest."""
        return () if self._truncated(wire) else self.addresses

    @staticmethod
    def _truncated(wire: bytes) -> bool:
        return bool(int.from_bytes(wire[2:4]) & dns.flags.TC)


def judge(wire: bytes, permission: Permission) -> Question | Conclusion | bytes | None:
    """Decide on a message of a guest, whatever its bytes are.

    Returns:
        A question to ask outside; or what is answered at once; or the bytes of a refusal to read
        it; or `None` for what deserves no answer.
    """
    flags = int.from_bytes(wire[2:4])
    if len(wire) < _HEADER_BYTES or flags & dns.flags.QR:
        return None
    if dns.opcode.from_flags(flags) != dns.opcode.QUERY:
        return _unread(wire, dns.rcode.NOTIMP)
    if len(wire) > QUESTION_BYTES:
        return _unread(wire, dns.rcode.FORMERR)
    try:
        message = dns.message.from_wire(wire, ignore_trailing=True)
    except dns.exception.DNSException:
        return _unread(wire, dns.rcode.FORMERR)
    if len(message.question) != 1 or message.question[0].rdclass != dns.rdataclass.IN:
        return _unread(wire, dns.rcode.FORMERR)
    return _decide(message, permission)


def conclude(
    question: Question, answer: dns.message.QueryMessage | None, permission: Permission
) -> Conclusion:
    """Decide what of an answer from outside the guest gets.

    Args:
        answer: `None` when nobody gave one.
        permission: The one that holds now, which need not be the one that the question was
            judged by.
    """
    decided = _decide(question.message, permission)
    if isinstance(decided, Conclusion):
        return decided
    if answer is None or answer.rcode() not in {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}:
        return failure(question)
    reply = _reply(question.message, answer.rcode())
    try:
        chain = answer.resolve_chaining()
    except dns.exception.DNSException:
        return failure(question)
    conclusion = Conclusion(message=reply, name=question.name)
    if chain.answer is None:
        return conclusion
    ttl = min(max(chain.minimum_ttl, SHORTEST_TTL), LONGEST_TTL)
    records = list(chain.answer)
    if question.treatment is Treatment.ADDRESSES:
        return _with_addresses(conclusion, records, ttl, permission)
    _add(reply, records, ttl)
    return conclusion


def failure(question: Question) -> Conclusion:
    """Return the word that there is no answer now."""
    reply = _reply(question.message, dns.rcode.SERVFAIL)
    return Conclusion(message=reply, name=question.name)


def _datagram_bytes(message: dns.message.Message) -> int:
    taken = message.request_payload if message.flags & dns.flags.QR else message.payload
    if message.edns < 0:
        return 512  # RFC 1035, 2.3.4
    return min(max(taken, 512), DATAGRAM_BYTES)


def _decide(message: dns.message.Message, permission: Permission) -> Question | Conclusion:
    asked = message.question[0]
    name = names.canonical(asked.name.labels[:-1])
    if name is None or not permission.allows_name(name):
        return _refusal(message, Rule.NAME, name or _shown(asked.name))
    treatment = _TREATMENTS.get(asked.rdtype)
    if treatment is None:
        return _refusal(message, Rule.RECORD_TYPE, name)
    if treatment is Treatment.EMPTY:
        return Conclusion(message=_reply(message, dns.rcode.NOERROR), name=name)
    return Question(message=message, name=name, type=asked.rdtype, treatment=treatment)


def _refusal(message: dns.message.Message, rule: Rule, name: str) -> Conclusion:
    """Return a refusal.

    As if there were no such name, not `REFUSED`: that has a guest ask again and call it temporary,
    so that a program that was denied something would wait for it. Nobody keeps the answer, for it
    holds no SOA record (RFC 2308, 5): a policy that is replaced holds at once.
    """
    reply = _reply(message, dns.rcode.NXDOMAIN)
    _explain(reply, "denied by the sandbox's network policy")
    return Conclusion(message=reply, name=name, denials=((rule, None),))


def _with_addresses(
    conclusion: Conclusion, records: list[dns.rdata.Rdata], ttl: int, permission: Permission
) -> Conclusion:
    kept, opened, denials = [], [], []
    for record, address in _addresses(records):
        if permission.allows_answer(address):
            kept.append(record)
            opened.append(address)
        else:
            denials.append((Rule.REBINDING, address))
    if denials:
        _explain(conclusion.message, "an address was kept back by the sandbox's network policy")
    if kept:
        _add(conclusion.message, kept, ttl)
    return replace(conclusion, addresses=tuple(opened), ttl=ttl, denials=tuple(denials))


def _addresses(records: list[dns.rdata.Rdata]) -> Iterator[tuple[dns.rdata.Rdata, IPv4Address]]:
    for record in records[:ADDRESSES_MOST]:
        yield record, IPv4Address(record.to_text())


def _add(reply: dns.message.Message, records: list[dns.rdata.Rdata], ttl: int) -> None:
    """Answer with records under the very name that was asked for, aliases left out."""
    asked = reply.question[0].name
    reply.answer.append(dns.rrset.from_rdata_list(asked, ttl, records))


def _reply(message: dns.message.Message, rcode: dns.rcode.Rcode) -> dns.message.Message:
    reply = dns.message.make_response(message, recursion_available=True, our_payload=DATAGRAM_BYTES)
    reply.set_rcode(rcode)
    return reply


def _explain(reply: dns.message.Message, text: str) -> None:
    """Say why, to those who can read it (RFC 8914)."""
    if reply.edns >= 0:
        blocked = dns.edns.EDEOption(dns.edns.EDECode.BLOCKED, text)
        reply.use_edns(0, 0, DATAGRAM_BYTES, reply.request_payload, [blocked])


def _unread(wire: bytes, rcode: dns.rcode.Rcode) -> bytes:
    """Return the header of an answer to what was not read on."""
    flags = int.from_bytes(wire[2:4])
    flags = dns.flags.QR | (flags & (0x7800 | dns.flags.RD)) | rcode  # with its opcode
    return wire[:2] + flags.to_bytes(2) + bytes(8)


def _shown(name: Name) -> str:
    """Return a name in ASCII, with escapes for what is not of it."""
    return name.to_text(omit_final_dot=True)
