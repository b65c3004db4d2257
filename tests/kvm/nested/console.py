"""Console: what the machine prints, made fit for the terminal of whoever watches. Pure."""

from __future__ import annotations

import codecs


class Console:
    """A stream of bytes that becomes text: UTF-8, and nothing that steers a terminal."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, data: bytes) -> str:
        """Return the text in the next piece; half a character waits for its other half."""
        text = self._decoder.decode(data)
        return "".join(one for one in text if one.isprintable() or one in "\n\t")
