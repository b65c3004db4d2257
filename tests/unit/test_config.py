"""Settings come from where they should, and a mistake is named with its place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec
import pytest

from vmpool.address import Address
from vmpool.config import MAX_RUN_LENGTH, Settings, default_state, load
from vmpool.errors import HostError

DOCS = Path(__file__).parents[2] / "docs/settings.md"


@pytest.fixture(autouse=True)
def _no_settings_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmpool.config.SYSTEM_FILE", Path("/nowhere"))


def written(directory: Path, text: str) -> Path:
    path = directory / "vmpool.toml"
    path.write_text(f'run = "/run/vmpool"\n{text}\n')
    return path


def refusal(directory: Path, text: str) -> HostError:
    with pytest.raises(HostError) as caught:
        load(written(directory, text), environ={})
    assert caught.value.error_code == "invalid_settings"
    assert caught.value.remedy
    return caught.value


def test_without_a_file_there_are_defaults() -> None:
    settings = load(environ={"HOME": "/nowhere"}, uid=0)
    assert settings == Settings()
    assert settings.address == Address(host="127.0.0.1", port=8700)


def test_a_user_has_a_state_directory_of_its_own() -> None:
    settings = load(environ={"HOME": "/home/jo"}, uid=1000)
    assert settings.state == Path("/home/jo/.local/state/vmpool")
    assert settings.run == settings.state / "run"
    assert default_state({"XDG_STATE_HOME": "/s"}, 1000) == Path("/s/vmpool")


def test_the_file_is_found_in_order(tmp_path: Path) -> None:
    home = tmp_path / ".config/vmpool"
    home.mkdir(parents=True)
    written(home, 'listen = "127.0.0.1:1"')
    named = written(tmp_path, 'listen = "127.0.0.1:2"')
    environ = {"HOME": os.fspath(tmp_path)}
    assert load(environ=environ).address.port == 1
    assert load(environ=environ | {"VMPOOL_CONFIG": os.fspath(named)}).address.port == 2
    assert load(named, environ={"VMPOOL_CONFIG": "/nowhere"}).address.port == 2


def test_a_file_that_was_named_must_exist() -> None:
    with pytest.raises(HostError, match="/nowhere"):
        load(environ={"VMPOOL_CONFIG": "/nowhere"})


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, 'listen = "127.0.0.1:1"\nstate = "/a"')
    settings = load(path, environ={"VMPOOL_LISTEN": "[::1]:2", "VMPOOL_STATE": "/b"})
    assert (settings.listen, settings.state) == ("[::1]:2", Path("/b"))


def test_a_template_inherits_what_it_does_not_say(tmp_path: Path) -> None:
    settings = load(
        written(tmp_path, "[pool]\nready = 5\ntotal = 7\n[templates.python]\nready = 1"), environ={}
    )
    assert (settings.pool_of("python").ready, settings.pool_of("python").total) == (1, 7)
    assert settings.pool_of("other").ready == 5
    assert settings.pool_of("python").limits(clone_bytes=10).clone_bytes == 10


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("lisen = 1", "lisen"),
        ("[pool]\nraedy = 1", "$.pool"),
        ("[pool]\nready = -1", "$.pool.ready"),
        ("pool = 3", "$.pool"),
        ("templates = 3", "$.templates"),
        ("templates.python = 3", "$.templates"),
        ("[templates.python]\nready = 'many'", "$.templates"),
        ("[requests]\nexec_timeout = 0", "$.requests.exec_timeout"),
        ("[requests]\nexec_timeout = 7200", "exec_timeout_most"),
        ("[requests]\nsandbox_timeout = 1e9", "sandbox_timeout_most"),
        ("[requests]\nqueue_wait = 601", "queue_wait_most"),
        ("[api]\nbodies_bytes = 33554431", "bodies_bytes"),
        ("[api]\ncertificate = 'chain.pem'", "go together"),
        ("[api]\ncertificate_key = 'key.pem'", "go together"),
        ("state = 3", "$.state"),
        ("cpu_model = 'host,kvm=off'", "$.cpu_model"),
        ("state = 'here'", "state"),
        ("listen =", "line 2"),
        ("listen = 'here'", "listen"),
        ("listen = 'here:99999'", "listen"),
        ("listen = '::1:80'", "listen"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, place: str) -> None:
    error = refusal(
        tmp_path, text + ("\ninsecure_no_tokens = true" if "listen = '" in text else "")
    )
    assert place in error.message
    assert "vmpool.toml" in str(error)


def test_a_run_directory_too_long_for_sockets_is_refused() -> None:
    fits = "/" + "r" * (MAX_RUN_LENGTH - 1)
    assert load(environ={"VMPOOL_RUN": fits, "HOME": "/nowhere"}).run == Path(fits)
    with pytest.raises(HostError) as caught:
        load(environ={"VMPOOL_RUN": fits + "r", "HOME": "/nowhere"})
    assert "VMPOOL_RUN" in caught.value.remedy


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "127.8.8.8"])
def test_a_server_without_tokens_may_listen_on_loopback(tmp_path: Path, host: str) -> None:
    text = f"listen = '{host}:80'\ninsecure_no_tokens = true"
    assert load(written(tmp_path, text), environ={}).insecure_no_tokens


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.0.0.1", "example.org", "localhost.evil"])
def test_a_server_without_tokens_may_listen_nowhere_else(tmp_path: Path, host: str) -> None:
    refusal(tmp_path, f"listen = '{host}:80'\ninsecure_no_tokens = true")


def settings_of(struct: type[msgspec.Struct], prefix: str = "") -> dict[str, tuple[str, object]]:
    """Return the description and the default of each setting by its dotted name."""
    found: dict[str, tuple[str, object]] = {}
    hints = get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        hint = hints[field.name]
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            found |= settings_of(hint, f"{prefix}{field.name}.")
        else:
            words = [meta.description for meta in get_args(hint) if isinstance(meta, msgspec.Meta)]
            made = field.default_factory
            default = field.default if made is msgspec.NODEFAULT else made()
            found[prefix + field.name] = (next(filter(None, words)), default)
    return found


def test_every_setting_is_described_and_documented_with_its_default() -> None:
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    documented = {row.split("`")[1]: row for row in rows}
    described = settings_of(Settings)
    described["templates.NAME"] = (described.pop("templates")[0], None)
    assert set(documented) == set(described)
    for name, (description, default) in described.items():
        assert description in documented[name]
        if default is not None:
            assert f"`{written_default(default)}`" in documented[name]


def written_default(default: object) -> str:
    return msgspec.json.encode(default, enc_hook=os.fspath).decode()
