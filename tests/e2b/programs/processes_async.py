"""Many commands at once, and conversations with them, as an asynchronous program has them."""

import asyncio

from e2b import AsyncSandbox, PtySize, TimeoutException


async def together(sandbox: AsyncSandbox) -> None:
    """Commands that run at once do not wait for each other, and each gets its own output."""
    meeting = (
        "mkdir -p /tmp/meeting; touch /tmp/meeting/$I;"
        " until [ $(ls /tmp/meeting | wc -l) = 8 ]; do sleep 0.1; done; echo $I"
    )
    results = await asyncio.gather(
        *(sandbox.commands.run(meeting, envs={"I": str(i)}, timeout=240) for i in range(8))
    )
    assert [result.stdout for result in results] == [f"{i}\n" for i in range(8)]


async def conversation(sandbox: AsyncSandbox) -> None:
    """Input follows output while one stream of it is open, and that ends with the process."""
    answers: asyncio.Queue[str] = asyncio.Queue()
    line = "while read word && [ $word != bye ]; do echo got $word; done"
    process = await sandbox.commands.run(
        line, background=True, stdin=True, on_stdout=answers.put_nowait, timeout=240
    )
    async with sandbox.commands.stream_input(process.pid, timeout=240) as typed:
        for word in ("one", "two"):
            await typed.send(f"{word}\n")
            assert await answers.get() == f"got {word}\n"
        await typed.send("bye\n")
        assert (await process.wait()).exit_code == 0


async def terminal(sandbox: AsyncSandbox) -> None:
    """A terminal shows what is typed, and Ctrl-C interrupts."""
    shown: asyncio.Queue[bytes] = asyncio.Queue()
    size = PtySize(rows=24, cols=80)
    shell = await sandbox.pty.create(size, on_data=shown.put_nowait, timeout=240)

    async def until(wanted: bytes) -> None:
        seen = b""
        try:
            async with asyncio.timeout(240):
                while wanted not in seen:
                    seen += await shown.get()
        except TimeoutError:
            raise AssertionError(f"{wanted!r} is not in {seen!r}") from None

    # One process prints and sleeps: between two, Ctrl-C can come before the shell has begun the
    # second, which then goes on.
    await sandbox.pty.send_stdin(shell.pid, b"sh -c 'echo a$((1+1))b; exec sleep 1000'\n")
    await until(b"a2b")
    await sandbox.pty.send_stdin(shell.pid, b"\x03")
    await sandbox.pty.send_stdin(shell.pid, b"echo c$((2+2))d\n")
    await until(b"c4d")
    assert await sandbox.pty.kill(shell.pid)


async def killed(sandbox: AsyncSandbox) -> None:
    """All who wait for something of a sandbox that is killed are told so."""
    echoed: asyncio.Queue[str] = asyncio.Queue()
    process = await sandbox.commands.run(
        "cat", background=True, stdin=True, on_stdout=echoed.put_nowait, timeout=240
    )
    follower = await sandbox.commands.connect(process.pid, timeout=240)
    typed = sandbox.commands.stream_input(process.pid, timeout=240)
    await typed.send("a\n")
    assert await echoed.get() == "a\n"
    await sandbox.kill()
    ends = (process.wait(), follower.wait(), typed.close())
    for error in await asyncio.gather(*ends, return_exceptions=True):
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
