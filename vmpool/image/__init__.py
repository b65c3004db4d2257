"""Image: bootable root file systems with kernel and initrd, immutable, named by digest."""

from vmpool.image.build import Freshness
from vmpool.image.library import Library
from vmpool.image.manifest import Image, Manifest
from vmpool.image.recipe import Defaults, Recipe, Source
from vmpool.image.work import Step

__all__ = [
    "Defaults",
    "Freshness",
    "Image",
    "Library",
    "Manifest",
    "Recipe",
    "Source",
    "Step",
]
