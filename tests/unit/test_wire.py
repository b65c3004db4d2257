"""The codec of the agent protocol, from both ends."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool_agent import wire
from vmpool_agent.message import decode, encode
from vmpool_agent.wire import Connection, PeerError, Role

NONCE = bytes(range(16))
KEY = bytes(range(32))
HEADER = struct.Struct("!BBHI")
SYNC, SYNCED, OPEN, PART, MESSAGE, DATA, FINISH, CLOSE, CREDIT = range(1, 10)


def frame(kind: int, channel: int, payload: bytes = b"", stream: int = 0) -> bytes:
    return HEADER.pack(kind, stream, len(payload), channel) + payload


def anybody(_key: bytes) -> bool:
    return True


def synchronised() -> tuple[Connection, Connection]:
    host, agent = Connection(Role.HOST), Connection(Role.AGENT, anybody)
    host.synchronise(NONCE, KEY)
    agent.receive(host.take())
    host.receive(agent.take())
    assert host.synchronised
    assert agent.synchronised
    return host, agent


def with_channel() -> tuple[Connection, Connection, int]:
    host, agent = synchronised()
    channel = host.open()
    assert agent.receive(host.take()) == [wire.Opened(channel)]
    return host, agent, channel


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
payloads = st.binary(min_size=1, max_size=300)


@given(
    value=st.dictionaries(st.text(), json_values, max_size=4),
    pieces=st.lists(st.tuples(st.integers(0, 255), payloads), max_size=8),
    cuts=st.lists(st.integers(0, 10_000), max_size=20),
)
def test_what_is_sent_arrives_however_the_stream_is_cut(
    value: dict[str, object], pieces: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    host, agent, channel = with_channel()
    assert not host.send_message(channel, encode(value))
    for stream, payload in pieces:
        host.send_data(channel, stream, payload)
    host.send_finish(channel)
    events = [event for chunk in chunks(host.take(), cuts) for event in agent.receive(chunk)]
    message, *data, finished = events
    assert isinstance(message, wire.Message)
    assert decode(message.document) == value
    assert data == [wire.Data(channel, stream, payload) for stream, payload in pieces]
    assert finished == wire.Finished(channel)


@given(name=st.binary(max_size=50))
def test_a_name_that_is_not_utf8_survives_a_message(name: bytes) -> None:
    text = name.decode("utf-8", "surrogateescape")
    value = decode(bytes(encode({"path": text})))
    assert value["path"].encode("utf-8", "surrogateescape") == name


@given(garbage=st.binary(max_size=2000), cuts=st.lists(st.integers(0, 3000), max_size=5))
def test_garbage_is_discarded_until_the_host_synchronises(garbage: bytes, cuts: list[int]) -> None:
    agent, host = Connection(Role.AGENT, anybody), Connection(Role.HOST)
    host.synchronise(NONCE, KEY)
    stream = garbage + wire.FLUSH + host.take()
    events = [event for chunk in chunks(stream, cuts) for event in agent.receive(chunk)]
    assert events == [wire.Synchronised(wire.VERSIONS[1])]
    host.receive(garbage + agent.take())
    assert host.synchronised


@given(sent=st.integers(1, wire.MAX_FRAME - 1), size=st.integers(1, wire.MAX_PAYLOAD))
def test_a_host_that_died_inside_a_frame_is_followed_by_one_that_is_understood(
    sent: int, size: int
) -> None:
    host, agent, channel = with_channel()
    host.send_data(channel, 0, b"\xff" * size)
    agent.receive(host.take()[:sent])
    agent.outgoing += b"what the agent had still to say"
    successor = Connection(Role.HOST)
    successor.synchronise(bytes(16), KEY)
    try:
        events = agent.receive(wire.FLUSH + successor.take())
    except PeerError:  # a header cut short and filled with zeros means nothing
        events = agent.receive(b"")
    assert events[-1] == wire.Synchronised(wire.VERSIONS[1])
    assert not agent.outgoing.startswith(b"what")
    successor.receive(agent.take())
    assert successor.open() == 1


def test_an_answer_with_another_nonce_is_no_answer() -> None:
    host, agent = Connection(Role.HOST), Connection(Role.AGENT, anybody)
    host.synchronise(NONCE, KEY)
    agent.receive(host.take())
    stale = agent.take()
    host.synchronise(bytes(16), KEY)
    assert host.receive(stale) == []
    assert not host.synchronised


def test_a_guest_that_never_answers_is_given_up_after_a_bounded_flood() -> None:
    host = Connection(Role.HOST)
    host.synchronise(NONCE, KEY)
    host.receive(bytes([SYNCED]) * wire.MAX_DISCARD)
    with pytest.raises(PeerError, match="no answer to SYNC"):
        host.receive(bytes([SYNCED]) * 65536)


def test_versions_without_overlap_are_an_error() -> None:
    host, agent = Connection(Role.HOST), Connection(Role.AGENT, anybody)
    host.synchronise(NONCE, KEY)
    agent.receive(host.take())
    answer = bytearray(agent.take())
    answer[-4:] = struct.pack("!HH", 3, 4)
    with pytest.raises(PeerError, match="versions 3 to 4"):
        host.receive(bytes(answer))


@given(data=st.binary(max_size=4000), cuts=st.lists(st.integers(0, 4000), max_size=5))
def test_hostile_bytes_end_in_events_or_a_peer_error_on_either_end(
    data: bytes, cuts: list[int]
) -> None:
    for end in with_channel()[:2]:
        try:
            for chunk in chunks(data, cuts):
                end.receive(chunk)
        except PeerError:
            continue


@given(
    frames=st.lists(
        st.tuples(
            st.integers(0, 12), st.integers(0, 3), payloads | st.just(b""), st.integers(0, 3)
        ),
        max_size=30,
    )
)
def test_hostile_frames_never_grow_what_is_kept_beyond_a_window(
    frames: list[tuple[int, int, bytes, int]],
) -> None:
    for end in with_channel()[:2]:
        kept = 0
        try:
            for kind, channel, payload, stream in frames:
                for event in end.receive(frame(kind, channel, payload, stream)):
                    kept += len(event.payload) if isinstance(event, wire.Data) else 0
        except PeerError:
            pass
        assert kept <= 3 * wire.WINDOW


def test_a_window_overrun_is_a_peer_error() -> None:
    host, _, channel = with_channel()
    block = frame(DATA, channel, bytes(wire.MAX_PAYLOAD))
    for _ in range(wire.WINDOW // (wire.MAX_PAYLOAD + wire.FRAME_COST)):
        host.receive(block)
    with pytest.raises(PeerError, match="overrun"):
        host.receive(block)


def test_a_flood_of_tiny_frames_is_bounded_by_their_cost() -> None:
    host, _, channel = with_channel()
    tiny = frame(DATA, channel, b"x")
    most = wire.WINDOW // (1 + wire.FRAME_COST)
    assert len(host.receive(tiny * most)) == most
    with pytest.raises(PeerError, match="overrun"):
        host.receive(tiny)


def test_credit_lets_the_peer_send_on() -> None:
    host, agent, channel = with_channel()
    total = 0
    while total < 4 * wire.WINDOW:
        room = agent.capacity(channel)
        assert room, "the window closed for good"
        agent.send_data(channel, 1, bytes(room))
        total += room
        for event in host.receive(agent.take()):
            assert isinstance(event, wire.Data)
            host.consumed(event)
        agent.receive(host.take())


def test_without_consumption_the_window_closes() -> None:
    host, agent, channel = with_channel()
    sent = 0
    while room := agent.capacity(channel):
        agent.send_data(channel, 1, bytes(room))
        sent += room
    assert sent < wire.WINDOW
    host.receive(agent.take())
    assert not host.outgoing
    with pytest.raises(wire.MisuseError):
        agent.send_data(channel, 1, b"x")


def test_a_message_of_many_windows_arrives_while_none_waits() -> None:
    host, agent, channel = with_channel()
    rest = encode({"text": "x" * (3 * wire.WINDOW)})
    arrived: list[wire.Event] = []
    while rest:
        rest = agent.send_message(channel, rest)
        arrived += host.receive(agent.take())
        agent.receive(host.take())
    assert isinstance(arrived[-1], wire.Message)
    assert len(decode(arrived[-1].document)["text"]) == 3 * wire.WINDOW


def test_a_second_large_message_waits_until_the_first_is_taken() -> None:
    host, agent, channel = with_channel()
    first = encode({"text": "x"})
    assert not agent.send_message(channel, first)
    (message,) = host.receive(agent.take())
    assert isinstance(message, wire.Message)
    rest = encode({"text": "y" * (3 * wire.WINDOW)})
    for _ in range(5):
        rest = agent.send_message(channel, rest)
        host.receive(agent.take())
        agent.receive(host.take())
    assert len(rest) > 2 * wire.WINDOW
    host.consumed(message)
    agent.receive(host.take())
    assert agent.capacity(channel)


def test_a_message_over_the_limit_is_refused_by_both_ends() -> None:
    host, _, channel = with_channel()
    with pytest.raises(wire.MisuseError):
        encode({"text": "x" * wire.MAX_MESSAGE})
    part = frame(PART, channel, bytes(wire.MAX_PAYLOAD))
    for _ in range(wire.MAX_ANSWER // wire.MAX_PAYLOAD):
        host.receive(part)
        host.take()
    with pytest.raises(PeerError, match="message over"):
        host.receive(part)


@pytest.mark.parametrize(
    "document", [b"[]", b"{", b"\xff", b"[" * 100_000, b"1", b'{"a":' + b"9" * 5000 + b"}"]
)
def test_a_malformed_message_is_a_peer_error(document: bytes) -> None:
    with pytest.raises(PeerError):
        decode(document)


@pytest.mark.parametrize(
    "bad",
    [
        frame(DATA, 7, b"x"),
        frame(OPEN, 2),
        frame(SYNC, 0, bytes(28)),
        frame(DATA, 1),
        frame(CREDIT, 1, bytes(4)),
        frame(CREDIT, 1, b"\x7f\xff\xff\xff"),
        frame(CREDIT, 1, b"\0"),
        frame(FINISH, 1, b"x"),
        frame(FINISH, 1) + frame(DATA, 1, b"x"),
        frame(FINISH, 1) * 2,
        frame(CLOSE, 1) * 2,
        frame(MESSAGE, 1, b"{}", stream=1),
        frame(10, 1),
        HEADER.pack(DATA, 0, wire.MAX_PAYLOAD + 1, 1),
    ],
)
def test_a_guest_that_breaks_a_rule_is_a_peer_error(bad: bytes) -> None:
    host, _, _ = with_channel()
    with pytest.raises(PeerError):
        host.receive(bad)


def test_a_host_may_open_no_more_channels_than_agreed() -> None:
    host, agent = synchronised()
    for _ in range(wire.MAX_CHANNELS):
        host.open()
    with pytest.raises(wire.MisuseError):
        host.open()
    agent.receive(host.take())
    with pytest.raises(PeerError, match="more than"):
        agent.receive(frame(OPEN, wire.MAX_CHANNELS + 1))


def test_closing_from_both_ends_at_once_leaves_both_ends_agreed() -> None:
    host, agent, channel = with_channel()
    agent.send_data(channel, 1, b"late")
    agent.send_close(channel)
    host.send_data(channel, 0, b"late too")
    host.send_close(channel)
    assert agent.receive(host.take()) == []
    assert host.receive(agent.take()) == [wire.Closed(channel)]
    second = host.open()
    assert agent.receive(host.take()) == [wire.Opened(second)]


def test_the_host_hears_that_its_close_was_obeyed() -> None:
    host, agent, channel = with_channel()
    host.send_close(channel)
    assert agent.receive(host.take()) == [wire.Closed(channel)]
    assert host.receive(agent.take()) == [wire.Closed(channel)]


def test_credit_for_what_was_not_sent_is_a_peer_error() -> None:
    host, _, channel = with_channel()
    with pytest.raises(PeerError, match="CREDIT"):
        host.receive(frame(CREDIT, channel, struct.pack("!I", wire.MIN_CREDIT)))


def test_credit_in_crumbs_is_a_peer_error() -> None:
    host, _, channel = with_channel()
    host.send_data(channel, 0, bytes(wire.MAX_PAYLOAD))
    with pytest.raises(PeerError, match="CREDIT"):
        host.receive(frame(CREDIT, channel, struct.pack("!I", 1)))


@pytest.mark.parametrize("bad", [frame(DATA, 1, b"x"), frame(DATA, 1), frame(CREDIT, 1, bytes(4))])
def test_a_channel_that_the_host_closed_takes_no_more_than_its_window(bad: bytes) -> None:
    host, _, channel = with_channel()
    host.send_close(channel)
    flood = bad * (wire.WINDOW // wire.FRAME_COST + 100)
    with pytest.raises(PeerError, match="after CLOSE"):
        host.receive(flood)


class Peeked(bytearray):
    """Counts the bytes that are copied out of it."""

    copied = 0

    def __getitem__(self, index: object) -> object:  # type: ignore[override]
        found = super().__getitem__(index)  # type: ignore[call-overload]
        if isinstance(found, bytearray):
            self.copied += len(found)
        return found


def test_lone_nops_between_frames_cost_no_more_than_themselves() -> None:
    host, _, channel = with_channel()
    host.send_close(channel)
    host._buffer = peeked = Peeked()
    host.receive((b"\0" + frame(DATA, channel, b"x")) * 1000)
    assert peeked.copied < 100_000
    assert host.receive(bytes(100_000)) == []


def test_parts_are_counted_until_the_message_is_whole_or_given_up() -> None:
    host, _, channel = with_channel()
    host.receive(frame(PART, channel, b"x" * 1000))
    assert host.assembling == 1000
    host.receive(frame(MESSAGE, channel, b"y"))
    assert host.assembling == 0
    host.receive(frame(PART, channel, b"x" * 1000))
    host.send_close(channel)
    assert host.assembling == 0
