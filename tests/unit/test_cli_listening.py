"""Where a server listens, what is said when it cannot, and what it leaves for its own host."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from vmpool import local
from vmpool.address import Address
from vmpool.cli.listening import Interrupts, bound, url_of
from vmpool.client.endpoint import find_endpoint
from vmpool.errors import HostError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOOPBACK = Address(host="127.0.0.1", port=0)


def test_a_taken_port_is_said_with_who_to_ask_and_where_else_to_listen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HostError) as refused, bound(Address(host="127.0.0.1", port=port)):
            pass
    assert refused.value.error_code == "address_in_use"
    assert f"ss -ltnp 'sport = :{port}'" in refused.value.remedy
    assert f"--listen 127.0.0.1:{(port + 1) % 65536}" in refused.value.remedy


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_host_is_refused(host: str) -> None:
    with pytest.raises(HostError) as refused, bound(Address(host=host, port=8700)):
        pass
    assert refused.value.error_code == "address_unavailable"


def test_an_error_inside_the_block_is_not_taken_for_one_of_binding() -> None:
    with pytest.raises(FileNotFoundError), bound(LOOPBACK):
        raise FileNotFoundError


def test_a_server_on_all_addresses_is_reached_on_loopback() -> None:
    with bound(Address(host="0.0.0.0", port=0)) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_the_first_interrupt_ends_the_waiting_and_handlers_go_with_the_block() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        await interrupts.wait()
    assert signal.getsignal(signal.SIGTERM) == before


async def test_an_interrupt_during_work_unwinds_the_work() -> None:
    unwound = []

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            unwound.append("work")

    with pytest.raises(KeyboardInterrupt), Interrupts():
        await work()
    assert unwound == ["work"]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_somebody_elses_cancellation_stays_one() -> None:
    with pytest.raises(asyncio.CancelledError), Interrupts():
        raise asyncio.CancelledError


def test_the_second_interrupt_leaves_at_once_and_says_so() -> None:
    script = (
        "import asyncio\n"
        "from vmpool.cli.listening import Interrupts\n"
        "async def stubborn():\n"
        "    with Interrupts() as interrupts:\n"
        "        print('ready', flush=True)\n"
        "        await interrupts.wait()\n"
        "        print('stopping', flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(stubborn())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for word in ("ready\n", "stopping\n"):
            assert process.stdout.readline() == word
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said == "leaving at once; the next start settles what is left\n"


def test_the_local_token_is_for_its_own_account_alone(tmp_path: Path) -> None:
    local.write_token(tmp_path, "old")
    local.write_token(tmp_path, "secret")
    path = local.token_path(tmp_path)
    assert local.read_token(tmp_path) == "secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_servers_address_is_there_while_it_serves(tmp_path: Path) -> None:
    with local.announced(tmp_path, "http://127.0.0.1:1"):
        assert local.read_server(tmp_path) == "http://127.0.0.1:1"
    assert local.read_server(tmp_path) == ""


def test_a_server_that_stops_leaves_the_address_of_its_successor(tmp_path: Path) -> None:
    with local.announced(tmp_path, "http://127.0.0.1:1"):
        successor = local.announced(tmp_path, "http://127.0.0.1:2")
        successor.__enter__()
    assert local.read_server(tmp_path) == "http://127.0.0.1:2"


def test_the_local_token_goes_to_this_host_alone(tmp_path: Path) -> None:
    local.write_token(tmp_path, "secret")

    with listening("127.0.0.1") as port, listening("::1") as other:
        for here in (f"http://127.0.0.1:{port}", f"localhost:{port}", f"http://[::1]:{other}/"):
            assert token_for(here, tmp_path) == "secret"
        far = (
            f"http://192.0.2.1:{port}",
            f"https://localhost.example:{port}",
            f"http://x@y:{port}",
        )
        for elsewhere in far:
            assert token_for(elsewhere, tmp_path) == ""


@contextlib.contextmanager
def listening(host: str) -> Iterator[int]:
    """Listen at an address for a block; yields the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        yield listener.getsockname()[1]


def token_for(server: str | None, state: Path) -> str:
    """Return what a client sends to a server, with nothing else to go by."""
    return find_endpoint(server=server, state=state, environ={}).token


def test_the_local_token_goes_to_nobody_when_its_server_is_gone(tmp_path: Path) -> None:
    local.write_token(tmp_path, "secret")
    with listening("127.0.0.1") as port:
        url = f"http://127.0.0.1:{port}"
        with local.announced(tmp_path, url):
            assert token_for(None, tmp_path) == "secret"
            assert token_for(None, tmp_path / "another") == ""
    with local.announced(tmp_path, url):  # as after kill -9
        assert token_for(None, tmp_path) == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "::", "0.0.0.0"])
def test_the_local_token_does_not_go_to_another_account(tmp_path: Path, host: str) -> None:
    local.write_token(tmp_path, "secret")
    with listening(host) as port:
        url = "http://[::1]" if host == "::" else "http://127.0.0.1"
        assert token_for(f"{url}:{port}", tmp_path) == "secret"
        if os.geteuid() == 0:
            os.chown(local.token_path(tmp_path), 65534, 65534)
            assert token_for(f"{url}:{port}", tmp_path) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="listens as another account")
def test_a_name_of_two_addresses_gets_the_local_token_when_both_are_ours(tmp_path: Path) -> None:
    local.write_token(tmp_path, "secret")
    with listening("127.0.0.1") as port:
        url = f"http://localhost:{port}"
        assert token_for(url, tmp_path) == "secret"
        os.seteuid(65534)
        try:
            other = socket.create_server(("::1", port), family=socket.AF_INET6)
        finally:
            os.seteuid(0)
        with other:
            assert token_for(url, tmp_path) == ""
            assert token_for(f"http://127.0.0.1:{port}", tmp_path) == "secret"


@pytest.mark.skipif(os.geteuid() != 0, reason="listens as another account")
def test_the_local_token_does_not_go_to_a_mapped_address_of_another(tmp_path: Path) -> None:
    local.write_token(tmp_path, "secret")
    with listening("::") as port:  # of version 6 alone, so that 127.0.0.1 is free
        os.seteuid(65534)
        try:
            other = socket.socket(socket.AF_INET6)
        finally:
            os.seteuid(0)
        with other:
            other.bind(("::ffff:127.0.0.1", port))
            other.listen()
            assert token_for(f"http://127.0.0.1:{port}", tmp_path) == ""


def test_a_given_token_comes_before_a_found_one(tmp_path: Path) -> None:
    local.write_token(tmp_path, "found")
    file = tmp_path / "mine"
    file.write_text("filed\n")
    by_file = find_endpoint(server=None, token=None, token_file=file, state=tmp_path)
    by_word = find_endpoint(server=None, token="given", token_file=file, state=tmp_path)
    assert (by_file.token, by_word.token) == ("filed", "given")
    assert "given" not in repr(by_word)


def test_a_token_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="missing"):
        find_endpoint(server=None, token=None, token_file=tmp_path / "missing", state=tmp_path)
