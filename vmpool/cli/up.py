"""Up: `vmpool up`, from an empty host to an answered request in one command."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

import click

from vmpool import packages
from vmpool.catalogue import TemplateRequest, TemplateState
from vmpool.cli import demonstration, images
from vmpool.cli.listening import Interrupts, bound
from vmpool.cli.progress import Progress
from vmpool.cli.remote import Remote
from vmpool.cli.running import ended, places, served
from vmpool.cli.state import server_options, settings_from
from vmpool.config import Settings
from vmpool.errors import NotFoundError
from vmpool.image import Freshness, Library
from vmpool.opening import open_host

if TYPE_CHECKING:
    from vmpool.client.endpoint import Endpoint
    from vmpool.host import Host
    from vmpool.image import Image
    from vmpool.opening import Base


class Afterwards(Enum):
    """What `up` does once the request is answered."""

    SERVE = auto()
    STOP = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `up` is to bring about.

    Attributes:
        templates: Names of recipes or images, each made a template of its name; the request goes
            to the first.
        ready: Clones that each of them keeps ready; `None` leaves it to the settings.
    """

    settings: Settings
    templates: tuple[str, ...]
    ready: int | None
    afterwards: Afterwards


@click.command()
@click.option(
    "-t",
    "--template",
    "templates",
    multiple=True,
    default=("python",),
    metavar="NAME",
    help="Recipe or image to make a template of. Repeatable.  [default: python]",
)
@click.option("--ready", type=click.IntRange(min=1), metavar="N", help="Clones to keep ready.")
@click.option("--check", is_flag=True, help="Stop after the one request.")
@server_options
def command(*, templates: tuple[str, ...], ready: int | None, check: bool, **given: Any) -> None:
    """Build what is missing, serve, and show one request.

    What is there already is used again: a second start takes seconds.
    """
    plan = Plan(
        settings=settings_from(**given),
        templates=templates,
        ready=ready,
        afterwards=Afterwards.STOP if check else Afterwards.SERVE,
    )
    asyncio.run(bring_up(plan))


async def bring_up(plan: Plan, *, base: Base | None = None) -> None:
    """Carry a plan out: build, boot, serve, send one request, print it, go on serving.

    Args:
        plan: What to bring about.
        base: What starts machines; QEMU when `None`.

    Raises:
        VmpoolError: Whatever of it failed; the message and the remedy say what and what to do.
        KeyboardInterrupt: A signal came before it served.
    """
    with Interrupts() as interrupts, bound(plan.settings.address) as listener:
        async with contextlib.AsyncExitStack() as running:
            with Progress(sys.stderr) as progress:
                made = await _images(plan, progress)
                progress("opening the host")
                host = await running.enter_async_context(
                    open_host(plan.settings, progress=progress, base=base)
                )
                for image in made:
                    await _template(host, image, plan, progress)
                endpoint = await running.enter_async_context(served(host, listener))
                progress("filling the pool")
                await asyncio.to_thread(demonstration.await_clones, Remote(endpoint), made[0].name)
                progress("sending one request")
                answer = await asyncio.to_thread(demonstration.send, Remote(endpoint), made[0].name)
            _show(answer, made[0].name, endpoint, host)
            match plan.afterwards:
                case Afterwards.SERVE:
                    click.echo(f"\nServing on {places(host, endpoint)} until Ctrl-C.")
                    await ended(interrupts, host)
                case Afterwards.STOP:
                    host.hand_over()  # what it adopted was there before, and is to be afterwards


async def _images(plan: Plan, progress: Progress) -> list[Image]:
    """Return the image of each template, built where it has a recipe."""
    progress("looking for missing packages")
    await packages.ensure(progress.note)
    state = plan.settings.state
    made = []
    for name in plan.templates:
        try:
            image = await images.build_image(
                name, state=state, freshness=Freshness.KEPT, progress=progress
            )
        except NotFoundError as err:
            if err.error_code != "recipe_not_found":
                raise
            image = Library(state).load(name)
        made.append(image)
    return made


async def _template(host: Host, image: Image, plan: Plan, progress: Progress) -> None:
    """Make a template of an image and its name, unless there is one that will do."""
    progress(f"template {image.name}")
    if image.name in {status.name for status in host.catalogue.statuses}:
        known = await host.catalogue.settled(image.name)
        will_do = known.state is TemplateState.READY and known.image == image.digest
        if will_do and plan.ready in {None, known.limits.ready}:
            return
    limits = None
    if plan.ready is not None:
        pool = plan.settings.pool_of(image.name)
        limits = replace(pool.limits(clone_bytes=0), ready=plan.ready)
    await host.catalogue.add(
        TemplateRequest(name=image.name, image=image.digest, limits=limits), progress=progress
    )


def _show(answer: dict[str, Any], template: str, endpoint: Endpoint, host: Host) -> None:
    facts = host.facts
    click.echo(f"\nQEMU {facts.qemu_version} under {facts.accelerator}: {facts.accelerator_reason}")
    demonstration.show(
        answer,
        demonstration.Address(
            endpoint=endpoint,
            state=host.settings.state,
            template=template,
        ),
    )
