"""Many sandboxes at once from one process: each made, used and ended.

python crowd.py NUMBER
"""

import asyncio
import os
import sys

from e2b import AsyncSandbox


async def one(number, everyone_is_here):
    """Make a sandbox, wait for the others, use it, end it."""
    sandbox = await AsyncSandbox.create(timeout=600)
    try:
        await everyone_is_here.wait()
        said = await sandbox.commands.run(f"echo {number}")
        return sandbox.sandbox_id, said.stdout == f"{number}\n"
    finally:
        await sandbox.kill()


async def main(number):
    """Have them all there at one time."""
    everyone_is_here = asyncio.Barrier(number)
    done = await asyncio.gather(*(one(each, everyone_is_here) for each in range(number)))
    print(len({id for id, _ in done}), all(right for _, right in done), flush=True)


asyncio.run(main(int(sys.argv[1])))
# At once: threads of the client's HTTP library that still close connections abort an interpreter
# that ends meanwhile, without a word; once in a dozen runs on a busy machine.
os._exit(0)
