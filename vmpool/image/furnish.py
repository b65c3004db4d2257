"""Furnish: what vmpool takes from and adds to a root file system before it becomes an image."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmpool.image import account, interpreter, login
from vmpool.image.tree import ENCODING, Node, directory, file, link
from vmpool.model import MIB

if TYPE_CHECKING:
    from vmpool.image.interpreter import Interpreter
    from vmpool.image.tree import Check, Tree

AGENT_PATH = "/usr/lib/vmpool/agent.pyz"
WARM_PATH = "/usr/lib/vmpool/warm.py"

EPOCH = 1754697600
"""The time that all files show: 2025-08-09, the day Debian 13 was released."""

_EMPTIED = (
    "/var/cache",
    "/var/log",
    "/var/tmp",  # noqa: S108 -- of the guest
    "/var/lib/apt/lists",
)
_REMOVED = (
    "/.dockerenv",
    "/etc/.pwd.lock",
    "/etc/group-",
    "/etc/gshadow-",
    "/etc/passwd-",
    "/etc/resolv.conf",
    "/etc/shadow-",
    "/etc/subgid-",
    "/etc/subuid-",
    "/root/.bash_history",
    # apt makes them when it needs them; their owner depends on whether root built the image.
    "/var/cache/apt/archives/partial",
    "/var/lib/apt/lists/partial",
    "/var/lib/dbus/machine-id",
    "/var/lib/dpkg/available-old",
    "/var/lib/dpkg/diversions-old",
    "/var/lib/dpkg/status-old",
    "/var/lib/dpkg/statoverride-old",
    "/var/lib/systemd/random-seed",
)
_HOST_KEY = re.compile(r"ssh_host_.*_key(\.pub)?")
_HOSTS = b"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
_NAMES = b"nameserver 169.254.77.1\n"  # the gateway of every guest that has a network
_STATUS_LIMIT = 64 * MIB


def furnish(tree: Tree, *, agent: bytes, warm: bytes | None, check: Check) -> Interpreter:
    """Make `tree` ready to be an image and return the Python that runs its agent. *Idempotent.*

    Args:
        agent: The agent's archive.
        warm: Source that the agent's interpreter runs before the snapshot.
        check: Called between steps.

    Raises:
        ImageError: There is no Python for the agent, or the account cannot be added.
    """
    python = interpreter.find(tree)
    _strip(tree)
    account.add(tree)
    login.hasten(tree)
    tree.put("/usr/lib/vmpool", directory())
    tree.put(AGENT_PATH, file(agent))
    tree.remove(WARM_PATH)
    if warm is not None:
        tree.put(WARM_PATH, file(warm))
    if tree.find(f"{python.path.rpartition('/')[0]}/python") is None:
        tree.put(f"{python.path.rpartition('/')[0]}/python", link(python.path))
    _blank_identity(tree)
    for mount in ("dev", "proc", "sys", "run", "tmp"):
        if (node := tree.find(mount)) is None or not node.is_directory:
            tree.put(mount, directory())
    tree.put("tmp", directory(mode=0o1777))
    interpreter.date_bytecode(tree, EPOCH, check)
    return python


def packages(tree: Tree) -> dict[str, str]:
    """Return the versions of the installed Debian packages by name; empty elsewhere."""
    node = tree.find("/var/lib/dpkg/status")
    if node is None or not node.is_file or node.size_bytes > _STATUS_LIMIT:
        return {}
    found = {}
    for entry in node.read().decode(*ENCODING).split("\n\n"):
        fields = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line)
        if fields.get("Status", "").endswith(" installed") and "Package" in fields:
            found[fields["Package"]] = fields.get("Version", "")
    return dict(sorted(found.items()))


def _strip(tree: Tree) -> None:
    """Drop caches, logs and what only one machine may have, leaving directories in place."""
    for path in _EMPTIED:
        node = tree.find(path)
        if node is not None:
            _drop_files(node)
    for path in _REMOVED:
        tree.remove(path)
    ssh = tree.find("/etc/ssh")
    if ssh is not None:
        for name in [name for name in ssh.children if _HOST_KEY.fullmatch(name)]:
            del ssh.children[name]


def _drop_files(node: Node) -> None:
    for name, child in list(node.children.items()):
        if child.is_directory:
            _drop_files(child)
        else:
            del node.children[name]


def _blank_identity(tree: Tree) -> None:
    """Leave the files that the agent fills in for each clone: empty, so that none is shared."""
    tree.put("/etc/machine-id", file(b"", mode=0o444))
    tree.put("/etc/hostname", file(b"vmpool\n"))
    tree.put("/etc/hosts", file(_HOSTS))
    tree.put("/etc/resolv.conf", file(_NAMES))
