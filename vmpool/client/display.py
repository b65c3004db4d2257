"""Display: what code in a guest showed, and how much of it a notebook is shown.

Everything here was written by a guest, and a notebook runs what it is shown: HTML, SVG, LaTeX and
JavaScript of a guest could act as the notebook's user. So a notebook gets pictures that are nothing
but pictures, and text. The rest is in `mime`, for whoever trusts the code that ran.
"""

from __future__ import annotations

import base64
import binascii
import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PICTURES = ("image/png", "image/jpeg", "image/gif")
"""Forms that no browser looks for programs in."""

SHOWN_CHARACTERS = 1 << 16
"""Of a text, the most that is shown: its end."""

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
del _CONTROLS[ord("\n")], _CONTROLS[ord("\t")]

_PRE = '<pre style="white-space: pre-wrap">{}</pre>'
_IMG = '<img alt="" src="data:{};base64,{}">'


@dataclass(frozen=True, slots=True)
class Display:
    """A value that code showed.

    Attributes:
        mime: Its forms by MIME type, `text/plain` among them as a rule; binary ones are base64.
        is_main: It is the value of the last expression, and not one that was shown by the way.
        display_id: A later display with the same one takes this one's place.
    """

    mime: dict[str, str]
    is_main: bool = False
    display_id: str | None = None

    def __repr__(self) -> str:
        return f"<Display {list(self.mime)!r}>"

    @property
    def text(self) -> str:
        """Its plain form, empty when it has none."""
        return self.mime.get("text/plain", "")

    @property
    def png(self) -> bytes | None:
        """Its form as a PNG picture, if it has one."""
        picture = _picture(self.mime.get("image/png", ""))
        return picture or None

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        """Return what a notebook shows; IPython's protocol."""
        return mimebundle((self,))


def mimebundle(parts: Iterable[str | Display]) -> dict[str, str]:
    """Return texts and displays as one thing that a notebook shows, inert."""
    texts, written, pictures = [], [], 0
    for part in parts:
        if isinstance(part, str):
            texts.append(printable(part))
            written.append(_PRE.format(html.escape(texts[-1])))
        elif shown := _embedded(part):
            texts.append(printable(part.text))
            written.append(shown)
            pictures += 1
        else:
            texts.append(printable(part.text))
            written.append(_PRE.format(html.escape(texts[-1])))
    plain = "\n".join(text.rstrip("\n") for text in texts if text)
    return {"text/plain": plain} | ({"text/html": "\n".join(written)} if pictures else {})


def _embedded(display: Display) -> str:
    """Return a display's picture as our own HTML, empty when it has none."""
    for kind in PICTURES:
        # Decoded and encoded again: what was no base64 cannot end the attribute it stands in.
        if picture := _picture(display.mime.get(kind, "")):
            return _IMG.format(kind, base64.b64encode(picture).decode())
    return ""


def _picture(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return b""


def printable(text: str) -> str:
    """Return the end of a guest's text with what would steer a terminal escaped."""
    kept = text if len(text) <= SHOWN_CHARACTERS else f"…{text[-SHOWN_CHARACTERS:]}"
    return kept.translate(_CONTROLS)
