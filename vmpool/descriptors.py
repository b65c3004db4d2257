"""Descriptors: how many open files this process may have.

The usual 1,024 are few for a server with its clients and clones; most systems let a process raise
them. It decides what is too few to begin with.
"""

from __future__ import annotations

import errno
import resource

from vmpool.errors import HostError

NEEDED = 1024
"""Enough for a hundred clones and their clients; a machine is handed its files over number 512."""

MOST = 1 << 20
"""What Linux allows unless told otherwise. In some containers it is a thousand times as many, and
programs that we start and that close all they might have open would be at it for minutes."""


def raise_limit() -> None:
    """Let this process have as many descriptors as it may, and `MOST` at most. *Idempotent.*

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
    wanted = MOST if most == resource.RLIM_INFINITY else min(most, MOST)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def spent(err: OSError) -> HostError | None:
    """Return, as an error to raise, that there is no descriptor left; `None` for anything else."""
    if err.errno not in {errno.EMFILE, errno.ENFILE}:
        return None
    return HostError(
        "this server, or its host, has no file descriptor left",
        code="descriptors_spent",
        remedy="try again when less is going on; LimitNOFILE= in its unit, or ulimit -n, is the"
        " server's limit, fs.file-max the host's",
    )
