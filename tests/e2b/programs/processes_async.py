"""Many commands at once, and conversations with them, as an asynchronous program has them."""

import asyncio
from typing import Generic, TypeVar

from e2b import AsyncSandbox, PtySize, TimeoutException

Text = TypeVar("Text", str, bytes)

SECONDS = 240
"""For whatever is waited for: machines that others use, too, are slow."""


class Heard(Generic[Text]):
    """What a process has said and nobody has waited for yet."""

    def __init__(self, nothing: Text) -> None:
        self._said = nothing
        self._more = asyncio.Event()

    def add(self, said: Text) -> None:
        """Take more of it."""
        self._said += said
        self._more.set()

    async def until(self, wanted: Text) -> None:
        """Return once something was said, and leave what comes after it."""
        try:
            async with asyncio.timeout(SECONDS):
                while wanted not in self._said:
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"{wanted!r} is not in {self._said!r}") from None
        self._said = self._said.partition(wanted)[2]


async def together(sandbox: AsyncSandbox) -> None:
    """Commands that run at once do not wait for each other, and each gets its own output."""
    meeting = (
        "mkdir -p /tmp/meeting; touch /tmp/meeting/$I;"
        " until [ $(ls /tmp/meeting | wc -l) = 8 ]; do sleep 0.1; done; echo $I"
    )
    results = await asyncio.gather(
        *(sandbox.commands.run(meeting, envs={"I": str(i)}, timeout=SECONDS) for i in range(8))
    )
    assert [result.stdout for result in results] == [f"{i}\n" for i in range(8)]


async def conversation(sandbox: AsyncSandbox) -> None:
    """Input follows output while one stream of it is open, and that ends with the process."""
    answers: Heard[str] = Heard("")
    line = "while read word && [ $word != bye ]; do echo got $word; done"
    process = await sandbox.commands.run(
        line, background=True, stdin=True, on_stdout=answers.add, timeout=SECONDS
    )
    async with sandbox.commands.stream_input(process.pid, timeout=SECONDS) as typed:
        for word in ("one", "two"):
            await typed.send(f"{word}\n")
            await answers.until(f"got {word}\n")
        await typed.send("bye\n")
        assert (await process.wait()).exit_code == 0


async def terminal(sandbox: AsyncSandbox) -> None:
    """A terminal shows what is typed, and Ctrl-C interrupts."""
    shown = Heard(b"")
    size = PtySize(rows=24, cols=80)
    shell = await sandbox.pty.create(size, on_data=shown.add, timeout=SECONDS)
    # One process prints and sleeps: between two, Ctrl-C can come before the shell has begun the
    # second, which then goes on.
    await sandbox.pty.send_stdin(shell.pid, b"sh -c 'echo a$((1+1))b; exec sleep 1000'\n")
    await shown.until(b"a2b")
    await sandbox.pty.send_stdin(shell.pid, b"\x03")
    await sandbox.pty.send_stdin(shell.pid, b"echo c$((2+2))d\n")
    await shown.until(b"c4d")
    assert await sandbox.pty.kill(shell.pid)


async def killed(sandbox: AsyncSandbox) -> None:
    """All who wait for something of a sandbox that is killed are told so."""
    echoed: Heard[str] = Heard("")
    process = await sandbox.commands.run(
        "cat", background=True, stdin=True, on_stdout=echoed.add, timeout=SECONDS
    )
    follower = await sandbox.commands.connect(process.pid, timeout=SECONDS)
    typed = sandbox.commands.stream_input(process.pid, timeout=SECONDS)
    await typed.send("a\n")
    await echoed.until("a\n")
    await sandbox.kill()
    ends = (process.wait(), follower.wait(), typed.close())
    async with asyncio.timeout(SECONDS):
        errors = await asyncio.gather(*ends, return_exceptions=True)
    for error in errors:
        assert isinstance(error, TimeoutException), error
        assert "The sandbox was killed" in str(error), error


async def main() -> None:
    """Go through all of it in one sandbox."""
    sandbox = await AsyncSandbox.create(timeout=600)
    try:
        for step in (together, conversation, terminal, killed):
            await step(sandbox)
            print(step.__name__, flush=True)
    finally:
        await sandbox.kill()


asyncio.run(main())
