"""vmpool: virtual machines restored from snapshots in milliseconds, and code run in them.

    import vmpool

    with vmpool.Client() as client:
        print(client.run("6 * 7").displays[0].text)

What stands in `__all__` is imported when it is first asked for: every module of vmpool imports this
one, and few need the client's libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmpool.client.asynchronous import AsyncClient
    from vmpool.client.blocking import Client, Sandbox
    from vmpool.client.display import Display
    from vmpool.client.events import Attached, Exited, Output, Raised, Started
    from vmpool.client.processes import TerminalSize
    from vmpool.client.result import Result
    from vmpool.client.sandbox import AsyncSandbox
    from vmpool.errors import VmpoolError

__all__ = [
    "AsyncClient",
    "AsyncSandbox",
    "Attached",
    "Client",
    "Display",
    "Exited",
    "Output",
    "Raised",
    "Result",
    "Sandbox",
    "Started",
    "TerminalSize",
    "VmpoolError",
]

_HOMES = {
    "AsyncClient": "vmpool.client.asynchronous",
    "AsyncSandbox": "vmpool.client.sandbox",
    "Attached": "vmpool.client.events",
    "Client": "vmpool.client.blocking",
    "Display": "vmpool.client.display",
    "Exited": "vmpool.client.events",
    "Output": "vmpool.client.events",
    "Raised": "vmpool.client.events",
    "Result": "vmpool.client.result",
    "Sandbox": "vmpool.client.blocking",
    "Started": "vmpool.client.events",
    "TerminalSize": "vmpool.client.processes",
    "VmpoolError": "vmpool.errors",
}


def __getattr__(name: str) -> object:
    """Import what is asked for by its public name."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
