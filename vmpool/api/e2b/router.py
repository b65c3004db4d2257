"""Router: for which sandbox and port a request on the server's one port is.

E2B's clients say it in headers, or in the host name; a signed URL of a file says it by its
signature alone. Who says two things that differ is refused; who says none is asking the control
plane.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmpool.api.e2b import files, filesystem, interpreter, processes

if TYPE_CHECKING:
    from vmpool.api.e2b.visit import Table

ENVD_PORT: Final = 49983
INTERPRETER_PORT: Final = 49999

SERVICES: Final[dict[int, Table]] = {
    ENVD_PORT: {**processes.ENDPOINTS, **filesystem.ENDPOINTS, **files.ENDPOINTS},
    INTERPRETER_PORT: interpreter.ENDPOINTS,
}
"""What answers on ports that are the server's own, not the guest's."""
