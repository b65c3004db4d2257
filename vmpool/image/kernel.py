"""Kernel: picks a kernel, the modules that a guest needs and BusyBox out of Debian's packages."""

from __future__ import annotations

import lzma
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmpool.errors import ImageError
from vmpool.image import initrd

if TYPE_CHECKING:
    from vmpool.image.tree import Tree

PACKAGES = ("busybox-static", "linux-image-cloud-amd64")

MODULES = (
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "erofs",
    "overlay",
    "pvpanic_mmio",  # tells the hypervisor of a panic before the kernel reboots
    "vmw_vsock_virtio_transport",
)
"""What a guest loads, where the kernel has it not built in. virtio-pci, virtio-console, ext4 and
vmgenid are built into Debian's cloud kernel."""

_BUILT_IN_OR_LOADED = ("virtio_pci", "virtio_console", "ext4", "vmgenid")
_RELEASE = re.compile(r"vmlinuz-(\d[0-9A-Za-z.+~-]{1,80})")
_DEPENDS = re.compile(rb"\0depends=([0-9A-Za-z_,-]*)\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFiles:
    """What a machine is booted with, as bytes."""

    release: str
    kernel: bytes
    initrd: bytes


def assemble(tree: Tree) -> KernelFiles:
    """Return kernel and initrd from the unpacked packages in `tree`.

    Raises:
        ImageError: `kernel_unfit`: a needed file or module is not in the packages.
    """
    boot = tree.find("/boot")
    found = sorted(
        match[1] for name in (boot.children if boot else {}) if (match := _RELEASE.fullmatch(name))
    )
    if len(found) != 1:
        raise _unfit(f"expected one kernel in /boot, found {found}")
    release = found[0]
    modules = _Modules(tree, release)
    for name in (*_BUILT_IN_OR_LOADED, *MODULES):
        modules.add(name)
    return KernelFiles(
        release=release,
        kernel=_content(tree, f"/boot/vmlinuz-{release}"),
        initrd=initrd.pack(_content(tree, "/usr/bin/busybox"), modules.loaded),
    )


class _Modules:
    """Modules in load order, gathered with what they depend on."""

    def __init__(self, tree: Tree, release: str) -> None:
        # Extracted packages lack the link from /lib to /usr/lib that an installed system has.
        places = (f"usr/lib/modules/{release}", f"lib/modules/{release}")
        place = next((place for place in places if tree.find(place) is not None), None)
        if place is None:
            raise _unfit(f"no modules of {release}")
        below = f"{place}/kernel/"
        self._tree = tree
        self._files = {_name(path): path for path, _ in tree.walk() if path.startswith(below)}
        listing = _content(tree, f"{place}/modules.builtin").decode()
        self._built_in = frozenset(map(_name, listing.split()))
        self.loaded: dict[str, bytes] = {}

    def add(self, name: str) -> None:
        """Append a module, and before it what it depends on, unless the kernel has it."""
        if name in self.loaded or name in self._built_in:
            return
        if name not in self._files:
            raise _unfit(f"no module {name}")
        module = _decompressed(_content(self._tree, self._files[name]), name)
        depends = _DEPENDS.search(module)
        if depends is None:
            raise _unfit(f"module {name} does not say what it depends on")
        for dependency in filter(None, depends[1].decode().split(",")):
            self.add(_name(dependency))
        self.loaded[name] = module


def _name(path: str) -> str:
    """Return a module's name; to the kernel `-` and `_` are the same."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def _decompressed(module: bytes, name: str) -> bytes:
    if module.startswith(b"\x7fELF"):
        return module
    try:
        return lzma.decompress(module)
    except lzma.LZMAError as err:
        raise _unfit(f"module {name} is neither plain nor xz: {err}") from err


def _content(tree: Tree, path: str) -> bytes:
    node = tree.find(path)
    if node is None or not node.is_file:
        raise _unfit(f"no {path}")
    return node.read()


def _unfit(why: str) -> ImageError:
    return ImageError(f"the kernel packages do not do: {why}", code="kernel_unfit")
