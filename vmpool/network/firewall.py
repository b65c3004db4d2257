"""Firewall: puts nftables scripts in place in a namespace, each whole or not at all.

The one module that knows libnftables, by its C interface: a script takes a third of the time that a
process of `nft` does. What a script says, `plan` decides. Everything here blocks for a millisecond
or a few.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
from typing import TYPE_CHECKING, Any

from vmpool.errors import HostError
from vmpool.network.namespace import call_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmpool.network.namespace import Namespace

LIBRARY = "libnftables.so.1"

_DEFAULT = 0  # nftables/libnftables.h
_OUTPUT_JSON = 1 << 4


def require() -> None:
    """Make sure that there is the library.

    Raises:
        HostError: `network_unavailable`.
    """
    _library()


def apply(namespace: Namespace, script: str) -> None:
    """Put a script in place: all of it, or nothing.

    Raises:
        HostError: `network_failed`; the kernel refused it, or there is no such namespace.
            `network_unavailable`; the library is missing.
    """
    call_in(namespace, lambda: _run(script))


def query(namespace: Namespace, command: str) -> list[dict[str, Any]]:
    """Return what a listing command lists, as libnftables-json(5) has it.

    Raises:
        HostError: As `apply`.
    """
    answer = call_in(namespace, lambda: _run(command))
    return json.loads(answer)["nftables"] if answer else []


def counters(namespace: Namespace, table: str) -> dict[str, tuple[int, int]]:
    """Return packets and bytes of a table's counters, by name.

    Raises:
        HostError: As `apply`.
    """
    found = query(namespace, f"list counters table inet {table}")
    listed = [each["counter"] for each in found if "counter" in each]
    return {each["name"]: (each["packets"], each["bytes"]) for each in listed}


def tables(namespace: Namespace, prefix: str) -> list[str]:
    """Return the tables whose names begin so.

    Raises:
        HostError: As `apply`.
    """
    found = query(namespace, "list tables inet")
    names = [each["table"]["name"] for each in found if "table" in each]
    return [name for name in names if name.startswith(prefix)]


def elements(namespace: Namespace, table: str, name: str) -> list[str]:
    """Return the elements of a set of plain ones; none when there is no such table.

    Raises:
        HostError: As `apply`.
    """
    if table not in tables(namespace, table):
        return []
    found = query(namespace, f"list set inet {table} {name}")
    return [str(item) for each in found if "set" in each for item in each["set"].get("elem", [])]


def remove(namespace: Namespace, table: str) -> None:
    """Remove a table. *Idempotent.*

    Raises:
        HostError: As `apply`.
    """
    apply(namespace, f"table inet {table}\ndelete table inet {table}\n")


def _run(commands: str) -> bytes:
    library = _library()
    with _context(library) as context:
        if library.nft_run_cmd_from_buffer(context, commands.encode()) == 0:
            return bytes(library.nft_ctx_get_output_buffer(context))
        words = bytes(library.nft_ctx_get_error_buffer(context)).decode(errors="replace")
    raise HostError(
        f"the kernel refused rules of a network: {words.strip().splitlines()[0] if words else '?'}",
        code="network_failed",
    )


@contextlib.contextmanager
def _context(library: ctypes.CDLL) -> Iterator[ctypes.c_void_p]:
    """Yield a context, which speaks to the namespace of the thread that makes it."""
    context = ctypes.c_void_p(library.nft_ctx_new(_DEFAULT))
    if context.value is None:
        raise HostError("libnftables has no memory left", code="network_failed")
    try:
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        library.nft_ctx_output_set_flags(context, _OUTPUT_JSON)
        yield context
    finally:
        library.nft_ctx_free(context)


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as err:
        raise HostError(
            f"{LIBRARY} is missing: {err}",
            code="network_unavailable",
            remedy="vmpool doctor --install",
        ) from err
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for name in ("output", "error"):
        read = getattr(library, f"nft_ctx_get_{name}_buffer")
        read.argtypes = [ctypes.c_void_p]
        read.restype = ctypes.c_char_p
    return library
