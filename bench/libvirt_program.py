"""A libvirt of one's own: a program that restores one domain again and again, when it is told to.

    python3 libvirt_program.py ROOT XML SAVED

It drives libvirt's QEMU driver inside itself (`qemu:///embed`), so that no daemon is needed and
nothing of the host's own libvirt is touched. Any Python that can import libvirt runs it, mostly
Debian's. It takes a word a line, `start`, `save`, `restore` or `destroy`, and answers each with a
line of JSON, empty or with `error`. When its input ends so do the domain, ROOT and it.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import libvirt

# Nothing that needs a daemon, a cgroup or another account's files.
_QEMU_CONF = """\
stdio_handler = "file"
security_driver = "none"
user = "+0"
group = "+0"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
"""


def main(root: Path, xml: Path, saved: Path) -> None:
    """Do as the standard input says."""
    (root / "etc").mkdir()
    (root / "etc/qemu.conf").write_text(_QEMU_CONF)
    libvirt.registerErrorHandler(lambda *_: None, None)  # each is raised as well
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_turn_events, daemon=True).start()
    domain = None
    try:
        connection = libvirt.open(f"qemu:///embed?root={root}")
        _answer({})
        for line in sys.stdin:
            try:
                domain = _do(line.strip(), connection, domain, xml, saved)
                _answer({})
            except libvirt.libvirtError as err:
                _answer({"error": str(err)})
    except libvirt.libvirtError as err:
        _answer({"error": str(err)})
    finally:
        if domain is not None:
            domain.destroy()
        shutil.rmtree(root, ignore_errors=True)


def _do(word: str, connection: Any, domain: Any, xml: Path, saved: Path) -> Any:
    """Do one thing; return the domain that runs afterwards, if one does."""
    if word == "start":
        return connection.createXML(xml.read_text(), 0)
    if word == "restore":
        connection.restore(str(saved))
        return connection.lookupByID(connection.listDomainsID()[0])
    if word == "save":
        domain.save(str(saved))
    elif word == "destroy":
        domain.destroy()
    return None


def _answer(value: dict[str, str]) -> None:
    print(json.dumps(value), flush=True)


def _turn_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
