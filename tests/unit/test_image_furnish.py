"""A root file system gets an account, an agent and a blank identity, whatever Linux it is."""

from __future__ import annotations

import struct

import pytest

from vmpool.errors import ImageError
from vmpool.image import account, furnish, interpreter
from vmpool.image.furnish import EPOCH
from vmpool.image.interpreter import Interpreter
from vmpool.image.tree import Tree, directory, file, link

PROGRAM = b"\x7fELF"


def nothing() -> None:
    """Let the work go on."""


def linux(*, python: str = "usr/bin/python3.13") -> Tree:
    tree = Tree()
    tree.put("etc/passwd", file(b"root:x:0:0:root:/root:/bin/bash\n"))
    tree.put("etc/group", file(b"root:x:0:\nsudo:x:27:\n"))
    tree.put("etc/shadow", file(b"root:*:1:0:99999:7:::", mode=0o640, gid=42))
    tree.put("etc/sudoers.d", directory(mode=0o750))
    tree.put("usr/bin/bash", file(PROGRAM, mode=0o755))
    tree.put("bin", link("usr/bin"))
    tree.put(python, file(PROGRAM, mode=0o755))
    tree.put("usr/bin/python3", link("python3.13"))
    return tree


def text(tree: Tree, path: str) -> str:
    node = tree.find(path)
    assert node is not None, path
    return node.read().decode()


def furnished(tree: Tree, warm: bytes | None = None) -> Interpreter:
    return furnish.furnish(tree, agent=b"agent", warm=warm, check=nothing)


def test_the_account_has_a_home_a_shell_and_sudo() -> None:
    tree = linux()
    account.add(tree)
    assert text(tree, "etc/passwd").splitlines()[-1] == "user:x:1000:1000::/home/user:/bin/bash"
    assert text(tree, "etc/group").splitlines()[-1] == "user:x:1000:"
    assert text(tree, "etc/shadow") == "root:*:1:0:99999:7:::\nuser:*:1::::::\n"
    assert text(tree, "etc/sudoers.d/vmpool") == "user ALL=(ALL:ALL) NOPASSWD: ALL\n"
    home = tree.find("home/user")
    assert home is not None
    assert (home.uid, home.gid) == (1000, 1000)
    assert home.children[".profile"].uid == 1000
    shadow = tree.find("etc/shadow")
    assert shadow is not None
    assert (shadow.mode & 0o777, shadow.gid) == (0o640, 42)


def test_a_home_begins_as_the_system_s_skeleton_does() -> None:
    tree = linux()
    tree.put("etc/skel/.cache/fonts", file(b"known", mode=0o640))
    account.add(tree)
    home = tree.find("home/user")
    assert home is not None
    assert list(home.children) == [".cache"]
    copy = tree.find("home/user/.cache/fonts")
    skeleton = tree.find("etc/skel/.cache/fonts")
    assert copy is not None
    assert skeleton is not None
    assert (copy.read(), copy.uid, copy.mode & 0o777) == (b"known", 1000, 0o640)
    assert skeleton.uid == 0


def test_a_taken_number_is_not_given_twice() -> None:
    tree = linux()
    tree.put("etc/passwd", file(b"root:x:0:0::/root:/bin/sh\nnode:x:1000:1000::/home/node:\n"))
    tree.put("etc/group", file(b"root:x:0:\nnode:x:1000:\ndocker:x:1001:\n"))
    account.add(tree)
    assert "user:x:1002:1002::/home/user:/bin/bash\n" in text(tree, "etc/passwd")


def test_an_account_of_that_name_keeps_its_numbers() -> None:
    tree = linux()
    there = b"root:x:0:0::/root:/bin/sh\nuser:x:1234:100::/srv/user:/bin/sh\n"
    tree.put("etc/passwd", file(there))
    account.add(tree)
    assert text(tree, "etc/passwd").encode() == there
    home = tree.find("srv/user")
    assert home is not None
    assert (home.uid, home.gid) == (1234, 100)


def test_a_root_without_account_files_or_bash_or_sudo_gets_what_it_can_use() -> None:
    tree = Tree()
    account.add(tree)
    assert text(tree, "etc/passwd").splitlines() == [
        "root:x:0:0:root:/root:/bin/sh",
        "user:x:1000:1000::/home/user:/bin/sh",
    ]
    assert tree.find("etc/sudoers.d") is None
    assert tree.find("etc/shadow") is None


@pytest.mark.parametrize("line", [b"user\n", b"user:x:many:0::/home/user:/bin/sh\n"])
def test_account_files_that_are_not_are_refused(line: bytes) -> None:
    tree = linux()
    tree.put("etc/passwd", file(line))
    with pytest.raises(ImageError) as caught:
        account.add(tree)
    assert caught.value.error_code == "image_accounts_malformed"


def test_furnishing_twice_changes_nothing_more() -> None:
    tree = linux()
    furnished(tree)
    once = {path: (node.mode, node.content, node.target) for path, node in tree.walk()}
    furnished(tree)
    assert {path: (node.mode, node.content, node.target) for path, node in tree.walk()} == once


def test_agent_and_warm_up_are_where_the_guest_looks() -> None:
    tree = linux()
    assert furnished(tree, b"import this") == Interpreter(path="/usr/bin/python3", version=(3, 13))
    assert text(tree, "usr/lib/vmpool/agent.pyz") == "agent"
    assert text(tree, "usr/lib/vmpool/warm.py") == "import this"
    assert tree.root.children["usr"].children["bin"].children["python"].target == (
        "/usr/bin/python3"
    )
    furnished(tree)
    assert tree.find("usr/lib/vmpool/warm.py") is None


def test_nothing_of_one_machine_is_left_for_all() -> None:
    tree = linux()
    for path in (
        "etc/ssh/ssh_host_rsa_key",
        "etc/ssh/ssh_host_rsa_key.pub",
        "var/lib/systemd/random-seed",
        "var/lib/dbus/machine-id",
        "var/log/apt/term.log",
        "var/cache/ldconfig/aux-cache",
        "etc/passwd-",
    ):
        tree.put(path, file(b"of one machine"))
    tree.put("etc/machine-id", file(b"0123456789abcdef0123456789abcdef\n"))
    furnished(tree)
    left = {path for path, node in tree.walk() if node.content == b"of one machine"}
    assert left == set()
    assert text(tree, "etc/machine-id") == ""
    assert tree.find("var/log/apt") is not None


def test_an_image_does_not_show_who_built_it() -> None:
    def built_as(apt_account: int) -> dict[str, tuple[int, int]]:
        tree = linux()
        tree.put("var/lib/apt/lists/partial", directory(mode=0o700, uid=apt_account))
        tree.put("var/cache/apt/archives/partial", directory(mode=0o700, uid=apt_account))
        furnished(tree)
        return {path: (node.uid, node.mode) for path, node in tree.walk()}

    assert built_as(0) == built_as(42)


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        (["usr/bin/python3.11"], "/usr/bin/python3.11"),
        (["usr/local/bin/python3.12", "usr/bin/python3.6"], "/usr/local/bin/python3.12"),
        (["usr/local/bin/python3.12", "usr/bin/python3.9"], "/usr/local/bin/python3.12"),
    ],
)
def test_the_newest_python_that_will_do_is_found(present: list[str], chosen: str) -> None:
    tree = Tree()
    for path in present:
        tree.put(path, file(PROGRAM, mode=0o755))
    assert interpreter.find(tree).path == chosen


def test_a_python_behind_absolute_links_is_found() -> None:
    tree = Tree()
    tree.put("usr/libexec/python3.12", file(PROGRAM, mode=0o755))
    tree.put("etc/alternatives/python3", link("/usr/libexec/python3.12"))
    tree.put("usr/bin/python3", link("/etc/alternatives/python3"))
    assert interpreter.find(tree) == Interpreter(path="/usr/bin/python3", version=(3, 12))


@pytest.mark.parametrize(
    ("path", "mode", "said"),
    [
        ("usr/bin/python3.8", 0o755, "/usr/bin/python3.8 is 3.8"),
        ("usr/bin/python3.12", 0o644, "no Python 3.9"),
        ("usr/bin/perl", 0o755, "no Python 3.9"),
    ],
)
def test_without_a_python_that_will_do_there_is_no_image(path: str, mode: int, said: str) -> None:
    tree = Tree()
    tree.put(path, file(PROGRAM, mode=mode))
    with pytest.raises(ImageError, match=said) as caught:
        interpreter.find(tree)
    assert caught.value.error_code == "image_without_python"


def test_links_in_a_circle_lead_nowhere() -> None:
    tree = Tree()
    tree.put("usr/bin/python3", link("python3.12"))
    tree.put("usr/bin/python3.12", link("python3"))
    with pytest.raises(ImageError):
        interpreter.find(tree)


@pytest.mark.parametrize("flags", [0, 1, 3])
def test_compiled_modules_are_valid_for_the_one_time_that_files_show(flags: int) -> None:
    tree = linux()
    stale = struct.pack("<4sIII", b"\xf3\r\r\n", flags, 1, 1) + b"code"
    tree.put("lib/p/m.py", file(b"x = 1\n"))
    tree.put("lib/p/__pycache__/m.cpython-313.pyc", file(stale))
    tree.put("lib/p/__pycache__/m.cpython-313.opt-1.pyc", file(stale))
    tree.put("lib/p/__pycache__/orphan.cpython-313.pyc", file(stale))
    furnished(tree)
    valid = struct.pack("<4sIII", b"\xf3\r\r\n", 0, EPOCH, 6) + b"code"
    compiled = tree.find("lib/p/__pycache__")
    assert compiled is not None
    assert {name: node.content for name, node in compiled.children.items()} == {
        "m.cpython-313.pyc": valid,
        "m.cpython-313.opt-1.pyc": valid,
        "orphan.cpython-313.pyc": stale,
    }


def test_only_installed_packages_are_listed() -> None:
    tree = linux()
    status = (
        b"Package: bash\nStatus: install ok installed\nVersion: 5.2\nDescription: x\n y: z\n\n"
        b"Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n"
    )
    tree.put("var/lib/dpkg/status", file(status))
    assert furnish.packages(tree) == {"bash": "5.2"}
    assert furnish.packages(Tree()) == {}
