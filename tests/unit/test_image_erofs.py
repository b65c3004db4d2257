"""What is written as erofs reads back as it was, and always as the same bytes."""

from __future__ import annotations

import hashlib
import shutil
import stat
import subprocess
import tempfile
import uuid
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.erofs_reader import Reader
from vmpool.errors import ImageError
from vmpool.image import erofs
from vmpool.image.tree import Node, Slice, Tree, directory, file, link

if TYPE_CHECKING:
    from pathlib import Path

UUID = uuid.UUID(int=7)
MTIME = 1_700_000_000


def nothing() -> None:
    """Let the work go on."""


def written(tree: Tree) -> bytes:
    with tempfile.TemporaryFile() as target:
        erofs.write(tree, target, uuid=UUID, mtime=MTIME, check=nothing)
        target.seek(0)
        return target.read()


def small_tree() -> Tree:
    tree = Tree()
    tree.put("bin/tool", file(b"\x7fELF" * 3000, mode=0o755))
    tree.put("bin/same", tree.root.children["bin"].children["tool"])
    tree.put("etc/hosts", file(b"127.0.0.1 localhost\n"))
    tree.put("etc/alternatives/x", link("/bin/tool"))
    tree.put("home/user", directory(mode=0o700, uid=1000, gid=1000))
    tree.put("big-owner", file(b"x", uid=100_000, gid=70_000))
    tree.put("empty", file(b""))
    tree.root.children["bin"].children["tool"].xattrs["security.capability"] = bytes(20)
    tree.root.children["empty"].xattrs["user.note"] = b"odd"
    return tree


names = st.text(
    st.characters(exclude_characters="/\0", max_codepoint=0x2FFF, exclude_categories=["Cs"]),
    min_size=1,
    max_size=40,
).filter(lambda name: name not in {".", ".."})
sizes = st.one_of(
    st.integers(0, 200),
    st.sampled_from([4000, 4031, 4032, 4064, 4065, 4095, 4096, 4097, 8192, 8200, 20_000]),
)
ids = st.sampled_from([0, 1000, 65_535, 65_536, 4_000_000_000])
files = st.builds(
    lambda size, fill, mode, uid, gid: file(bytes([fill]) * size, mode=mode, uid=uid, gid=gid),
    sizes,
    st.integers(1, 255),
    st.integers(0, 0o7777),
    ids,
    ids,
)
links = st.builds(lambda name, size: link(name * size), names, st.integers(1, 90))
nodes = st.recursive(
    st.one_of(files, links),
    lambda below: st.builds(
        lambda children, mode, uid: Node(
            mode=stat.S_IFDIR | mode, uid=uid, gid=0, children=children
        ),
        st.dictionaries(names, below, max_size=6),
        st.integers(0, 0o7777),
        ids,
    ),
    max_leaves=12,
)


def expected(tree: Tree) -> dict[str, tuple[int, int, int, bytes]]:
    return {
        path: (
            node.mode,
            node.uid,
            node.gid,
            b"" if node.is_directory else node.target.encode() if node.is_link else node.read(),
        )
        for path, node in tree.walk()
    }


@settings(deadline=None, max_examples=25)
@given(children=st.dictionaries(names, nodes, max_size=8))
def test_any_tree_reads_back_as_it_was(children: dict[str, Node]) -> None:
    tree = Tree()
    tree.root.children.update(children)
    found = Reader(written(tree)).files()
    assert {
        path: (one.mode, one.uid, one.gid, one.content) for path, one in found.items()
    } == expected(tree)


def test_names_of_one_node_are_one_inode() -> None:
    found = Reader(written(small_tree())).files()
    assert found["bin/tool"] == found["bin/same"]
    assert found["bin/tool"].links == 2
    assert found["etc"].links == 3
    assert found["etc/hosts"].links == 1


def test_capabilities_and_user_attributes_are_kept() -> None:
    found = Reader(written(small_tree())).files()
    assert found["bin/tool"].xattrs == {"security.capability": bytes(20)}
    assert found["empty"].xattrs == {"user.note": b"odd"}
    assert found["etc/hosts"].xattrs == {}


def test_a_directory_of_many_blocks_keeps_every_name() -> None:
    tree = Tree()
    wanted = {f"{'n' * 60}-{number:05}" for number in range(700)}
    for name in wanted:
        tree.put(f"many/{name}", file(name.encode()))
    found = Reader(written(tree)).files()
    assert {path for path in found if path.startswith("many/")} == {f"many/{n}" for n in wanted}


def test_the_same_tree_gives_the_same_bytes_on_every_machine() -> None:
    backwards = Tree()
    for name in reversed(small_tree().root.children):
        backwards.root.children[name] = small_tree().root.children[name]
    assert written(backwards) == written(small_tree())
    # A digest names an image, so this one changes only together with the builder's stage number.
    digest = hashlib.sha256(written(small_tree())).hexdigest()
    assert digest == "77082ed01741bc23bec306f6f5661ed3cd255eefb910399a037da638b6c166b6"


def test_contents_are_copied_from_where_they_are(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"-" * 10 + b"a" * 5000 + b"-" * 10)
    tree = Tree()
    tree.put("five", file(Slice(file=source, offset=10, size=5000)))
    assert Reader(written(tree)).files()["five"].content == b"a" * 5000


@pytest.mark.parametrize("size", [4, 5000])
def test_a_source_that_became_shorter_is_noticed(tmp_path: Path, size: int) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"a" * (size - 1))
    tree = Tree()
    tree.put("short", file(Slice(file=source, offset=0, size=size)))
    with pytest.raises(ImageError, match="truncated"):
        written(tree)


@pytest.mark.skipif(shutil.which("fsck.erofs") is None, reason="erofs-utils is not installed")
def test_the_reference_checker_finds_nothing(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(written(small_tree()))
    done = subprocess.run(["fsck.erofs", image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
