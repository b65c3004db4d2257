"""Nodes: files that QEMU has as layers of a disk, by the names that we gave them.

Each is two of QEMU's block nodes, qcow2 over a file, and one fdset; they come and go together. What
there is, QEMU is asked: a command that was cut short may have taken effect or not, and a manager
that comes later has nothing else to go by.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmpool.cancellation import uninterrupted
from vmpool.engine.qemu.command import LAYERS_FDSET, Slot
from vmpool.engine.qemu.handover import open_file
from vmpool.errors import EngineError

if TYPE_CHECKING:
    from pathlib import Path

    from vmpool.engine.qemu.hypervisor import Hypervisor

BOTTOM = "golden"
"""The node of the template's disk, which is never changed."""

FIRST = "scratch"
"""The overlay that a machine starts with."""

_NAME = re.compile(r"(layer|scratch)([0-9]{0,9})")
_FDSET = re.compile(r"/dev/fdset/([0-9]{1,9})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One layer as QEMU has it: `scratch`, `scratch1`, … were written by it, `layer0`, … never.

    Attributes:
        fdset: What holds its descriptor.
    """

    name: str
    fdset: int

    @property
    def order(self) -> tuple[bool, int]:
        """Sorts nodes as they lie on each other, bottom first."""
        kind, number = _parse(self.name)
        return kind == FIRST, number


def first() -> Node:
    """Return the overlay that QEMU is started with."""
    return Node(name=FIRST, fdset=Slot.OVERLAY)


def frozen_layer(number: int) -> str:
    """Return the name of a checkpoint's layer; 0 is the lowest."""
    return f"layer{number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What QEMU says that a machine's disk consists of.

    Attributes:
        frozen: Between the template's disk and the overlay, bottom first.
        active: The overlay that the machine writes.
    """

    frozen: tuple[Node, ...]
    active: Node


class Nodes:
    """The layers of one QEMU.

    Args:
        started: Its process.
    """

    def __init__(self, started: Hypervisor) -> None:
        self._hypervisor = started
        self._fdset = LAYERS_FDSET
        self._serial = 0

    def next_overlay(self) -> str:
        """Return a name that no overlay of this QEMU has had."""
        self._serial += 1
        return f"{FIRST}{self._serial}"

    async def add(self, name: str, path: Path, flags: int, beneath: str | None) -> Node:
        """Have QEMU open the qcow2 file at `path`, read-only when `flags` say so.

        On failure and on cancellation QEMU has nothing of it.

        Raises:
            EngineError: QEMU refused it, failed or died.
        """
        self._fdset += 1
        node = Node(name=name, fdset=self._fdset)
        try:
            await self._add(node, path, flags, beneath)
        except BaseException:
            await uninterrupted(self._drop(node))
            raise
        return node

    async def settle(self) -> Stack:
        """Ask QEMU what there is, and have it close what is no part of its disk.

        Names and fdsets that are taken are not used again.

        Raises:
            EngineError: QEMU failed or died, or has no disk that we know (`disk_unknown`).
        """
        found = await self._found()
        answer = await self._hypervisor.execute("query-fdsets")
        fdsets = {fdset["fdset-id"] for fdset in answer if fdset["fdset-id"] > LAYERS_FDSET}
        self._fdset = max(self._fdset, *fdsets, LAYERS_FDSET)
        self._serial = max([self._serial, *(node.order[1] for node in found if node.order[0])])
        stack = _stacked(found, *await self._active())
        used = [*stack.frozen, stack.active]
        for node in reversed(found):
            if node not in used:
                await self._drop(node)
        for fdset in fdsets - {node.fdset for node in found}:
            await self._hypervisor.execute("remove-fd", fdset_id=fdset)
        return stack

    async def _add(self, node: Node, path: Path, flags: int, beneath: str | None) -> None:
        descriptor = open_file(path, flags)
        try:
            await self._hypervisor.monitor.add_descriptor(descriptor, node.fdset)
        finally:
            os.close(descriptor)
        readonly = flags == os.O_RDONLY
        await self._hypervisor.execute(
            "blockdev-add",
            **{
                "driver": "file",
                "node-name": f"{node.name}-file",
                "filename": f"/dev/fdset/{node.fdset}",
                "read-only": readonly,
                "cache": {"no-flush": True},
            },
        )
        options = qcow2(node.name, beneath)
        await self._hypervisor.execute("blockdev-add", **options, read_only=readonly)

    async def _drop(self, node: Node) -> None:
        """Have QEMU close what there is of a node, all of it or a part."""
        for name in (node.name, f"{node.name}-file"):
            with contextlib.suppress(EngineError):
                await self._hypervisor.execute("blockdev-del", node_name=name)
        with contextlib.suppress(EngineError):
            await self._hypervisor.execute("remove-fd", fdset_id=node.fdset)

    async def _found(self) -> list[Node]:
        """Return all nodes that are ours, whole or not, in the order that they lie in."""
        answer = await self._hypervisor.execute("query-named-block-nodes", flat=True)
        found = []
        for entry in answer:
            name, suffix, _ = entry["node-name"].partition("-file")
            file = _FDSET.fullmatch(entry["file"])
            if suffix and file is not None and _NAME.fullmatch(name):
                found.append(Node(name=name, fdset=int(file[1])))
        return sorted(found, key=lambda node: node.order)

    async def _active(self) -> tuple[str, int]:
        """Return the node that the guest's disk is, and how many lie beneath it."""
        for device in await self._hypervisor.execute("query-block"):
            inserted = device.get("inserted", {})
            name = inserted.get("node-name", "")
            if name.startswith(FIRST):
                return name, inserted["backing_file_depth"]
        return "", 0


def _stacked(found: list[Node], active: str, depth: int) -> Stack:
    names = [node.name for node in found]
    # Of what lies beneath the overlay all but the template's disk is ours.
    if active not in names or not 1 <= depth <= names.index(active) + 1:
        raise EngineError("QEMU has a disk that vmpool did not make", code="disk_unknown")
    at = names.index(active)
    return Stack(frozen=tuple(found[at - depth + 1 : at]), active=found[at])


def qcow2(name: str, beneath: str | None) -> dict[str, object]:
    """Return a node's options; its backing is always said, whatever the file says."""
    return {
        "driver": "qcow2",
        "node-name": name,
        "file": f"{name}-file",
        "backing": beneath,
        "cache": {"no-flush": True},
    }


def _parse(name: str) -> tuple[str, int]:
    found = _NAME.fullmatch(name)
    assert found is not None, name
    return found[1], int(found[2] or 0)
