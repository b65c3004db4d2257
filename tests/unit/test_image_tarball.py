"""An archive is read into a tree; what has no business in an image is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tarfile
from typing import TYPE_CHECKING

import pytest

from vmpool.errors import ImageError
from vmpool.image import tarball
from vmpool.image.tarball import Limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmpool.image.tree import Tree


def nothing() -> None:
    """Let the work go on."""


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def archive(path: Path, *entries: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for one in entries:
            info, content = one if isinstance(one, tuple) else (one, b"")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def read(path: Path, limits: Limits | None = None) -> Tree:
    return tarball.read(path, limits=limits or Limits(), check=nothing)


def test_files_links_owners_and_modes_come_as_they_are(tmp_path: Path) -> None:
    tree = read(
        archive(
            tmp_path / "t",
            entry("./", tarfile.DIRTYPE, mode=0o755),
            (entry("./bin/tool", mode=0o4755, uid=3, gid=4), b"tool"),
            entry("bin/same", tarfile.LNKTYPE, linkname="./bin/tool"),
            entry("sbin", tarfile.SYMTYPE, linkname="bin"),
        )
    )
    tool = tree.find("/sbin/same")
    assert tool is not None
    assert (tool.read(), tool.mode & 0o7777, tool.uid, tool.gid) == (b"tool", 0o4755, 3, 4)
    assert tree.root.children["sbin"].target == "bin"


def test_an_entry_below_a_link_lands_where_the_link_points_inside_the_tree(tmp_path: Path) -> None:
    tree = read(
        archive(
            tmp_path / "t",
            entry("real", tarfile.DIRTYPE, mode=0o755),
            entry("way", tarfile.SYMTYPE, linkname="/../../real"),
            (entry("way/in"), b"x"),
        )
    )
    assert list(tree.root.children["real"].children) == ["in"]


def test_capabilities_survive_and_the_host_s_own_attributes_do_not(tmp_path: Path) -> None:
    value = b"\x01\0\0\2\xff\0\0\0".decode("utf-8", "surrogateescape")
    info = entry(
        "ping",
        pax_headers={
            "SCHILY.xattr.security.capability": value,
            "SCHILY.xattr.security.selinux": "unconfined",
            "SCHILY.xattr.trusted.overlay.redirect": "/etc",
            "SCHILY.xattr.user.note": "mine",
        },
    )
    path = tmp_path / "t"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as tar:
        tar.addfile(info)
    node = read(path).find("ping")
    assert node is not None
    assert node.xattrs == {
        "security.capability": b"\x01\0\0\2\xff\0\0\0",
        "user.note": b"mine",
    }


def test_what_the_guest_fills_itself_is_left_empty(tmp_path: Path) -> None:
    tree = read(
        archive(
            tmp_path / "t",
            entry("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
            entry("dev/pts", tarfile.DIRTYPE),
            (entry("run/secret"), b"x"),
            (entry("etc/kept"), b"x"),
        )
    )
    assert tree.root.children["dev"].children == {}
    assert "secret" not in str(tree.find("run"))
    assert tree.find("etc/kept") is not None


@pytest.mark.parametrize(
    "bad",
    [
        entry("../etc/passwd"),
        entry("a/../../b"),
        entry("/etc/passwd"),
        entry("sda", tarfile.BLKTYPE, devmajor=8, devminor=0),
        entry("whiteout", tarfile.CHRTYPE),
        entry("pipe", tarfile.FIFOTYPE),
        entry("hard", tarfile.LNKTYPE, linkname="/etc/passwd"),
        entry("hard", tarfile.LNKTYPE, linkname="../etc/passwd"),
        entry("hard", tarfile.LNKTYPE, linkname="nowhere"),
        entry("n" * 256),
        entry("soft", tarfile.SYMTYPE, linkname="x" * 5000),
        entry("owned", uid=-2),
        entry("fat", pax_headers={"SCHILY.xattr.user.fat": "x" * 4000}),
    ],
    ids=lambda info: f"{info.name[:12]} {info.type!r} {info.linkname[:12]}",
)
def test_an_entry_with_no_business_in_an_image_is_refused(
    tmp_path: Path, bad: tarfile.TarInfo
) -> None:
    with pytest.raises(ImageError) as caught:
        read(archive(tmp_path / "t", (entry("fine"), b"x"), bad))
    assert caught.value.error_code == "image_path_unsafe"


def test_a_hard_link_to_a_directory_is_refused(tmp_path: Path) -> None:
    loop = (
        entry("d", tarfile.DIRTYPE, mode=0o755),
        entry("d/again", tarfile.LNKTYPE, linkname="d"),
    )
    with pytest.raises(ImageError, match="hard link to nothing"):
        read(archive(tmp_path / "t", *loop))


@pytest.mark.parametrize("limits", [Limits(entries=2), Limits(size_bytes=20)])
def test_an_archive_beyond_its_limits_is_refused(tmp_path: Path, limits: Limits) -> None:
    path = archive(tmp_path / "t", *((entry(f"f{n}"), bytes(10)) for n in range(3)))
    with pytest.raises(ImageError) as caught:
        read(path, limits)
    assert caught.value.error_code == "image_tarball_too_large"


def test_a_header_that_claims_a_huge_length_is_not_read(tmp_path: Path) -> None:
    head = entry("pax", tarfile.XHDTYPE)
    head.size = 6 << 30
    path = tmp_path / "t"
    with path.open("wb") as file:
        file.write(head.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(7 << 30)  # a hole
    with pytest.raises(ImageError, match="header of 6442450944 bytes"):
        read(path)


@pytest.mark.parametrize("cut", [100, 512, 900, 1024, 1500, 1536, 2047])
def test_an_archive_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    path = archive(tmp_path / "t", (entry("one"), bytes(300)), (entry("two"), bytes(300)))
    read(path)
    with path.open("r+b") as file:
        file.truncate(cut)  # in a header or a content, or after one: each has a block of 512
    with pytest.raises(ImageError) as caught:
        read(path)
    assert caught.value.error_code == "image_tarball_damaged"


@pytest.mark.parametrize("name", ["manifest.json", "oci-layout"])
def test_the_layers_of_an_image_are_refused_with_the_command_that_helps(
    tmp_path: Path, name: str
) -> None:
    path = archive(tmp_path / "t", entry(name), entry("blobs/sha256", tarfile.DIRTYPE))
    with pytest.raises(ImageError) as caught:
        read(path)
    assert caught.value.error_code == "image_tarball_layers"
    assert "docker export" in caught.value.remedy
    read(archive(tmp_path / "root", entry(name), entry("usr/bin/python3.13")))


@pytest.mark.parametrize(
    ("kind", "said"),
    [(tarfile.BLKTYPE, "a device"), (tarfile.FIFOTYPE, "a named pipe"), (b"Z", "neither a file")],
)
def test_what_is_refused_is_named(tmp_path: Path, kind: bytes, said: str) -> None:
    with pytest.raises(ImageError, match=f"refused 'odd': it is {said}"):
        read(archive(tmp_path / "t", entry("odd", kind)))


@pytest.mark.parametrize("content", [b"", b"no archive at all" * 100, bytes(10_240)])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        read(path)
    assert caught.value.error_code == "image_tarball_damaged"


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, bz2.compress])
def test_a_compressed_archive_is_unpacked(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    plain = archive(tmp_path / "plain", (entry("file"), b"content")).read_bytes()
    packed = tmp_path / "packed"
    packed.write_bytes(compress(plain))
    target = tmp_path / "target"
    with target.open("wb") as file:
        assert tarball.unpack(packed, file, limits=Limits(), check=nothing)
    assert target.read_bytes() == plain


def test_a_plain_archive_is_used_where_it_is(tmp_path: Path) -> None:
    plain = archive(tmp_path / "plain", (entry("file"), b"content"))
    target = io.BytesIO()
    assert not tarball.unpack(plain, target, limits=Limits(), check=nothing)
    assert target.getvalue() == b""


def test_a_compressed_archive_stops_growing_at_its_limit(tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(bytes(50 << 20)))
    target = io.BytesIO()
    with pytest.raises(ImageError) as caught:
        tarball.unpack(packed, target, limits=Limits(size_bytes=2 << 20), check=nothing)
    assert caught.value.error_code == "image_tarball_too_large"
    assert len(target.getvalue()) <= 2 << 20


def test_a_damaged_compression_is_refused(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(1 << 19)
    whole = [compress(content) for compress in (gzip.compress, lzma.compress, bz2.compress)]
    cut = [data[:-20] for data in whole]
    garbled = [data[:5000] + b"????????" * 9 + data[5072:] for data in whole]
    for data in cut + garbled:
        packed = tmp_path / "packed"
        packed.write_bytes(data)
        with pytest.raises(ImageError) as caught:
            tarball.unpack(packed, io.BytesIO(), limits=Limits(), check=nothing)
        assert caught.value.error_code == "image_tarball_damaged"


def test_zstd_is_refused_with_the_command_that_helps(tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
    with pytest.raises(ImageError) as caught:
        tarball.unpack(packed, io.BytesIO(), limits=Limits(), check=nothing)
    assert "zstd -d" in caught.value.remedy
