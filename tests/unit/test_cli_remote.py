"""What the command line makes of a server's answers, good, bad and cut off."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from vmpool.cli import remote as remotes
from vmpool.cli import task
from vmpool.cli.remote import Remote
from vmpool.client import repetition
from vmpool.client.endpoint import Endpoint
from vmpool.errors import (
    CallerError,
    CapacityError,
    Fault,
    InfrastructureError,
    TaskError,
    UnauthorizedError,
    VmpoolError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


class Scripted:
    """A server that takes a request for each of the answers that it was given."""

    def __init__(self, *answers: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._answers = answers
        self.received = b""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _serve(self) -> None:
        for answer in self._answers:
            connection, _ = self._listener.accept()
            with connection, connection.makefile("rwb") as stream:
                while (line := stream.readline()) not in {b"\r\n", b""}:
                    self.received += line
                stream.write(answer)
                stream.flush()
                connection.shutdown(socket.SHUT_WR)
                self.received += stream.read()

    def close(self) -> None:
        self._thread.join(20)
        self._listener.close()


@contextlib.contextmanager
def answering(*answers: bytes, **endpoint: str) -> Iterator[tuple[Remote, Scripted]]:
    server = Scripted(*answers)
    with contextlib.closing(server):
        yield Remote(Endpoint(url=server.url, **endpoint), timeout=20), server


def http(body: bytes, *, status: str = "200 OK", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), size, body)


def problem(fault: str, status: str = "409 Conflict", **more: str) -> bytes:
    return http(
        json.dumps({"detail": "no", "code": "narrow", "fault": fault} | more).encode(),
        status=status,
    )


def failure(answer: bytes, **endpoint: str) -> VmpoolError:
    with answering(answer, **endpoint) as (remote, _), pytest.raises(VmpoolError) as failed:
        remote.call("GET", "/v1/x")
    return failed.value


def test_a_call_sends_the_token_and_returns_what_came() -> None:
    with answering(http(b'{"a": 1}'), token="secret") as (remote, server):
        assert remote.call("POST", "/v1/x", {"b": "é"}) == {"a": 1}
    assert server.received.startswith(b"POST /v1/x HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer secret\r\n" in server.received
    assert server.received.endswith(b'{"b": "\\u00e9"}')


def test_what_is_made_is_asked_for_again_with_the_same_key_when_the_answer_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repetition, "PAUSES", (0.0, 0.0))
    cut = http(b"{}", length=9)
    with answering(cut, cut, http(b'{"id": "a"}')) as (remote, server):
        assert remote.once("/v1/x", {}) == {"id": "a"}
    keys = re.findall(rb"\r\nIdempotency-Key: (\w+)\r\n", server.received)
    assert len(keys) == 3
    assert len(set(keys)) == 1
    with answering(cut, cut, cut) as (remote, _), pytest.raises(InfrastructureError) as lost:
        remote.once("/v1/x", {})
    assert lost.value.error_code == "server_lost"


def test_what_the_server_refuses_is_not_asked_for_again() -> None:
    with answering(problem("capacity", "503 No")) as (remote, _), pytest.raises(CapacityError):
        remote.once("/v1/x", {})


def test_without_a_token_none_is_sent() -> None:
    with answering(b"HTTP/1.1 204 No Content\r\n\r\n") as (remote, server):
        assert remote.call("DELETE", "/v1/x") is None
    assert b"Authorization" not in server.received


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.CALLER, CallerError),
        (Fault.TASK, TaskError),
        (Fault.CAPACITY, CapacityError),
        (Fault.INFRASTRUCTURE, InfrastructureError),
        ("a fault of a later version", InfrastructureError),
    ],
)
def test_a_problem_becomes_the_error_that_it_was(fault: str, kind: type[VmpoolError]) -> None:
    error = failure(problem(fault, remedy="wait"))
    assert type(error) is kind
    assert (error.message, error.error_code, error.remedy) == ("no", "narrow", "wait")


def test_a_refused_token_is_told_with_where_to_get_one() -> None:
    error = failure(problem("caller", "401 Unauthorized"))
    assert isinstance(error, UnauthorizedError)
    assert "vmpool token create" in error.remedy
    assert failure(problem("caller", "401 No"), token_remedy="ask root").remedy == "ask root"


@pytest.mark.parametrize(
    "answer",
    [
        http(b"<html>welcome</html>"),
        http(b"<html>not found</html>", status="404 Not Found"),
        http(b"[]", status="500 Oops"),
        http(b'{"detail": "no"}', status="500 Oops"),
    ],
)
def test_a_stranger_is_called_one(answer: bytes) -> None:
    assert failure(answer).error_code == "not_vmpool"


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9\r\n", http(b"{}", length=9)])
def test_an_answer_that_breaks_off_is_a_lost_server(answer: bytes) -> None:
    assert failure(answer).error_code == "server_lost"


def test_an_answer_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remotes, "ANSWER_LIMIT_BYTES", 1000)
    assert failure(http(b"1" * 1001)).error_code == "not_vmpool"


def test_a_line_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remotes, "LINE_LIMIT_BYTES", 100)
    sent = http(b'{"type": "started"}\n' + b"1" * 101)
    with answering(sent) as (remote, _), remote.open("GET", "/v1/x") as answer:
        lines = remotes.lines(answer)
        assert next(lines) == {"type": "started"}
        with pytest.raises(InfrastructureError) as failed:
            next(lines)
    assert failed.value.error_code == "not_vmpool"


def test_a_download_that_breaks_off_is_not_taken_for_a_whole_file() -> None:
    sent = http(b"half", length=8)
    with answering(sent) as (remote, _), remote.open("GET", "/v1/x") as answer:
        chunks = remotes.chunks(answer)
        assert next(chunks) == b"half"
        with pytest.raises(InfrastructureError) as failed:
            next(chunks)
    assert failed.value.error_code == "server_lost"


def test_our_own_closed_stdout_is_not_the_servers_loss() -> None:
    with (
        answering(http(b"{}")) as (remote, _),
        pytest.raises(BrokenPipeError),
        remote.open("GET", "/v1/x"),
    ):
        raise BrokenPipeError


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:port", "nonsense"])
def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(CallerError) as failed:
        Remote(Endpoint(url=url)).call("GET", "/")
    assert failed.value.error_code == "invalid_server"


def test_a_path_quotes_what_it_is_given() -> None:
    assert remotes.path("sandboxes", "../x", "files", path="/a b&c", user=None) == (
        "/v1/sandboxes/..%2Fx/files?path=%2Fa+b%26c"
    )
    assert remotes.path("sandboxes", metadata=("a=1", "b=2")) == (
        "/v1/sandboxes?metadata=a%3D1&metadata=b%3D2"
    )


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        ({"exit_code": 7, "signal": None, "timed_out": False, "out_of_memory": False}, 7),
        ({"exit_code": None, "signal": 9, "timed_out": False, "out_of_memory": True}, 137),
        ({"exit_code": None, "signal": 9, "timed_out": True, "out_of_memory": False}, 124),
    ],
)
def test_how_a_program_ended_is_passed_on(ended: dict[str, object], code: int) -> None:
    assert task.exit_code(ended) == code
    assert bool(task.epitaph(ended)) == (ended["signal"] is not None)


@pytest.mark.parametrize(
    ("signal", "lost", "said"),
    [
        (None, False, "its time was up; it was interrupted"),
        (
            None,
            True,
            "its time was up; it was killed; its context begins anew, without its state",
        ),
        (9, False, "its time was up; it was killed"),
    ],
)
def test_code_whose_context_goes_on_was_interrupted(
    signal: int | None, lost: bool, said: str
) -> None:
    ended = {"exit_code": 1, "signal": signal, "timed_out": True, "out_of_memory": False}
    assert task.epitaph(ended | {"context_lost": lost}) == said
