"""The interface as E2B's clients speak it; each submodule is a part of it.

It is another edge of the same host: what it does, the native interface can do as well.
"""
