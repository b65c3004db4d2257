"""E2B's own SDK, timed: a program that does with it what it is told to.

    python3 e2b_program.py TEMPLATE

Any Python that has `e2b-code-interpreter` runs it; the environment says where the server is, as the
SDK has it. It takes a word a line, `create`, `command`, `code` or `kill`, and answers each with a
line of JSON: `took_ms`, or `error`. When its input ends it kills the sandbox.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from e2b_code_interpreter import Sandbox

_LIFE_SECONDS = 300


def main(template: str) -> None:
    """Do as the standard input says."""
    sandbox = None
    _answer({})
    try:
        for line in sys.stdin:
            began = time.perf_counter_ns()
            try:
                sandbox = _do(line.strip(), sandbox, template)
                _answer({"took_ms": (time.perf_counter_ns() - began) / 1e6})
            except Exception as err:  # noqa: BLE001 -- whatever the SDK raises is its answer
                _answer({"error": f"{type(err).__name__}: {err}"})
    finally:
        if sandbox is not None:
            sandbox.kill()


def _do(word: str, sandbox: Any, template: str) -> Any:
    """Return the sandbox that there is afterwards."""
    match word:
        case "create":
            return Sandbox.create(template, timeout=_LIFE_SECONDS)
        case "command":
            _expect("hi\n", sandbox.commands.run("echo hi").stdout)
        case "code":
            _expect("2", sandbox.run_code("1+1").text)
        case "kill":
            sandbox.kill()
            return None
        case _:
            raise ValueError(f"{word!r} is no word of this program")
    return sandbox


def _expect(wanted: str, said: str | None) -> None:
    if said != wanted:
        raise ValueError(f"the answer is {said!r}")


def _answer(said: dict[str, object]) -> None:
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
