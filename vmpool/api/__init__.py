"""The HTTP edge: tokens, limits and JSON on one side, the host's values on the other."""

from vmpool.api.app import BoundAddress, make_app, serve

__all__ = ["BoundAddress", "make_app", "serve"]
