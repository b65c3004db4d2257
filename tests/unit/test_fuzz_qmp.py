"""A QEMU that a guest has taken over, and that answers whatever it likes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vmpool.engine.qemu import answers, migration, processor
from vmpool.engine.qemu.monitor import Monitor, listen
from vmpool.engine.qemu.nodes import Nodes
from vmpool.errors import EngineError, HostError
from vmpool.model import Accelerator, MachineSpec, Transport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from vmpool.engine.qemu.hypervisor import Hypervisor

GREETING = {"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""},
                    "capabilities": []}}  # fmt: skip
SPEC = MachineSpec(
    root=Path("/none"),
    memory_bytes=1 << 28,
    accelerator=Accelerator.TCG,
    transport=Transport.SERIAL,
    qemu_version="10.0.2",
)
NAMES = sorted(
    {"status", "running", "fdset-id", "fd", "id", "node-name", "file", "inserted", "name", "props"}
    | {"backing_file_depth", "qom-path", "unavailable-features", "model", "vendor", "error-desc"}
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(
        ["scratch", "scratch1-file", "/dev/fdset/9", "layer-file", "max", "completed"]
    )
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=20,
)
PATIENCE = 30.0
"""Seconds after which something hangs."""

slow = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def started(monitor: Monitor) -> Hypervisor:
    return cast("Hypervisor", SimpleNamespace(monitor=monitor, execute=monitor.execute))


ASKERS: dict[str, Callable[[Monitor], Awaitable[object]]] = {
    "of_guest": processor.of_guest,
    "offered": lambda monitor: processor.offered(monitor, SPEC),
    "forget": migration.forget,
    "save_devices": migration.save_devices,
    "settle": lambda monitor: Nodes(started(monitor)).settle(),
}


class Hostile:
    """Serves QMP as it likes: each answer is the next of `said`, and the last one from then on."""

    def __init__(self, said: list[bytes], greeting: bytes) -> None:
        self._said = said
        self._greeting = greeting

    async def play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer until the other side has had enough."""
        try:
            writer.write(self._greeting)
            async for request in requests(reader):
                if request["execute"] == "qmp_capabilities":
                    writer.write(b'{"return": {}}\n')
                    continue
                said = self._said.pop(0) if len(self._said) > 1 else self._said[0]
                writer.write(said.replace(b"%ID%", json.dumps(request["id"]).encode()))
        except OSError:
            pass  # it was hung up on
        finally:
            writer.transport.abort()


async def requests(reader: asyncio.StreamReader) -> AsyncIterator[Any]:
    """Yield what comes; nothing stands between two requests."""
    text, decoder = "", json.JSONDecoder()
    while chunk := await reader.read(1 << 16):
        text += chunk.decode()
        with contextlib.suppress(json.JSONDecodeError):  # the rest is not there yet
            while text := text.lstrip():
                request, end = decoder.raw_decode(text)
                text = text[end:]
                yield request


async def ask(
    said: list[bytes], asker: Callable[[Monitor], Awaitable[object]], greeting: bytes = b""
) -> str:
    """Have somebody ask a hostile QEMU; return the code of what it raises, empty for nothing."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with listen(directory, "qmp") as server:
            hostile = Hostile(said, greeting or json.dumps(GREETING).encode() + b"\n")
            serving = await asyncio.start_unix_server(hostile.play, sock=server.dup())
            monitor = Monitor()
            try:
                async with asyncio.timeout(PATIENCE):
                    try:
                        await monitor.connect(directory, "qmp")
                        await asker(monitor)
                    except (EngineError, HostError) as err:
                        return err.error_code
                    finally:
                        await monitor.close()
                return ""
            finally:
                serving.close()
                await serving.wait_closed()


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmpool.engine.qemu.monitor.COMMAND_TIMEOUT", 0.5)


@pytest.mark.parametrize("asker", ASKERS.values(), ids=ASKERS)
@slow
@given(values=st.lists(ANYTHING, min_size=1, max_size=6))
@example(values=[{"model": {"props": {"vendor": "AuthenticAMD", "sse2": True}}}, 7])
@example(values=[[{"qom-path": "/cpu"}], {"model": {"props": {"vendor": "x"}}}, []])
@example(values=[[{"node-name": "scratch-file", "file": "/dev/fdset/9"}], [], [{"inserted": {}}]])
def test_whatever_qemu_answers_its_asker_fails_in_a_documented_way(
    asker: Callable[[Monitor], Awaitable[object]], values: list[Any]
) -> None:
    said = [json.dumps({"return": value}).encode()[:-1] + b', "id": %ID%}\n' for value in values]
    asyncio.run(ask(said, asker))


LINES = {
    "nothing": b"",
    "no JSON": b"]\n",
    "bytes": b"\xff\xfe\x00\n",
    "a list": b"[1]\n",
    "deep": b"[" * 100_000 + b"\n",
    "deep and whole": b'{"id": %ID%, "return": ' + b"[" * 50_000 + b"]" * 50_000 + b"}\n",
    "a long number": b'{"id": %ID%, "return": ' + b"9" * 10_000 + b"}\n",
    "no return": b'{"id": %ID%}\n',
    "an error that is none": b'{"id": %ID%, "error": 5}\n',
    "an error of lists": b'{"id": %ID%, "error": {"class": [], "desc": {}}}\n',
    "an id that is a list": b'{"id": [1], "return": {}}\n',
    "twice the same": b'{"id": %ID%, "return": {}}\n' * 50,
    "no id": b'{"return": {}}\n',
    "an error for nobody": b'{"error": {"class": "x", "desc": "y"}}\n',
    "an event without a name": b'{"event": 5}\n{"id": %ID%, "return": {}}\n',
    "an event that is a list": b'{"event": []}\n',
    "a migration in words": b'{"event": "MIGRATION", "data": "completed"}\n',
    "a migration of nothing": b'{"event": "MIGRATION"}\n',
    "an end without a reason": b'{"event": "SHUTDOWN", "data": []}\n',
    "a job that is none": b'{"event": "JOB_STATUS_CHANGE", "data": {"id": []}}\n',
    "a line without end": b"x" * (11 << 20),
}


def test_one_that_answers_as_it_should_is_believed() -> None:
    good = b'{"return": {"status": "paused", "running": false}, "id": %ID%}\n'
    assert asyncio.run(ask([good], ASKERS["save_devices"])) == ""


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_whatever_qemu_says_its_asker_fails_in_a_documented_way(line: bytes) -> None:
    asyncio.run(ask([line], ASKERS["save_devices"]))


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_whatever_qemu_greets_with_nothing_hangs(line: bytes) -> None:
    asyncio.run(ask([b""], ASKERS["forget"], greeting=line + b"\n"))


@slow
@given(line=st.binary(max_size=200))
def test_no_bytes_are_more_than_a_session_bears(line: bytes) -> None:
    asyncio.run(ask([line + b"\n"], ASKERS["save_devices"]))


@given(name=ANYTHING, data=ANYTHING)
def test_what_is_no_event_is_told(name: Any, data: Any) -> None:
    answers.is_event(name, data)
    assert not answers.is_event("MIGRATION", [])
    assert answers.is_event("MIGRATION", {"status": "completed", "more": data})


@given(command=st.sampled_from(sorted(answers._SHAPES)), value=ANYTHING)
def test_an_answer_has_its_form_or_is_refused(command: str, value: Any) -> None:
    try:
        found = answers.checked(command, value)
    except EngineError:
        return
    assert answers.checked(command, found) == found
