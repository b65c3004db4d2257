"""Recipe: a directory that says what an image is made of, read and checked.

    recipe.toml   what it is: packages, defaults of its template, what it extends
    files/        copied over the root file system, owned by root
    setup.sh      run in the root file system when it is built, after files/ and the packages
    warm.py       run by the guest's interpreter before the template's snapshot is taken

All but `recipe.toml` may be missing. Code needs no change for a new recipe.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from vmpool.errors import ImageError, NotFoundError
from vmpool.model import MIB

MIRROR = "http://deb.debian.org/debian"
SECURITY_MIRROR = "http://deb.debian.org/debian-security"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""What an image may be called; also a safe file name."""

_MAX_FILE = MIB
_MAX_DEPTH = 8

_Line = Annotated[str, Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
_Suite = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,40}$")]
_Mirror = Annotated[str, Meta(pattern=r"^(https?|file|copy)://?[!-~]{1,200}$")]
_Package = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9+.-]{0,100}$")]
_Glob = Annotated[str, Meta(pattern=r"^/[^\x00]{1,200}$")]


class Defaults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a template made of the image gets when nobody says otherwise.

    Attributes:
        disk_mib: Size of the writable scratch disk; 0 keeps what a guest writes in its RAM.
        ready: Clones kept restored and waiting.
    """

    memory_mib: Annotated[int, Meta(ge=128, le=1 << 20)] = 256
    vcpus: Annotated[int, Meta(ge=1, le=64)] = 1
    disk_mib: Annotated[int, Meta(ge=0, le=1 << 24)] = 0
    ready: Annotated[int, Meta(ge=0, le=1024)] = 4

    @property
    def memory_bytes(self) -> int:
        """Guest RAM."""
        return self.memory_mib * MIB

    @property
    def disk_bytes(self) -> int:
        """Size of the writable scratch disk, 0 for none."""
        return self.disk_mib * MIB


class RecipeFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `recipe.toml` may say.

    Attributes:
        extends: Name of the recipe whose packages, files and setup come first.
        suite: Debian release; that of the extended recipe, or `trixie`.
        strip: Shell patterns of absolute paths left out of the image.
        template: Defaults for templates; not inherited.
    """

    description: _Line
    extends: Annotated[str, Meta(pattern=rf"^{NAME.pattern}$")] | None = None
    suite: _Suite | None = None
    mirror: _Mirror | None = None
    security_mirror: _Mirror | None = None
    packages: Annotated[tuple[_Package, ...], Meta(max_length=2000)] = ()
    strip: Annotated[tuple[_Glob, ...], Meta(max_length=200)] = ()
    template: Defaults = msgspec.field(default_factory=Defaults)


# Has the types made ready here, as msgspec crashes when two threads are the first to need one.
msgspec.json.Decoder(RecipeFile)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where Debian packages come from."""

    suite: str = "trixie"
    mirror: str = MIRROR
    security_mirror: str = SECURITY_MIRROR

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines of sources.list(5), security updates among them."""
        return (
            f"deb {self.mirror} {self.suite} main",
            f"deb {self.mirror} {self.suite}-updates main",
            f"deb {self.security_mirror} {self.suite}-security main",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A recipe with all that it extends.

    Attributes:
        directories: Those of the chain, the one that extends nothing first.
        packages: Of the whole chain, sorted.
        warm: The warm-up script nearest to this recipe, `None` when the chain has none.
    """

    name: str
    description: str
    directories: tuple[Path, ...]
    source: Source
    packages: tuple[str, ...]
    strip: tuple[str, ...]
    defaults: Defaults
    warm: bytes | None


def shipped() -> Path:
    """Return the directory of the recipes that come with vmpool, in a wheel or in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "images"
    return installed if installed.is_dir() else package.parent / "images"


def find(wanted: str, directories: tuple[Path, ...]) -> Path:
    """Return the directory of a recipe.

    Args:
        wanted: A path when it holds a slash, else a name looked up in `directories` in order.
        directories: Where recipes are; the shipped ones come last by themselves.

    Raises:
        NotFoundError: `recipe_not_found`.
    """
    if "/" in wanted:
        places = [Path(wanted)]
    elif NAME.fullmatch(wanted):
        places = [directory / wanted for directory in (*directories, shipped())]
    else:
        places = []
    for place in places:
        if (place / "recipe.toml").is_file():
            return place.resolve()
    raise NotFoundError(
        f"no recipe {wanted[:200]!r}",
        code="recipe_not_found",
        remedy="a recipe is a directory with a recipe.toml: "
        f"give its path, or its name below {directories[0] if directories else shipped()}",
    )


def load(directory: Path, directories: tuple[Path, ...] = ()) -> Recipe:
    """Read the recipe in `directory` and all that it extends.

    Raises:
        ImageError: `recipe_invalid`: a file is not as it should be; the message names file and
            field.
        NotFoundError: `recipe_not_found`: it extends what is not there.
    """
    if not NAME.fullmatch(directory.name):
        raise _invalid(directory, "its name must be lower-case letters, digits, '.', '_' and '-'")
    chain = [(directory, _decode(directory / "recipe.toml"))]
    while (parent := chain[0][1].extends) is not None:
        place = find(parent, directories)
        if len(chain) == _MAX_DEPTH or place in (known for known, _ in chain):
            raise _invalid(directory / "recipe.toml", f"`extends` goes in a circle at {parent!r}")
        chain.insert(0, (place, _decode(place / "recipe.toml")))
    own = chain[-1][1]
    warm = None
    for place, _ in chain:
        script = place / "setup.sh"
        if script.exists() and not _read(script).startswith(b"#!"):
            raise _invalid(script, "its first line must name an interpreter, such as #!/bin/sh")
        if (place / "warm.py").exists():
            warm = _read(place / "warm.py")
    return Recipe(
        name=directory.name,
        description=own.description,
        directories=tuple(place for place, _ in chain),
        source=_source([one for _, one in chain]),
        packages=tuple(sorted({package for _, one in chain for package in one.packages})),
        strip=tuple(sorted({pattern for _, one in chain for pattern in one.strip})),
        defaults=own.template,
        warm=warm,
    )


def _source(chain: list[RecipeFile]) -> Source:
    fields = ("suite", "mirror", "security_mirror")
    said = {
        field: value
        for one in chain
        for field in fields
        if (value := getattr(one, field)) is not None
    }
    return Source(**said)


def _decode(file: Path) -> RecipeFile:
    try:
        return msgspec.convert(tomllib.loads(_read(file).decode()), RecipeFile)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as err:
        raise _invalid(file, str(err)) from err


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as content:
            data = content.read(_MAX_FILE + 1)
    except OSError as err:
        raise _invalid(file, err.strerror or str(err)) from err
    if len(data) > _MAX_FILE:
        raise _invalid(file, f"it is larger than {_MAX_FILE} bytes")
    return data


def _invalid(file: Path, why: str) -> ImageError:
    return ImageError(f"{file}: {why}", code="recipe_invalid")
