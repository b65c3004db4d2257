"""Display: values as MIME bundles, the way notebooks show them."""

from __future__ import annotations

import base64
import io
import json
import sys
from typing import Any

_TEXT_LIMIT = 64 * 1024
_BUNDLE_LIMIT = 1000 * 1024
"""Bytes of a bundle as JSON; the protocol takes 1 MiB with what is around it."""
_LEFT_OUT = "\n[richer forms left out: too large]"
_METHODS = {
    "_repr_html_": "text/html",
    "_repr_markdown_": "text/markdown",
    "_repr_latex_": "text/latex",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
    "_repr_json_": "application/json",
}


def bundle(value: object) -> dict[str, str]:
    """Return a value's MIME bundle: `text/plain` always, richer forms where it has them."""
    forms: dict[str, object] = {}
    # On a class these are functions that want an instance.
    if not isinstance(value, type):
        extra = _call(value, "_repr_mimebundle_")
        if isinstance(extra, dict):
            forms.update(extra)
        for method, kind in _METHODS.items():
            form = _call(value, method)
            if form is not None:
                forms.setdefault(kind, form)
    forms.setdefault("text/plain", _plain(value))
    return fit(forms)


def fit(forms: dict[str, object]) -> dict[str, str]:
    """Return forms as a bundle of text that one message holds; binary ones become base64."""
    shown = {str(kind): _text(form) for kind, form in forms.items()}
    return _fitting({clean(kind): clean(text) for kind, text in shown.items()})


def figures() -> list[dict[str, str]]:
    """Return the open matplotlib figures as bundles, and close them."""
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    if pyplot is None or not pyplot.get_fignums():
        return []
    shown = []
    for number in pyplot.get_fignums():
        figure = pyplot.figure(number)
        image = io.BytesIO()
        figure.savefig(image, format="png", bbox_inches="tight")
        forms = {"text/plain": _plain(figure), "image/png": _text(image.getvalue())}
        shown.append(_fitting(forms))
    pyplot.close("all")
    return shown


def _fitting(forms: dict[str, str]) -> dict[str, str]:
    """Return a bundle that one message holds: where all are too much, the start of the text."""
    if len(json.dumps(forms)) <= _BUNDLE_LIMIT:
        return forms
    plain = forms.get("text/plain", "")
    cut = "\n[cut]" if len(plain) > _TEXT_LIMIT else ""
    left_out = _LEFT_OUT if len(forms) > 1 else ""
    return {"text/plain": plain[:_TEXT_LIMIT] + cut + left_out}


def clean(text: str) -> str:
    """Return text without lone surrogates, which stand for no character."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _call(value: object, name: str) -> object:
    """Return what a display method gives, `None` where there is none or it fails."""
    try:
        method = getattr(value, name, None)
        form = method() if callable(method) else None
    except Exception:  # noqa: BLE001 a value that cannot show itself is shown in another form
        return None
    # Forms may come with metadata, which a bundle has no place for.
    return form[0] if isinstance(form, tuple) and form else form


def _plain(value: object) -> str:
    try:
        return repr(value)
    except Exception as err:  # noqa: BLE001 it is the value's own code
        return f"<{type(value).__name__}: its repr raised {type(err).__name__}>"


def _text(form: object) -> str:
    if isinstance(form, str):
        return form
    if isinstance(form, (bytes, bytearray)):
        return base64.b64encode(form).decode("ascii")
    return json.dumps(form, default=_plain)
