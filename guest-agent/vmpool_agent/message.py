"""Message: the documents that channels carry, as JSON. `PROTOCOL.md`, section 5, specifies them."""

from __future__ import annotations

import json
from typing import Any

from vmpool_agent.wire import MAX_MESSAGE, MisuseError, PeerError


def encode(value: dict[str, Any], limit: int = MAX_MESSAGE) -> memoryview:
    """Return the document of a message.

    Raises:
        MisuseError: The document is over `limit` bytes.
    """
    document = json.dumps(value, separators=(",", ":")).encode("ascii")
    if len(document) > limit:
        raise MisuseError(f"message of {len(document)} bytes is over {limit}")
    return memoryview(document)


def decode(document: bytes) -> dict[str, Any]:
    """Return the value of a message's document.

    Raises:
        PeerError: It is no JSON object in ASCII.
    """
    try:
        value = json.loads(document.decode("ascii"))
    except (ValueError, RecursionError) as err:
        raise PeerError(f"malformed message: {err}") from err
    if not isinstance(value, dict):
        raise PeerError(f"message is no object but {type(value).__name__}")
    return value
