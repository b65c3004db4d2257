"""Builder: does what a recipe says, in a sandbox of its base, and makes a template of what came.

Each step that does something is kept as a checkpoint under its name, which is that of all that led
to it: the next build goes on from the last one that it shares with one before. It asks the host for
nothing that its tenant could not ask for, and within its quota.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from vmpool.api.e2b import naming
from vmpool.api.e2b.defaults import Defaults
from vmpool.api.e2b.templates import archives, copying, sizing, tags
from vmpool.api.e2b.templates.build import Build, Level, Lines, State
from vmpool.api.e2b.templates.recipe import (
    Copy,
    Enter,
    Recipe,
    Run,
    Setting,
    Step,
    names,
)
from vmpool.api.limits import OURS
from vmpool.cancellation import uninterrupted
from vmpool.derivation import DeriveRequest
from vmpool.egress import NetworkPolicy
from vmpool.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    QuotaError,
    TaskError,
    VmpoolError,
)
from vmpool.host import CreateRequest
from vmpool.model import Command, Exited, Output
from vmpool.template_key import key_of
from vmpool.vault import STEP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmpool.api.e2b.templates.archives import Archives
    from vmpool.host import Host
    from vmpool.sandbox import Sandbox

log = logging.getLogger(__name__)

BUILD_SECONDS: Final = 3600.0
"""How long all of a build may take, and so each step of it."""

READY_SECONDS: Final = 600.0
"""How long what was started may take to be ready."""

READY_EVERY: Final = 0.5
START_SECONDS: Final = 20.0
"""How long what was started has where nothing says when it is ready."""

STEPS_KEPT: Final = 24
"""Checkpoints of steps that a tenant has at most; the oldest go first."""

_NOT_KEPT: Final = frozenset({"checkpoint_exists", "checkpoint_in_use", "quota_exceeded"})
"""Codes of what keeps the state after a step from being kept: another build does the same steps at
this moment, or the tenant has no more room. The build goes on."""

BUILD: Final = f"{OURS}build"
"""Says in a sandbox's metadata that it is a build's, and ends with that."""

PASSING: Final = f"{STEP}passing."
"""Begins the name of a checkpoint that a build makes its template of, and that ends with it."""

BASE: Final = "base"
FINALIZE: Final = "finalize"
"""What a build is at beside its steps, as clients have it."""


class Builder:
    """One build being made.

    Args:
        sent: Has the files that its steps copy.
    """

    def __init__(self, host: Host, build: Build, recipe: Recipe, sent: Archives) -> None:
        self._host = host
        self._build = build
        self._recipe = recipe
        self._sent = sent
        self._sandbox: Sandbox | None = None

    async def run(self) -> None:
        """Build; how it went, and why, the build says. Cancelled, it leaves no sandbox."""
        build = self._build
        build.state = State.BUILDING
        try:
            await self._make_within()
        except VmpoolError as err:
            build.fail(str(err))
        except TimeoutError:
            build.fail(f"the build took more than {BUILD_SECONDS:.0f} s")
        except asyncio.CancelledError:
            build.fail("the server was stopped; build it again")
            raise
        except Exception:
            log.exception("build=%s failed in a way nobody foresaw", build.id)
            build.fail("something failed that should not have; the server's log has the rest")
        else:
            build.state = State.READY

    async def _make_within(self) -> None:
        """Build within the time that there is, and leave nothing of it but the template."""
        try:
            async with asyncio.timeout(BUILD_SECONDS):
                await self._make()
        finally:
            await uninterrupted(self._end())

    async def _make(self) -> None:
        build, recipe = self._build, self._recipe
        build.step = BASE
        named = naming.source_of(self._host, recipe.base, owner=build.owner)
        source = await sizing.sized(self._host, build, named)
        base, defaults = await self._looked_at(source)
        build.say(f"[base] FROM {recipe.base}")
        states = list(names(recipe, base))
        done, kept = self._kept(states)
        setting = Setting.of(defaults)
        for number, step in enumerate(recipe.steps, start=1):
            build.step = str(number)
            title = f"[builder {number}/{len(recipe.steps)}] {step.title}"
            behind = setting.after(step)
            if number <= done:
                build.say(f"CACHED {title}")
            elif not step.acts:
                build.say(title)
            else:
                build.say(title)
                sandbox = await self._opened(source, kept)
                await self._do(sandbox, step, setting, behind)
                kept = await self._keep(sandbox, states[number - 1])
            setting = behind
        build.step = FINALIZE
        await self._finish(source, kept, setting)

    async def _looked_at(self, source: naming.Source) -> tuple[str, Defaults]:
        """Return what a base is now, and what holds in its sandboxes."""
        host, owner = self._host, self._build.owner
        if source.checkpoint is not None:
            kept = host.find_checkpoint(source.checkpoint, owner=owner)
            return kept.id, Defaults.of(kept.env)
        key = host.catalogue.resolve(source.template, owner=owner)
        status = await host.catalogue.settled(key)
        host.catalogue.pool(key)  # or the reason why there is none
        assert status.snapshot is not None
        return status.snapshot, Defaults.of(status.env)

    def _kept(self, states: Sequence[str]) -> tuple[int, str | None]:
        """Return how many steps need not be done again, and the checkpoint behind the last."""
        steps = self._recipe.steps
        fresh = next((at for at, step in enumerate(steps) if step.fresh), len(steps))
        for done in range(fresh, 0, -1):
            if not steps[done - 1].acts:
                continue
            with contextlib.suppress(NotFoundError):
                found = self._host.find_checkpoint(states[done - 1], owner=self._build.owner)
                return done, found.id
        return 0, None

    async def _opened(self, source: naming.Source, kept: str | None) -> Sandbox:
        """Return the sandbox that steps are done in; made when the first one is."""
        if self._sandbox is None:
            host = self._host
            going_on = source.checkpoint if kept is None else kept
            network = NetworkPolicy(mode=host.settings.network.default)
            self._sandbox = await host.create(
                CreateRequest(
                    template="" if going_on is not None else source.template,
                    checkpoint=going_on,
                    timeout=min(BUILD_SECONDS, host.settings.requests.sandbox_timeout_most),
                    wait=host.settings.requests.queue_wait,
                    metadata={BUILD: self._build.id},
                    network=None if going_on is not None else network,
                ),
                owner=self._build.owner,
            )
        return self._sandbox

    async def _do(self, sandbox: Sandbox, step: Step, setting: Setting, behind: Setting) -> None:
        match step.change:
            case Run(line=line, user=user):
                await self._shell(sandbox, line, setting, user=user)
            case Copy() as copy:
                await self._copy(sandbox, copy, setting)
            case Enter():
                command = copying.enter(behind.directory, setting, timeout=BUILD_SECONDS)
                await self._command(sandbox, command, f"make {behind.directory!r}")
            case _:
                raise AssertionError("a step that does nothing is not done")

    async def _copy(self, sandbox: Sandbox, step: Copy, setting: Setting) -> None:
        found = await asyncio.to_thread(self._sent.find, self._build.owner, step.files)
        if found is None:
            raise InvalidRequestError(
                f"the files of {step.source!r} were not sent",
                code="upload_missing",
                remedy="build again, so that they are",
            )
        archive = copying.archive_path()
        async with sandbox.attended() as agent, contextlib.aclosing(archives.read(found)) as data:
            await agent.write_file(archive, data, user="root", mode=0o600)
        command = copying.unpack(step, setting, archive, timeout=BUILD_SECONDS)
        await self._command(sandbox, command, f"copy {step.source!r}")

    async def _shell(
        self, sandbox: Sandbox, line: str, setting: Setting, *, user: str = ""
    ) -> None:
        await self._command(sandbox, _shell(line, setting, user), f"run command {line!r}")

    async def _command(self, sandbox: Sandbox, command: Command, what: str) -> None:
        """Run something to its end, its output into the log.

        Raises:
            TaskError: `build_step_failed`.
        """
        failure = ""
        try:
            async with sandbox.execute(command) as execution:
                lines = Lines(self._build)
                async for event in execution:
                    match event:
                        case Output(stream=stream, data=data):
                            lines.feed(stream, data)
                        case Exited():
                            failure = _failure(event)
                        case _:
                            pass
                lines.close()
        except InvalidRequestError as err:  # the guest would not even start it
            failure = f"command failed: {err.message}"
            if err.error_code == "unknown_user":
                failure = f"command failed: unauthenticated: invalid username: {command.user!r}"
        if failure:
            raise TaskError(f"failed to {what}: {failure}", code="build_step_failed")

    async def _keep(self, sandbox: Sandbox, state: str) -> str | None:
        """Keep the state after a step, for later builds; return its id, `None` without room."""
        host, owner = self._host, self._build.owner
        try:
            with contextlib.suppress(NotFoundError):  # of before, where it was not to count
                await host.remove_checkpoint(state, owner=owner)
            kept = await host.checkpoint(sandbox.id, owner=owner, name=state)
        except (ConflictError, QuotaError) as err:
            if err.error_code not in _NOT_KEPT:
                raise
            self._build.say(f"the state after this step is not kept: {err.message}", Level.WARN)
            return None
        await self._make_room(but=kept.id)
        return kept.id

    async def _make_room(self, *, but: str) -> None:
        owner = self._build.owner
        every = await self._host.checkpoints(owner=owner, sandbox=None)
        steps = [each for each in every if (each.name or "").startswith(STEP) and each.id != but]
        for each in steps[STEPS_KEPT - 1 :]:
            try:
                await self._host.remove_checkpoint(each.id, owner=owner)
            except VmpoolError as err:  # another build goes on from it, or was faster
                log.info("checkpoint=%s of a step stays: %s", each.id, err)

    async def _finish(self, source: naming.Source, kept: str | None, setting: Setting) -> None:
        """Start what is to be started, and make the template."""
        recipe, host, owner = self._recipe, self._host, self._build.owner
        passing = None
        if kept is None or recipe.start or recipe.ready:
            sandbox = await self._opened(source, kept)
            await self._start(sandbox, setting)
            name = PASSING + self._build.id
            passing = kept = (await host.checkpoint(sandbox.id, owner=owner, name=name)).id
        try:
            await self._end()  # its place may be needed
            self._build.say("[finalize] saving the template")
            await self._derive(kept, setting)
        finally:
            if passing is not None:
                await uninterrupted(host.remove_checkpoint(passing, owner=owner))

    async def _derive(self, kept: str, setting: Setting) -> None:
        build = self._build
        keys = tuple(key_of(tags.tagged(build.name, tag), build.owner) for tag in build.tags)
        request = DeriveRequest(
            checkpoint=kept, keys=keys, env=setting.kept, number=build.id.replace("-", "")
        )
        await self._host.derivation.derive(request, owner=build.owner)
        for key in keys:
            self._host.audit(build.owner, "template.create", key, {"build": build.id})

    async def _start(self, sandbox: Sandbox, setting: Setting) -> None:
        recipe, build = self._recipe, self._build
        if recipe.start:
            build.say(f"[finalize] starting {recipe.start}")
            command = _shell(recipe.start, setting, "", timeout=None)
            async with sandbox.begin(command):
                pass  # it goes on
        if not recipe.ready and not recipe.start:
            return
        ready = recipe.ready or f"sleep {START_SECONDS:.0f}"
        build.say(f"[finalize] waiting until ready: {ready}")
        command = _shell(ready, setting, "")
        try:
            async with asyncio.timeout(READY_SECONDS):
                # A shell line tells nobody when to ask again.
                while not await self._succeeds(sandbox, command):  # noqa: ASYNC110
                    await asyncio.sleep(READY_EVERY)
        except TimeoutError as err:
            raise TaskError(
                f"the ready command did not succeed within {READY_SECONDS:.0f} s: {ready!r}",
                code="build_step_failed",
            ) from err

    async def _succeeds(self, sandbox: Sandbox, command: Command) -> bool:
        async with sandbox.execute(command) as execution:
            ends = [event async for event in execution if isinstance(event, Exited)]
        return bool(ends) and not _failure(ends[-1])

    async def _end(self) -> None:
        """End the sandbox. *Idempotent.*"""
        sandbox, self._sandbox = self._sandbox, None
        if sandbox is None:
            return
        try:
            await self._host.kill(sandbox.id, owner=sandbox.owner)
        except VmpoolError as err:
            log.info("build=%s sandbox=%s: %s", self._build.id, sandbox.id, err)


def _shell(
    line: str, setting: Setting, user: str, *, timeout: float | None = BUILD_SECONDS
) -> Command:
    return Command(
        argv=("/bin/bash", "-l", "-c", line),
        env=setting.env,
        cwd=setting.directory,
        user=user or setting.user,
        timeout=timeout,
    )


def _failure(event: Exited) -> str:
    """Return how a command failed, empty when it did not."""
    if event.timed_out:
        return "it took too long"
    if event.out_of_memory:
        return "the guest ran out of memory"
    if event.signal is not None:
        return f"it was ended by signal {event.signal}"
    return f"exit status {event.exit_code}" if event.exit_code else ""
