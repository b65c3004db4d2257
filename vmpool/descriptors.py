"""Descriptors: how many open files this process may have.

The usual 1,024 are few for a server with its clients and clones; most systems let a process raise
them. It decides what is too few to begin with.
"""

from __future__ import annotations

import resource

from vmpool.errors import HostError

NEEDED = 1024
"""Enough for a hundred clones and their clients; a machine is handed its files over number 512."""


def raise_limit() -> None:
    """Let this process have as many descriptors as it may. *Idempotent.*

    Raises:
        HostError: `descriptors_few`: those are too few.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < NEEDED:
        raise HostError(
            f"this process may have {most} files open, and a server needs {NEEDED}",
            code="descriptors_few",
            remedy="raise its hard limit: ulimit -Hn as root, or LimitNOFILE= in its unit",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
