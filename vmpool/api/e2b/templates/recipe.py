"""Recipe: what a template is to be built of, step by step. Pure.

It says what each step changes for those behind it, and by what name the state after it is known:
the same steps over the same base are the same state. How a step is done, it does not know.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Final

import msgspec

from vmpool.api.bodies import Env
from vmpool.api.e2b.defaults import Defaults
from vmpool.api.limits import check_arguments
from vmpool.errors import InvalidRequestError
from vmpool.model import DEFAULT_USER
from vmpool.vault import STEP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmpool.api.e2b.templates.bodies import WireStep

HOME: Final = f"/home/{DEFAULT_USER}"

_DIGITS: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A shell line; `user` is empty for who is set."""

    line: str
    user: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Files of the caller's, found by `source` in the archive called `files`.

    Attributes:
        target: In the guest, absolute or relative to the directory that is set.
        owner: `user` or `user:group`, empty for who is set.
        mode: In octal digits, empty for what they had.
    """

    source: str
    target: str
    files: str
    owner: str = ""
    mode: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enter:
    """The directory from here on."""

    directory: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Become:
    """The account from here on."""

    user: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Know:
    """Variables from here on."""

    env: dict[str, str]


Change = Run | Copy | Enter | Become | Know


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step.

    Attributes:
        fresh: Whether what was kept of an earlier build does not count, from here on.
    """

    change: Change
    fresh: bool = False

    @property
    def acts(self) -> bool:
        """Whether it does something in the guest, beyond what is told to those behind it."""
        return isinstance(self.change, Run | Copy | Enter)

    @property
    def title(self) -> str:
        """How it stands in the log."""
        match self.change:
            case Run(line=line):
                return f"RUN {line}"
            case Copy(source=source, target=target):
                return f"COPY {source} {target}"
            case Enter(directory=directory):
                return f"WORKDIR {directory}"
            case Become(user=user):
                return f"USER {user}"
            case Know(env=env):
                return f"ENV {' '.join(env)}"  # their values may be nobody's to see


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A whole build.

    Attributes:
        base: The template that it begins with, as the caller calls it.
        start: Shell line that is started in the end and goes on in each sandbox; empty for none.
        ready: Shell line that succeeds once all is ready to be saved; empty for none.

    Raises:
        InvalidRequestError, TooLargeError: Its variables together are no environment.
    """

    base: str
    steps: tuple[Step, ...] = ()
    start: str = ""
    ready: str = ""

    def __post_init__(self) -> None:
        env: dict[str, str] = {}
        for step in self.steps:
            if isinstance(step.change, Know):
                env |= step.change.env
        _check(env)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What holds for a command: who runs it, where, and in which environment."""

    user: str = DEFAULT_USER
    directory: str = HOME
    env: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, defaults: Defaults) -> Setting:
        """Return what holds before the first step, in a sandbox of the base."""
        return cls(user=defaults.user, directory=defaults.directory or HOME)

    def after(self, step: Step) -> Setting:
        """Return what holds behind a step."""
        match step.change:
            case Enter(directory=directory):
                return replace(self, directory=self.path(directory))
            case Become(user=user):
                return replace(self, user=user)
            case Know(env=env):
                return replace(self, env=self.env | env)
            case Run() | Copy():
                return self

    def path(self, path: str) -> str:
        """Return a path of a step as an absolute one; a slash at its end stays."""
        whole = posixpath.normpath(posixpath.join(self.directory, path))
        return f"{whole}/" if path.endswith("/") and whole != "/" else whole

    @property
    def kept(self) -> dict[str, str]:
        """What sandboxes have in their environment so that all of it holds there, too."""
        return self.env | Defaults(user=self.user, directory=self.directory).environment


def names(recipe: Recipe, base: str) -> Iterator[str]:
    """Yield the name of the state after each step.

    Args:
        base: What the base is now, whatever it is called.
    """
    name = hashlib.sha256(base.encode()).hexdigest()
    for step in recipe.steps:
        said = json.dumps([name, type(step.change).__name__, asdict(step.change)], sort_keys=True)
        name = hashlib.sha256(said.encode()).hexdigest()
        yield STEP + name[:_DIGITS]


def _check(env: dict[str, str]) -> None:
    """Refuse variables that no sandbox could be created with: templates keep them."""
    try:
        msgspec.convert(env, Env)
    except msgspec.ValidationError as err:
        raise InvalidRequestError(f"the variables of 'ENV' steps: {err}") from err
    check_arguments((), env)


def step_of(wire: WireStep, *, fresh: bool) -> Step:
    """Return a step as it was sent.

    Raises:
        InvalidRequestError: It is no step, or has not the arguments that it must have.
    """
    return Step(change=_change(wire), fresh=fresh or wire.force)


def _change(wire: WireStep) -> Change:
    arguments = wire.args
    match wire.type, arguments:
        case "RUN", [line]:
            return Run(line=line)
        case "RUN", [line, user]:
            return Run(line=line, user=user)
        case "COPY", [source, target, *rest] if len(rest) <= 2 and wire.files_hash:
            owner, mode = (*rest, "", "")[:2]
            if mode and (len(mode) > 4 or set(mode) - set("01234567")):
                raise InvalidRequestError(f"{mode[:64]!r} is no mode in octal digits")
            files = wire.files_hash
            return Copy(source=source, target=target, files=files, owner=owner, mode=mode)
        case "WORKDIR", [directory]:
            return Enter(directory=directory)
        case "USER", [user]:
            return Become(user=user)
        case "ENV", [*pairs] if pairs and len(pairs) % 2 == 0 and all(pairs[::2]):
            return Know(env=dict(zip(pairs[::2], pairs[1::2], strict=True)))
        case _:
            raise InvalidRequestError(
                f"{len(arguments)} arguments are not what a step {wire.type[:64]!r} takes"
            )
