"""Wire: the codec of the agent protocol, shared by both ends of the stream.

Bytes in, events out; frames accumulate in `outgoing` until the owner has written them. It decides
what a legal frame is and how much each side may send; it knows no socket, no clock and no
operation. `PROTOCOL.md` is the specification.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from vmpool_agent.flow import Flow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_PAYLOAD = 32 * 1024
FRAME_COST = 64
"""What a frame costs in the window beside its payload, so that small frames fill it too."""
WINDOW = 256 * 1024
MIN_CREDIT = WINDOW // 4
MAX_MESSAGE = 8 * 1024 * 1024  # from the host
MAX_ANSWER = 1024 * 1024  # from the agent: the host reads it on a loop that others share
MAX_CHANNELS = 256
MAX_DISCARD = 16 * 1024 * 1024
VERSIONS = (2, 2)
NONCE_SIZE = 16
KEY_SIZE = 32

STDIN = 0
STDOUT = 1
STDERR = 2
TERMINAL = 3

_HEADER = struct.Struct("!BBHI")  # kind, stream, payload length, channel
_SYNC = struct.Struct("!8s16s32sHH")  # magic, nonce, key, lowest and highest version
_SYNCED_BODY = struct.Struct("!8s16sHH")  # the same without the key
_CREDIT = struct.Struct("!I")
_MAGIC = b"vmpool\xf0\x0d"
_DRAIN_SLACK = 16 * FRAME_COST  # for the control frames on a channel that we closed

MAX_FRAME = _HEADER.size + MAX_PAYLOAD
FLUSH = bytes(MAX_FRAME)
"""What ends a half-sent frame at the far end, whatever it was."""

_NOP, _SYNC_KIND, _SYNCED, _OPEN, _PART, _MESSAGE, _DATA, _FINISH, _CLOSE, _CREDIT_KIND = range(10)


class WireError(Exception):
    """Root of what this module raises."""


class PeerError(WireError):
    """The peer broke the protocol. Nothing that it sends after it can be understood."""


class RefusedError(PeerError):
    """The host's key is not the one that this agent obeys; the stream is of no use to it."""


class MisuseError(WireError):
    """The owner of this end asked for what the protocol does not allow; nothing was sent."""


class Role(Enum):
    """Which end of the stream this is."""

    HOST = "host"
    AGENT = "agent"


class Synchronised(NamedTuple):
    """The stream begins anew; all channels of the time before are gone."""

    version: int


class Opened(NamedTuple):
    """The host opened a channel."""

    channel: int


class Data(NamedTuple):
    """Bytes of a stream; give their cost back with `Connection.consumed`."""

    channel: int
    stream: int
    payload: bytes


class Message(NamedTuple):
    """A whole message as it came; give its cost back with `Connection.consumed`.

    `cost` is that of its last frame: the frames before it are accounted for inside.
    """

    channel: int
    document: bytes
    cost: int


class Finished(NamedTuple):
    """The peer sends no more data or messages on the channel."""

    channel: int


class Closed(NamedTuple):
    """The channel is over on both sides."""

    channel: int


class Credited(NamedTuple):
    """The peer widened the window of the channel."""

    channel: int


if TYPE_CHECKING:  # Python 3.9 cannot make this union
    Event = Synchronised | Opened | Data | Message | Finished | Closed | Credited


class _Frame(NamedTuple):
    kind: int
    stream: int
    channel: int
    payload: bytes


class Connection:
    """One end of one stream.

    The owner writes `outgoing` to the transport and deletes from its front what was written. What
    it grows by is in the owner's hands: answers to SYNC and CLOSE, credit, and what was sent.

    Args:
        role: Which end this is. Either begins unsynchronised.
        admit: Whether a host with this key is obeyed; the agent's end only, which obeys nobody
            without it.
    """

    def __init__(self, role: Role, admit: Callable[[bytes], bool] | None = None) -> None:
        self.outgoing = bytearray()
        self.version = 0
        self.assembling = 0  # bytes of messages that are not whole yet, on all channels
        self._role = role
        self._admit = admit
        self._flows: dict[int, Flow] = {}
        self._draining: dict[int, int] = {}  # what may still come on channels that we closed
        self._last = 0
        self._buffer = bytearray()
        self._discarded = 0
        self._landmark: bytes = b""
        if role is Role.AGENT:
            self.reset()

    @property
    def synchronised(self) -> bool:
        """Whether channels can be opened and used."""
        return self.version != 0

    def reset(self) -> None:
        """Forget the peer and look for a SYNC; the agent's end only."""
        if self._role is not Role.AGENT:
            raise MisuseError("only the agent waits for a SYNC")
        self._buffer.clear()
        self._lose_step()

    def synchronise(self, nonce: bytes, key: bytes) -> None:
        """Send SYNC; the host's end only. Bytes are discarded until the answer to it.

        Args:
            nonce: `NONCE_SIZE` bytes that the peer cannot guess and has not seen.
            key: `KEY_SIZE` bytes by which the peer tells its host from everybody else.
        """
        if self._role is not Role.HOST or (len(nonce), len(key)) != (NONCE_SIZE, KEY_SIZE):
            raise MisuseError("SYNC is the host's, with a nonce of 16 bytes and a key of 32")
        self._forget()
        self._landmark = _HEADER.pack(_SYNCED, 0, _SYNCED_BODY.size, 0) + _MAGIC + nonce
        self._frame(_SYNC_KIND, 0, _SYNC.pack(_MAGIC, nonce, key, *VERSIONS))

    def take(self) -> bytes:
        """Return all of `outgoing` and empty it."""
        taken = bytes(self.outgoing)
        self.outgoing.clear()
        return taken

    def open(self) -> int:
        """Open a channel and return its number; the host's end only.

        Raises:
            MisuseError: Not synchronised, or `MAX_CHANNELS` are open or closing.
        """
        if self._role is not Role.HOST or not self.synchronised:
            raise MisuseError("channels are opened by a synchronised host")
        if len(self._flows) + len(self._draining) >= MAX_CHANNELS:
            raise MisuseError(f"{MAX_CHANNELS} channels are open")
        self._last += 1
        self._flows[self._last] = Flow(WINDOW)
        self._frame(_OPEN, self._last)
        return self._last

    def capacity(self, channel: int) -> int:
        """Return how many bytes of payload the next frame on a channel may have, 0 for none."""
        flow = self._flows.get(channel)
        if flow is None or flow.finished_out:
            return 0
        return max(0, min(flow.send_window - FRAME_COST, MAX_PAYLOAD))

    def send_data(self, channel: int, stream: int, payload: bytes | memoryview) -> None:
        """Send bytes of a stream, at most `capacity(channel)`.

        Raises:
            MisuseError: The channel is not open for sending, or the window too small.
        """
        self._spend(_DATA, channel, payload, stream)

    def send_message(self, channel: int, document: memoryview) -> memoryview:
        """Send as much of an encoded message as the window allows; return what is left of it.

        Once begun, a message must be sent to its end before the next.
        """
        room = self.capacity(channel)
        while document and room:
            piece, document = document[:room], document[room:]
            self._spend(_PART if document else _MESSAGE, channel, piece)
            room = self.capacity(channel)
        return document

    def send_finish(self, channel: int) -> None:
        """Send the end of what this side says on a channel. *Idempotent.*"""
        flow = self._flows.get(channel)
        if flow is not None and not flow.finished_out:
            flow.finished_out = True
            self._frame(_FINISH, channel)

    def send_close(self, channel: int) -> None:
        """Send CLOSE. *Idempotent*; on the host a `Closed` event follows when the agent agrees."""
        flow = self._flows.pop(channel, None)
        if flow is None:
            return
        self.assembling -= len(flow.parts)
        if self._role is Role.HOST:
            self._draining[channel] = flow.receive_window + _DRAIN_SLACK
        self._frame(_CLOSE, channel)

    def consumed(self, event: Data | Message) -> None:
        """Take note that an event was handed on, so that the peer may send as much again."""
        flow = self._flows.get(event.channel)
        if flow is None:
            return
        if isinstance(event, Message):
            flow.waiting -= 1
            flow.owed += event.cost
            if not flow.waiting:
                flow.owed += flow.withheld
                flow.withheld = 0
        else:
            flow.owed += FRAME_COST + len(event.payload)
        self._return_credit(event.channel, flow)

    def receive(self, data: bytes) -> list[Event]:
        """Return what the bytes mean, in order; an incomplete frame is kept for the next call.

        Raises:
            PeerError: The peer broke the protocol; on the host close the stream. The agent's end
                has forgotten the peer and goes on, with `receive(b"")`, to look for a SYNC in the
                bytes that follow: they may be those of the host's successor.
        """
        self._buffer += data
        events: list[Event] = []
        offset = 0
        try:
            while True:
                step = self._step if not self._landmark else self._hunt
                used = step(offset, events)
                if not used:
                    return events
                offset += used
        except PeerError:
            if self._role is Role.AGENT:
                self._lose_step()
            raise
        finally:
            del self._buffer[:offset]

    def _lose_step(self) -> None:
        self._forget()
        self._landmark = _HEADER.pack(_SYNC_KIND, 0, _SYNC.size, 0) + _MAGIC

    def _forget(self) -> None:
        self._flows.clear()
        self._draining.clear()
        self._last = 0
        self._discarded = 0
        self.version = 0
        self.assembling = 0
        self.outgoing.clear()

    def _hunt(self, offset: int, _events: list[Event]) -> int:
        """Return how many bytes to discard, 0 when more are needed."""
        found = self._buffer.find(self._landmark, offset)
        if found >= 0:
            self._landmark = b""
            self._discarded += found - offset
            # At the landmark nothing is discarded, and the frame is still to be parsed.
            return (found - offset) or self._step(offset, _events)
        discard = max(0, len(self._buffer) - offset - len(self._landmark) + 1)
        self._discarded += discard
        if self._role is Role.HOST and self._discarded > MAX_DISCARD:
            raise PeerError(f"no answer to SYNC within {MAX_DISCARD} bytes")
        return discard

    def _step(self, offset: int, events: list[Event]) -> int:
        """Parse one frame or run of NOPs; return its size, 0 when more bytes are needed."""
        buffer = self._buffer
        available = len(buffer) - offset
        if not available:
            return 0
        if buffer[offset] == _NOP:
            return self._count_nops(offset)
        if available < _HEADER.size:
            return 0
        kind, stream, length, channel = _HEADER.unpack_from(buffer, offset)
        if length > MAX_PAYLOAD:
            raise PeerError(f"payload of {length} bytes is over {MAX_PAYLOAD}")
        size: int = _HEADER.size + length
        if available < size:
            return 0
        payload = bytes(buffer[offset + _HEADER.size : offset + size])
        if stream and kind != _DATA:
            raise PeerError(f"stream {stream} on frame kind {kind}")
        events.extend(self._dispatch(_Frame(kind, stream, channel, payload)))
        return size

    def _count_nops(self, offset: int) -> int:
        """Return the length of a run of NOPs; looks no further ahead than the run is long."""
        size = 0
        look = 16
        while True:
            chunk = self._buffer[offset + size : offset + size + look]
            run = len(chunk) - len(chunk.lstrip(b"\0"))
            size += run
            if run < look:
                return size
            look = min(2 * look, MAX_FRAME)

    def _dispatch(self, frame: _Frame) -> Iterator[Event]:
        if frame.kind in (_SYNC_KIND, _SYNCED):
            yield self._on_sync(frame)
        elif not self.synchronised:
            raise PeerError(f"frame kind {frame.kind} before SYNC")
        elif frame.kind == _OPEN:
            yield self._on_open(frame)
        elif frame.kind > _CREDIT_KIND:
            raise PeerError(f"unknown frame kind {frame.kind}")
        elif (flow := self._flows.get(frame.channel)) is None:
            yield from self._on_stranger(frame)
        elif frame.kind in (_PART, _MESSAGE, _DATA):
            yield from self._on_payload(flow, frame)
        else:
            yield self._on_control(flow, frame)

    def _on_control(self, flow: Flow, frame: _Frame) -> Event:
        channel = frame.channel
        if frame.kind == _CREDIT_KIND:
            return self._on_credit(flow, frame)
        if frame.payload:
            raise PeerError(f"payload on frame kind {frame.kind}")
        if frame.kind == _CLOSE:
            del self._flows[channel]
            self.assembling -= len(flow.parts)
            if self._role is Role.AGENT:
                self._frame(_CLOSE, channel)
            return Closed(channel)
        if flow.finished_in:
            raise PeerError(f"channel {channel} finished twice")
        flow.finished_in = True
        return Finished(channel)

    def _on_sync(self, frame: _Frame) -> Synchronised:
        agent = self._role is Role.AGENT
        expected, body = (_SYNC_KIND, _SYNC) if agent else (_SYNCED, _SYNCED_BODY)
        if frame.kind != expected or frame.channel or len(frame.payload) != body.size:
            raise PeerError(f"malformed or misplaced frame kind {frame.kind}")
        magic, nonce, *key, lowest, highest = body.unpack(frame.payload)
        if magic != _MAGIC:
            raise PeerError("wrong magic")
        version: int = min(highest, VERSIONS[1])
        if agent:
            if self._admit is None or not self._admit(key[0]):
                raise RefusedError("another key")
            self._forget()
            self._frame(_SYNCED, 0, _SYNCED_BODY.pack(_MAGIC, nonce, *VERSIONS))
            # Where the versions do not overlap the host closes; until then ours holds.
            version = max(version, VERSIONS[0])
        elif self.synchronised:
            raise PeerError("SYNCED twice")
        elif version < max(lowest, VERSIONS[0]):
            raise PeerError(f"agent speaks versions {lowest} to {highest}, we speak {VERSIONS}")
        self.version = version
        return Synchronised(version)

    def _on_open(self, frame: _Frame) -> Opened:
        channel = frame.channel
        if self._role is not Role.AGENT or frame.payload or channel != self._last + 1:
            raise PeerError(f"malformed or misplaced OPEN of channel {channel}")
        if len(self._flows) >= MAX_CHANNELS:
            raise PeerError(f"more than {MAX_CHANNELS} channels")
        self._last = channel
        self._flows[channel] = Flow(WINDOW)
        return Opened(channel)

    def _on_stranger(self, frame: _Frame) -> Iterator[Event]:
        """Pass over frames that were on their way when this side closed the channel."""
        if self._role is Role.AGENT and 0 < frame.channel <= self._last:
            return
        if frame.channel not in self._draining:
            raise PeerError(f"frame kind {frame.kind} on channel {frame.channel}, not open")
        if frame.kind == _CLOSE:
            del self._draining[frame.channel]
            yield Closed(frame.channel)
            return
        self._draining[frame.channel] -= FRAME_COST + len(frame.payload)
        if self._draining[frame.channel] < 0:
            raise PeerError(f"window of channel {frame.channel} overrun after CLOSE")

    def _on_credit(self, flow: Flow, frame: _Frame) -> Credited:
        if len(frame.payload) != _CREDIT.size:
            raise PeerError("malformed CREDIT")
        (increment,) = _CREDIT.unpack(frame.payload)
        flow.send_window += increment
        if increment < MIN_CREDIT or flow.send_window > WINDOW:
            raise PeerError(f"CREDIT of {increment} for a window of {flow.send_window}")
        return Credited(frame.channel)

    def _on_payload(self, flow: Flow, frame: _Frame) -> Iterator[Event]:
        channel, payload = frame.channel, frame.payload
        cost = FRAME_COST + len(payload)
        if not payload or flow.finished_in:
            raise PeerError(f"empty frame, or data after FINISH, on channel {channel}")
        if cost > flow.receive_window:
            raise PeerError(f"window of channel {channel} overrun")
        flow.receive_window -= cost
        if frame.kind == _DATA:
            yield Data(channel, frame.stream, payload)
            return
        limit = MAX_ANSWER if self._role is Role.HOST else MAX_MESSAGE
        if len(flow.parts) + len(payload) > limit:
            raise PeerError(f"message over {limit} bytes")
        flow.parts += payload
        self.assembling += len(payload)
        if frame.kind == _MESSAGE:
            document = bytes(flow.parts)
            flow.parts = bytearray()
            self.assembling -= len(document)
            flow.waiting += 1
            yield Message(channel, document, cost)
        elif flow.waiting:
            flow.withheld += cost
        else:
            flow.owed += cost
            self._return_credit(channel, flow)

    def _return_credit(self, channel: int, flow: Flow) -> None:
        # A finished peer needs no more credit; a small debt is given back with the next.
        if flow.owed >= MIN_CREDIT and not flow.finished_in:
            flow.receive_window += flow.owed
            self._frame(_CREDIT_KIND, channel, _CREDIT.pack(flow.owed))
            flow.owed = 0

    def _spend(self, kind: int, channel: int, payload: bytes | memoryview, stream: int = 0) -> None:
        if not 0 < len(payload) <= self.capacity(channel):
            raise MisuseError(f"{len(payload)} bytes do not fit the window of channel {channel}")
        self._flows[channel].send_window -= FRAME_COST + len(payload)
        self._frame(kind, channel, payload, stream)

    def _frame(
        self, kind: int, channel: int, payload: bytes | memoryview = b"", stream: int = 0
    ) -> None:
        self.outgoing += _HEADER.pack(kind, stream, len(payload), channel)
        self.outgoing += payload
