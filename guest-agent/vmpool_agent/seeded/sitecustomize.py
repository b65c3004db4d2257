"""Sitecustomize: what Python imports at its start where `PYTHONPATH` leads here.

Programs of a clone that has a seed find it. It has their generators start from that, and makes way
for the sitecustomize that it stands before, if there is one.
"""

import os
import sys

_HERE = os.path.dirname(__file__)  # noqa: PTH120 pathlib would be dear at each start


def _begin(seed: int) -> None:
    """Seed, with a module of the agent's, which leaves nothing on `sys.path`."""
    archive = os.path.dirname(os.path.dirname(_HERE))  # noqa: PTH120
    sys.path.append(archive)
    try:
        from vmpool_agent import seeding  # noqa: PLC0415
    finally:
        sys.path.remove(archive)
    seeding.begin(seed)


def _make_way() -> None:
    ours = sys.modules.pop(__name__)
    try:
        __import__(__name__)
    except ImportError:
        sys.modules[__name__] = ours


sys.path[:] = [path for path in sys.path if path != _HERE]
_NUMBER = os.environ.get("VMPOOL_SEED", "")
if _NUMBER.isdecimal():
    _begin(int(_NUMBER))
_make_way()
