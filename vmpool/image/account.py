"""Account: gives any Linux root file system the account that code runs as."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmpool.errors import ImageError
from vmpool.image.tree import ENCODING, directory, file
from vmpool.model import DEFAULT_USER, MIB

if TYPE_CHECKING:
    from vmpool.image.tree import Node, Tree

_FIRST_ID = 1000  # where Debian, Alpine and Fedora begin to number people
_LAST_ID = 60000  # UID_MAX, login.defs(5)
_HOME = f"/home/{DEFAULT_USER}"
_PROFILE = b"""\
# Read by login shells.
if [ -n "$BASH_VERSION" ] && [ -f "$HOME/.bashrc" ]; then . "$HOME/.bashrc"; fi
if [ -d "$HOME/.local/bin" ]; then PATH="$HOME/.local/bin:$PATH"; fi
"""
_BASHRC = b"""\
# Read by interactive shells.
case $- in *i*) ;; *) return ;; esac
PS1='\\u@\\h:\\w\\$ '
alias ls='ls --color=auto'
"""
_ROOT_ENTRIES = {"passwd": "root:x:0:0:root:/root:/bin/sh", "group": "root:x:0:"}


def add(tree: Tree) -> None:
    """Add `user` with a group and a home of its own, and sudo without a password if there is sudo.

    The uid is 1000, or the first above it that is free. An account of that name that is there
    already keeps its ids. *Idempotent.*

    Raises:
        ImageError: The account files are not what passwd(5) says, or no id is free.
    """
    passwd = _read(tree, "passwd")
    group = _read(tree, "group")
    known = passwd.get(DEFAULT_USER)
    if known is None:
        number = _free_id(passwd, group)
        gid = group[DEFAULT_USER][2] if DEFAULT_USER in group else str(number)
        shell = "/bin/bash" if tree.find("/bin/bash") else "/bin/sh"
        known = [DEFAULT_USER, "x", str(number), gid, "", _HOME, shell]
        passwd[DEFAULT_USER] = known
        group.setdefault(DEFAULT_USER, [DEFAULT_USER, "x", gid, ""])
        _write(tree, "passwd", passwd)
        _write(tree, "group", group)
        _lock_password(tree)
    try:
        uid, gid_number, home = int(known[2]), int(known[3]), known[5]
    except (IndexError, ValueError) as err:
        raise _malformed("passwd") from err
    if tree.find(home) is None:
        skeleton = tree.find("/etc/skel")
        tree.put(home, _owned(skeleton or _skeleton(), uid, gid_number))
    if tree.find("/etc/sudoers.d") is not None:
        rule = f"{DEFAULT_USER} ALL=(ALL:ALL) NOPASSWD: ALL\n".encode()
        tree.put("/etc/sudoers.d/vmpool", file(rule, mode=0o440))


def _skeleton() -> Node:
    """Return the start of a home for a root file system that has none."""
    node = directory()
    node.children = {".profile": file(_PROFILE), ".bashrc": file(_BASHRC)}
    return node


def _owned(node: Node, uid: int, gid: int) -> Node:
    """Return a copy of `node` and all below it that belongs to an account."""
    children = {name: _owned(child, uid, gid) for name, child in node.children.items()}
    return replace(node, uid=uid, gid=gid, children=children)


def _read(tree: Tree, name: str) -> dict[str, list[str]]:
    """Return the fields of each line of `/etc/<name>` by their first."""
    node = tree.find(f"/etc/{name}")
    text = _ROOT_ENTRIES[name]
    if node is not None:
        if not node.is_file or node.size_bytes > MIB:
            raise _malformed(name)
        text = node.read().decode(*ENCODING)
    return {line.split(":", 1)[0]: line.split(":") for line in text.splitlines() if line.strip()}


def _write(tree: Tree, name: str, entries: dict[str, list[str]]) -> None:
    text = "".join(":".join(fields) + "\n" for fields in entries.values())
    tree.put(f"/etc/{name}", file(text.encode(*ENCODING)))


def _lock_password(tree: Tree) -> None:
    """Add a line to shadow(5), where there is one, that lets no password in."""
    node = tree.find("/etc/shadow")
    if node is None or not node.is_file or node.size_bytes > MIB:
        return
    text = node.read().decode(*ENCODING)
    if not text.startswith(f"{DEFAULT_USER}:") and f"\n{DEFAULT_USER}:" not in text:
        ending = "" if text.endswith("\n") or not text else "\n"
        node.content = f"{text}{ending}{DEFAULT_USER}:*:1::::::\n".encode(*ENCODING)


def _free_id(passwd: dict[str, list[str]], group: dict[str, list[str]]) -> int:
    taken = {fields[2] for fields in (*passwd.values(), *group.values()) if len(fields) > 2}
    for number in range(_FIRST_ID, _LAST_ID):
        if str(number) not in taken:
            return number
    raise ImageError("no free user id in /etc/passwd", code="image_accounts_malformed")


def _malformed(name: str) -> ImageError:
    return ImageError(f"/etc/{name} is not as it should be", code="image_accounts_malformed")
