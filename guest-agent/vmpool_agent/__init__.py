"""vmpool_agent: the program in the guest that runs what the host asks for.

Standard library only, Python 3.9 or newer, any Linux. `PROTOCOL.md` beside this package is the
specification of what it speaks; `wire` is the codec that the host shares.
"""
