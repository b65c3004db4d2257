"""Config: the settings of a server, from a TOML file, a few environment variables, and defaults.

Checks what can be checked without the host's help and says where a mistake is. It creates nothing
and starts nothing. Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from vmpool.address import Address
from vmpool.egress import NetworkMode
from vmpool.errors import HostError
from vmpool.lifecycle import OnStop
from vmpool.model import GIB, MIB
from vmpool.policy import Limits
from vmpool.quota import Quota

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_RUN_LENGTH = 107 - len("/clones/") - 20 - len("/qmp-listener.socket")
"""Bytes of the run directory's path: `sun_path` holds 107 (linux/un.h) with a clone's socket."""

SYSTEM_FILE = Path("/etc/vmpool/vmpool.toml")

ENVIRONMENT = {"VMPOOL_LISTEN": "listen", "VMPOOL_STATE": "state", "VMPOOL_RUN": "run"}
"""Variables that go before the file, and the settings that they set."""

Seconds = Annotated[float, Meta(gt=0)]
Size = Annotated[int, Meta(ge=1)]
CpuModel = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]+$")]  # a comma would bring options along


class PoolSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """`[pool]` for every template, `[templates.NAME]` for what differs in one."""

    ready: Annotated[int, Meta(ge=0, description="Spare clones to keep restored.")] = 2
    ready_most: Annotated[
        int,
        Meta(
            ge=0,
            description="Spares to keep at most while many clones are asked for; never fewer than"
            " `ready`, whatever this says.",
        ),
    ] = 0
    standby: Annotated[
        int,
        Meta(
            ge=0,
            description="Hypervisors to keep waiting for the next restores, which are sooner done;"
            " each takes about 25 MB.",
        ),
    ] = 0
    total: Annotated[int, Meta(ge=1, description="Clones at most, whatever they are doing.")] = 16
    queue: Annotated[
        int, Meta(ge=0, description="Callers of one tenant that may wait for a clone.")
    ] = 256
    parallel_restores: Annotated[int, Meta(ge=1, description="Restores at most at one time.")] = 2
    memory_bytes: Annotated[
        Size | None,
        Meta(description="Memory for all clones of the template together; unset for no limit."),
    ] = None

    def limits(self, *, clone_bytes: int) -> Limits:
        """Return the limits of a pool whose clones may take `clone_bytes` each.

        Raises:
            InvalidRequestError: `invalid_limits`; not one clone fits.
        """
        return Limits(
            ready=self.ready,
            ready_most=self.ready_most,
            standby=self.standby,
            total=self.total,
            queue=self.queue,
            parallel_restores=self.parallel_restores,
            memory_bytes=self.memory_bytes,
            clone_bytes=clone_bytes,
        )


class RequestSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """`[requests]`: what one request may ask for."""

    body_bytes: Annotated[
        Size, Meta(description="Body of a JSON request; files have a limit of their own.")
    ] = 16 * MIB
    file_bytes: Annotated[Size, Meta(description="One file, up or down.")] = 1 * GIB
    output_bytes: Annotated[
        Size, Meta(description="Output that `/v1/run` returns; the rest is dropped and counted.")
    ] = 4 * MIB
    exec_timeout: Annotated[
        Seconds, Meta(description="Time that an execution gets when it asks for none.")
    ] = 60.0
    exec_timeout_most: Annotated[
        Seconds, Meta(description="Time that an execution may ask for.")
    ] = 3600.0
    sandbox_timeout: Annotated[
        Seconds, Meta(description="Time after which a sandbox ends when it asks for none.")
    ] = 300.0
    sandbox_timeout_most: Annotated[
        Seconds, Meta(description="Time that a sandbox may ask for, counted from the asking.")
    ] = 86400.0
    queue_wait: Annotated[
        Seconds, Meta(description="Time that a request waits for a clone when it asks for none.")
    ] = 30.0
    queue_wait_most: Annotated[
        Seconds, Meta(description="Time that a request may ask to wait for a clone.")
    ] = 600.0
    body_timeout: Annotated[
        Seconds, Meta(description="Time for a whole JSON body, and for each piece of a file.")
    ] = 60.0
    stall_timeout: Annotated[
        Seconds,
        Meta(description="Time that a client may take nothing of what holds an execution back."),
    ] = 300.0


class ApiSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """`[api]`: what all clients of the HTTP interface together may take."""

    connections: Annotated[
        int,
        Meta(ge=1, description="Open connections at most, idle ones too, each a descriptor."),
    ] = 1000
    stranger_timeout: Annotated[
        Seconds,
        Meta(description="Time after which a connection that has shown no good token is closed."),
    ] = 30.0
    bodies_bytes: Annotated[
        Size,
        Meta(
            description="JSON bodies of all requests that are worked on or wait; each caller may"
            " hold as much as is left for the others. At least twice `requests.body_bytes`."
        ),
    ] = 256 * MIB
    domain: Annotated[
        str,
        Meta(
            description="Domain below which ports of sandboxes have names, `8000-ID.DOMAIN`; with"
            " the port that clients use, if it is not the usual one.",
            pattern=r"^([a-z0-9.-]+(:[0-9]{1,5})?)?$",
            max_length=200,
        ),
    ] = ""
    certificate: Annotated[
        Path | None,
        Meta(description="Certificate chain in PEM; with it the server speaks TLS on its port."),
    ] = None
    certificate_key: Annotated[
        Path | None, Meta(description="The certificate's private key in PEM, without pass phrase.")
    ] = None
    port_connections: Annotated[
        int,
        Meta(
            ge=1,
            le=192,
            description="Connections to the ports of one sandbox at one time, at most 192.",
        ),
    ] = 128
    port_silence: Annotated[
        Seconds,
        Meta(description="Time after which a connection to a port is given up that says nothing."),
    ] = 600.0


class CheckpointSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """`[checkpoints]`: what is kept of sandboxes on disk."""

    paused_seconds: Annotated[
        Seconds, Meta(description="Time after which a sandbox that stays paused ends.")
    ] = 7 * 86400.0
    waiting: Annotated[
        int,
        Meta(
            ge=0,
            description="Hypervisors that wait, for each template of which sandboxes are paused,"
            " so that one is resumed sooner; each takes about 25 MB.",
        ),
    ] = 1
    children: Annotated[int, Meta(ge=1, description="Children that one fork may ask for.")] = 64
    import_bytes: Annotated[
        Size, Meta(description="Size of all files of an imported checkpoint, holes included.")
    ] = 64 * GIB


Most = Annotated[int, Meta(ge=0)] | Literal["unlimited"]


class TenantSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """`[tenants]`: what each tenant may have at one time, but the operator's own."""

    sandboxes: Annotated[
        Most, Meta(description="Sandboxes with a machine, runs too, that a tenant may have.")
    ] = 64
    paused: Annotated[Most, Meta(description="Paused sandboxes.")] = 64
    checkpoints: Annotated[Most, Meta(description="Checkpoints that it keeps.")] = 64
    vcpus: Annotated[Most, Meta(description="Virtual CPUs of all its machines together.")] = 128
    memory_bytes: Annotated[Most, Meta(description="Memory of all its machines together.")] = (
        64 * GIB
    )
    disk_bytes: Annotated[
        Most,
        Meta(
            description="Disk of all its checkpoints and paused sandboxes together; one is made"
            " when there is room for all of its machine's memory and disk."
        ),
    ] = 64 * GIB
    creates_per_minute: Annotated[
        Most,
        Meta(description="Sandboxes, runs and children that it may ask for in a minute."),
    ] = 600

    @property
    def quota(self) -> Quota:
        """The same as a value."""
        return Quota(
            **{
                name: None if most == "unlimited" else most
                for name, most in msgspec.structs.asdict(self).items()
            }
        )


class E2bSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """`[e2b]`: what E2B's clients find here."""

    aliases: Annotated[
        dict[str, tuple[str, ...]],
        Meta(
            description="Templates for names that they ask for: the first of each list that there"
            " is, unless a template has the very name."
        ),
    ] = msgspec.field(
        default_factory=lambda: {
            "base": ("code-interpreter", "python"),
            "code-interpreter-v1": ("code-interpreter", "python"),
        }
    )


class NetworkSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """`[network]`: what sandboxes are connected to; see networks.md."""

    default: Annotated[
        NetworkMode, Meta(description="Mode of a sandbox that asks for none; `/v1/run` has `none`.")
    ] = NetworkMode.NONE
    range: Annotated[
        str,
        Meta(description="Addresses between this host and its sandboxes; nobody else's here."),
    ] = "10.213.0.0/16"
    closed: Annotated[
        tuple[str, ...],
        Meta(description="Networks that no sandbox reaches, whatever its rules allow."),
    ] = ("169.254.0.0/16",)
    ready: Annotated[
        int, Meta(ge=0, description="Slots to have made ahead, once a sandbox has a network.")
    ] = 2
    dns: Annotated[
        list[str],
        Meta(description="Servers to ask on behalf of sandboxes; empty for those of the host."),
    ] = []
    up: Annotated[
        Size | None,
        Meta(description="Bytes a second that one sandbox sends at most, whatever it asks for."),
    ] = None
    down: Annotated[
        Size | None, Meta(description="Bytes a second that one sandbox receives at most.")
    ] = None
    capture_bytes: Annotated[
        Size, Meta(description="Size of a file of captured packets at most.")
    ] = 100 * MIB
    capture_seconds: Annotated[
        Seconds, Meta(description="Time that a capture of packets goes on at most.")
    ] = 600.0


class DeadlineSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """`[deadlines]`: when a machine that does not answer is given up."""

    boot: Annotated[
        Seconds,
        Meta(
            description="An image's boot and warm-up, when a template is made; or half of each of"
            " up to three tries to boot on a disk that was kept alone."
        ),
    ] = 300.0
    restore: Annotated[Seconds, Meta(description="One restore, all phases together.")] = 60.0
    hello: Annotated[Seconds, Meta(description="The agent's first answer after a restore.")] = 5.0
    identify: Annotated[Seconds, Meta(description="A clone's identity, confirmed.")] = 10.0
    warm: Annotated[Seconds, Meta(description="A clone's first, trivial execution.")] = 30.0
    activate: Annotated[
        Seconds, Meta(description="A ready clone's word that it is awake, once a caller has it.")
    ] = 10.0
    kill: Annotated[Seconds, Meta(description="The end of a machine that was killed.")] = 10.0
    drain: Annotated[
        Seconds, Meta(description="Requests under way, when a server hands over to the next.")
    ] = 30.0


class Settings(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """All settings; `load` makes them."""

    state: Annotated[
        Path,
        Meta(description="Directory of images, snapshots and the journal. Default for root."),
    ] = Path("/var/lib/vmpool")
    run: Annotated[
        Path,
        Meta(description="Directory of running clones; short, for it holds their sockets."),
    ] = Path("/var/lib/vmpool/run")
    listen: Annotated[
        str, Meta(description="Address and port of the HTTP interface; `[::1]:8700` for IPv6.")
    ] = "127.0.0.1:8700"
    insecure_no_tokens: Annotated[
        bool, Meta(description="Serve everybody who can connect; refused unless on loopback.")
    ] = False
    cpu_model: Annotated[
        CpuModel | None,
        Meta(
            description="Model of guests' processors, as `qemu-system-x86_64 -cpu help` lists"
            " them. Default: all that the host has, or that the emulation has.",
        ),
    ] = None
    on_stop: Annotated[
        OnStop,
        Meta(
            description="What becomes of running sandboxes when the server is stopped: `kill`, or"
            " `keep` for the next server to adopt. Paused ones and checkpoints stay in any case.",
        ),
    ] = OnStop.KILL
    pool: PoolSettings = PoolSettings()
    api: ApiSettings = ApiSettings()
    requests: RequestSettings = RequestSettings()
    tenants: TenantSettings = TenantSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    deadlines: DeadlineSettings = DeadlineSettings()
    network: NetworkSettings = NetworkSettings()
    e2b: E2bSettings = E2bSettings()
    templates: Annotated[
        dict[str, PoolSettings], Meta(description="Pools of single templates, by name.")
    ] = {}

    @property
    def address(self) -> Address:
        """`listen`, taken apart.

        Raises:
            HostError: `invalid_settings`; it is no address.
        """
        return Address.parse(self.listen)

    def pool_of(self, template: str) -> PoolSettings:
        """Return the pool settings of a template."""
        return self.templates.get(template, self.pool)


def load(
    path: Path | None = None, *, environ: Mapping[str, str] | None = None, uid: int | None = None
) -> Settings:
    """Return the settings of the first file there is, under the environment's.

    Args:
        path: The file; without it `$VMPOOL_CONFIG`, `/etc/vmpool/vmpool.toml`, then
            `~/.config/vmpool/vmpool.toml`. One that was named must exist.
        environ: The environment; this process's by default.
        uid: Whose default directories; this process's by default.

    Raises:
        HostError: `invalid_settings`; with the place of the mistake.
    """
    environ = os.environ if environ is None else environ
    uid = os.geteuid() if uid is None else uid
    source = _find(path, environ)
    raw = {} if source is None else _read(source)
    raw |= {name: environ[var] for var, name in ENVIRONMENT.items() if environ.get(var)}
    raw.setdefault("state", os.fspath(default_state(environ, uid)))
    raw.setdefault("run", f"{raw['state']}/run")
    _inherit(raw)
    try:
        settings = msgspec.convert(raw, Settings, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), source) from error
    _check(settings, source)
    return settings


def default_state(environ: Mapping[str, str], uid: int) -> Path:
    """Return the state directory of a user who names none."""
    if uid == 0:
        return Path("/var/lib/vmpool")
    home = Path(environ.get("HOME", "/"))
    return Path(environ.get("XDG_STATE_HOME") or home / ".local/state") / "vmpool"


def _find(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    if path is None and environ.get("VMPOOL_CONFIG"):
        path = Path(environ["VMPOOL_CONFIG"])
    if path is not None:
        return path
    config = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "/")) / ".config")
    places = (SYSTEM_FILE, config / "vmpool/vmpool.toml")
    return next((place for place in places if place.exists()), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _invalid(str(error), path) from error


def _inherit(raw: dict[str, Any]) -> None:
    """Give each template's table what it does not say itself from `[pool]`."""
    pool, templates = raw.get("pool", {}), raw.get("templates", {})
    if not isinstance(pool, dict) or not isinstance(templates, dict):
        return  # the conversion says what is wrong
    raw["templates"] = {
        name: pool | table if isinstance(table, dict) else table
        for name, table in templates.items()
    }


def _decode(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"Expected a path, got {value!r}")


def _check(settings: Settings, source: Path | None) -> None:
    try:
        address = settings.address
    except HostError as error:
        raise _invalid(error.message, source, error.remedy) from None
    for name, path in (("state", settings.state), ("run", settings.run)):
        if not path.is_absolute():
            raise _invalid(f"{name} is {os.fspath(path)!r}, not an absolute path", source)
    length = len(os.fsencode(settings.run))
    if length > MAX_RUN_LENGTH:
        raise _invalid(
            f"run is {os.fspath(settings.run)!r}, {length} bytes; with the names of sockets in it"
            f" only {MAX_RUN_LENGTH} fit",
            source,
            remedy="set run, or VMPOOL_RUN, to a shorter path, such as /run/vmpool",
        )
    if settings.insecure_no_tokens and not address.loopback:
        raise _invalid(
            f"insecure_no_tokens is set, and {settings.listen!r} is not a loopback address",
            source,
            remedy="listen on 127.0.0.1, or make tokens: vmpool token create",
        )
    if (settings.api.certificate is None) != (settings.api.certificate_key is None):
        raise _invalid("api.certificate and api.certificate_key go together", source)
    _check_requests(settings, source)


def _check_requests(settings: Settings, source: Path | None) -> None:
    requests = settings.requests
    if requests.body_bytes > settings.api.bodies_bytes // 2:
        raise _invalid("requests.body_bytes is above half of api.bodies_bytes", source)
    if requests.exec_timeout > requests.exec_timeout_most:
        raise _invalid("requests.exec_timeout is above requests.exec_timeout_most", source)
    if requests.sandbox_timeout > requests.sandbox_timeout_most:
        raise _invalid("requests.sandbox_timeout is above requests.sandbox_timeout_most", source)
    if requests.queue_wait > requests.queue_wait_most:
        raise _invalid("requests.queue_wait is above requests.queue_wait_most", source)


def _invalid(message: str, source: Path | None, remedy: str = "") -> HostError:
    place = "settings" if source is None else f"settings in {os.fspath(source)!r}"
    return HostError(
        f"{place}: {message}",
        code="invalid_settings",
        remedy=remedy or "docs/settings.md lists all settings",
    )
