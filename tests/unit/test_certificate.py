"""Certificate: two files are read, or said to be wrong, and which names they are good for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.certificates import DAY, Authority
from vmpool import certificate
from vmpool.errors import HostError


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def refusal(chain: Path, key: Path) -> HostError:
    with pytest.raises(HostError) as caught:
        certificate.load(chain, key)
    assert caught.value.error_code == "certificate_unusable"
    assert caught.value.remedy
    return caught.value


def test_a_certificate_says_for_what_and_how_long_it_is_good(
    tmp_path: Path, authority: Authority
) -> None:
    ends = datetime.now(UTC).replace(microsecond=0) + 3 * DAY
    read = certificate.load(*authority.issue("*.Box.Example", ends=ends).write(tmp_path))
    assert (set(read.names), read.ends) == ({"*.box.example"}, ends)
    assert read.lacks("box.example:8443") == read.lacks("") == ()
    assert read.lacks("other.example") == ("*.other.example",)
    assert read.out_of_time() == ""
    assert "ended on" in read.out_of_time(ends)
    assert "only from" in read.out_of_time(ends - 10 * DAY)


def test_a_certificate_without_names_is_good_for_none(tmp_path: Path, authority: Authority) -> None:
    read = certificate.load(*authority.issue("box.example").write(tmp_path))
    assert read.lacks("box.example") == ("*.box.example",)


def _missing(chain: Path, key: Path) -> None:
    key.unlink()


def _garbage(chain: Path, key: Path) -> None:
    chain.write_text("no certificate\n")


def _mixed_up(chain: Path, key: Path) -> None:
    key.write_bytes(chain.read_bytes())


def _of_another(chain: Path, key: Path) -> None:
    key.write_bytes(Authority().issue("a.example").key)


def _encrypted(chain: Path, key: Path) -> None:
    Authority().issue("a.example", phrase=b"secret").write(chain.parent)


def _endless(chain: Path, key: Path) -> None:
    with key.open("r+b") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize(
    ("spoil", "which", "words"),
    [
        (_missing, "privkey.pem", "cannot be read: No such file"),
        (_garbage, "fullchain.pem", "no certificate"),
        (_mixed_up, "privkey.pem", "no private key"),
        (_of_another, "privkey.pem", "is not the key of"),
        (_encrypted, "privkey.pem", "pass phrase"),
        (_endless, "privkey.pem", "more than"),
    ],
)
def test_what_is_wrong_is_said_of_the_file(
    tmp_path: Path,
    authority: Authority,
    spoil: Callable[[Path, Path], None],
    which: str,
    words: str,
) -> None:
    chain, key = authority.issue("*.box.example").write(tmp_path)
    spoil(chain, key)
    error = refusal(chain, key)
    assert repr(str(tmp_path / which)) in error.message.split(" is not the key of ")[0]
    assert words in error.message


def test_one_that_has_ended_is_read_all_the_same(tmp_path: Path, authority: Authority) -> None:
    ended = datetime.now(UTC) - timedelta(hours=1)
    read = certificate.load(*authority.issue("*.box.example", ends=ended).write(tmp_path))
    assert "ended on" in read.out_of_time()
