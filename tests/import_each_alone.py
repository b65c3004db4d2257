"""Imports each of our modules in a process that has imported none of the others.

A fork of this interpreter, which holds nothing of ours, is as fresh as a new one and starts in a
millisecond. Arguments: libraries of others to import before the first fork, `--`, and the modules.
Prints those that could be imported, in order.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback


def start(name: str) -> int:
    """Begin to import `name` in a child; return the child's process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            importlib.import_module(name)
            code = 0
        finally:
            if code:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
    return pid


def main(argv: list[str]) -> int:
    """Import all, as many at once as there are processors; return 0 if all could be."""
    at = argv.index("--")
    for library in argv[:at]:
        importlib.import_module(library)
    names = argv[at + 1 :]
    running: dict[int, str] = {}
    good = set()
    waiting = list(names)
    while waiting or running:
        if waiting and len(running) < (os.cpu_count() or 1):
            name = waiting.pop()
            running[start(name)] = name
            continue
        pid, status = os.wait()
        name = running.pop(pid)
        if status == 0:
            good.add(name)
        else:
            print(f"{name} cannot be imported first", file=sys.stderr)
    print("\n".join(name for name in names if name in good))
    return 0 if len(good) == len(names) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
