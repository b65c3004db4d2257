"""Reads an erofs file system as Linux does, from its format and not from the writer's code."""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """One inode, read back."""

    mode: int
    uid: int
    gid: int
    links: int
    serial: int
    content: bytes
    xattrs: dict[str, bytes]


class Reader:
    """An erofs image held in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        magic, _, _, bits = struct.unpack_from("<IIIB", data, 1024)
        assert magic == 0xE0F5E1E2
        assert bits == 12
        self.root = struct.unpack_from("<H", data, 1024 + 14)[0]
        self.inodes, self.mtime = struct.unpack_from("<QQ", data, 1024 + 16)
        self.blocks, self.meta = struct.unpack_from("<II", data, 1024 + 36)
        self.uuid = data[1024 + 48 : 1024 + 64]
        assert struct.unpack_from("<I", data, 1024 + 80)[0] == 0  # no incompatible feature
        assert len(data) == self.blocks * 4096

    def files(self) -> dict[str, Found]:
        """Return every path with what is there; directories have no content."""
        found: dict[str, Found] = {}
        todo = [("", self.root)]
        while todo:
            path, number = todo.pop()
            inode = self.inode(number)
            if inode.mode >> 12 != 0o4:
                found[path] = inode
                continue
            found[path] = Found(**{**vars(inode), "content": b""})
            names = self.entries(inode.content)
            assert [name for name, _, _ in names] == sorted(name for name, _, _ in names)
            for name, child, kind in names:
                if name == b".":
                    assert child == number
                elif name != b"..":
                    assert {1: 0o10, 2: 0o4, 7: 0o12}[kind] == self.inode(child).mode >> 12
                    text = name.decode("utf-8", "surrogateescape")
                    todo.append((f"{path}/{text}" if path else text, child))
        return found

    def entries(self, content: bytes) -> list[tuple[bytes, int, int]]:
        """Return name, inode number and type of a directory's entries."""
        result = []
        for start in range(0, len(content), 4096):
            block = content[start : start + 4096]
            count = struct.unpack_from("<H", block, 8)[0] // 12
            raw = [struct.unpack_from("<QHB", block, 12 * index) for index in range(count)]
            ends = [at for _, at, _ in raw[1:]] + [len(block)]
            result += [
                (block[at:end].rstrip(b"\0"), number, kind)
                for (number, at, kind), end in zip(raw, ends, strict=True)
            ]
        return result

    def inode(self, number: int) -> Found:
        """Return an inode with its content and attributes."""
        at = self.meta * 4096 + number * 32
        layout, icount, mode = struct.unpack_from("<HHH", self.data, at)
        if layout & 1:
            size, start, serial, uid, gid = struct.unpack_from("<QIIII", self.data, at + 8)
            links = struct.unpack_from("<I", self.data, at + 44)[0]
            assert struct.unpack_from("<Q", self.data, at + 32)[0] == self.mtime
            after = at + 64
        else:
            links, size = struct.unpack_from("<HI", self.data, at + 6)
            start, serial, uid, gid = struct.unpack_from("<IIHH", self.data, at + 16)
            after = at + 32
        area = 12 + 4 * (icount - 1) if icount else 0
        xattrs = self.attributes(self.data[after : after + area])
        after += area
        if layout >> 1 == 2:
            whole, tail = size - size % 4096, size % 4096
            assert after % 4096 + tail <= 4096, "an inline tail crosses a block"
            content = self.data[start * 4096 :][:whole] + self.data[after : after + tail]
        else:
            assert layout >> 1 == 0
            content = self.data[start * 4096 :][:size]
        assert len(content) == size
        return Found(mode, uid, gid, links, serial, content, xattrs)

    def attributes(self, area: bytes) -> dict[str, bytes]:
        """Return the attributes in an inode's inline area."""
        result = {}
        at = 12
        while at < len(area):
            length, index, size = struct.unpack_from("<BBH", area, at)
            name = {1: "user.", 6: "security."}[index] + area[at + 4 : at + 4 + length].decode()
            result[name] = area[at + 4 + length : at + 4 + length + size]
            at += 4 + length + size
            at += -at % 4
        return result
