"""Introduction: a running machine's agent is claimed, takes its identity, and confirms it.

It decides what counts as confirmed: everything that was told is read back, and what does not agree
is an error. Whose identity it is, the caller decides; it starts and ends no machine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from vmpool.agent import connect
from vmpool.clone.timings import Stopwatch
from vmpool.errors import GuestError, VmpoolError
from vmpool.model import Code, Exited, Preserve

if TYPE_CHECKING:
    from vmpool.agent import Agent, Airtime, Peer
    from vmpool.clone.timings import RestoreDeadlines
    from vmpool.engine import Machine
    from vmpool.model import Identity, IdentityReceipt, Rng

log = logging.getLogger(__name__)

MAX_CLOCK_ERROR_NS = 1_000_000_000
"""A guest whose clock is further off than this after it was set has not set it."""

CLOCK_TRIES = 3
"""A time that was on its way for long, on a host that is busy, is old when it is set."""

MIN_ENTROPY_BITS = 256
"""Entropy that must have been credited before a clone may be used."""


async def introduce(
    machine: Machine,
    identity: Identity,
    *,
    rng: Rng,
    clock_offset_ns: int,
    key: bytes,
    peer: Peer,
    deadlines: RestoreDeadlines,
    airtime: Airtime | None = None,
) -> tuple[Agent, IdentityReceipt, int]:
    """Claim a restored machine's agent and have it take its identity.

    Over vsock the guest resets its connections when it finds that it was restored, which may be
    after it has answered one: then the same key opens the next.

    Returns:
        The agent, which is the caller's to close, its receipt, and how long that took it in ns.

    Raises:
        GuestError: It did not answer in time, obeys another, or did not confirm.
    """
    last_try = time.monotonic() + deadlines.hello
    while True:
        agent = await connect(
            machine.agent_address, key=key, peer=peer, timeout=deadlines.hello, airtime=airtime
        )
        watch = Stopwatch()
        try:
            receipt = await identify(
                agent,
                identity,
                rng=rng,
                clock_offset_ns=clock_offset_ns,
                timeout=deadlines.identify,
            )
        except BaseException as err:
            await agent.close()
            reset = isinstance(err, GuestError) and err.error_code == "guest_lost"
            if not reset or time.monotonic() > last_try:
                raise
            log.debug("clone=%s reset its connection, connecting again", identity.hostname)
        else:
            return agent, receipt, watch.lap()


async def identify(
    agent: Agent, identity: Identity, *, rng: Rng, clock_offset_ns: int = 0, timeout: float
) -> IdentityReceipt:
    """Give a guest an identity and check the agent's word that it took.

    A clock that is off is set again: what a new clone does first it does slowly, and on a busy host
    the time that it was told is old by then.

    Raises:
        GuestError: `identity_unconfirmed` when what the guest reads back is not what was set.
    """
    receipt = await agent.identify(
        identity, rng=rng, clock_offset_ns=clock_offset_ns, timeout=timeout
    )
    if abs(receipt.clock_error_ns) > MAX_CLOCK_ERROR_NS:
        error_ns = await set_clock(agent, clock_offset_ns=clock_offset_ns, timeout=timeout)
        receipt = replace(receipt, clock_error_ns=error_ns)
    wrong = _unconfirmed(identity, rng, receipt)
    if wrong:
        raise GuestError(
            f"the guest did not take its identity: {wrong}", code="identity_unconfirmed"
        )
    return receipt


async def set_clock(agent: Agent, *, clock_offset_ns: int, timeout: float) -> int:
    """Set a guest's clock, as often as `CLOCK_TRIES`, until it is right. *Idempotent.*

    Args:
        timeout: Seconds for each try.

    Returns:
        How far it is off in ns, at most.

    Raises:
        GuestError: It did not answer in time, or `identity_unconfirmed`: it refused, or its clock
            is not what it was just set to.
    """
    error_ns = 0
    for _ in range(CLOCK_TRIES):
        try:
            error_ns = await agent.set_clock(clock_offset_ns=clock_offset_ns, timeout=timeout)
        except GuestError:
            raise
        except VmpoolError as err:  # whoever asked something of the guest has not asked for this
            raise GuestError(
                f"the guest did not set its clock: {err}", code="identity_unconfirmed"
            ) from err
        if abs(error_ns) <= MAX_CLOCK_ERROR_NS:
            return error_ns
    raise GuestError(
        f"the guest's clock is off by {error_ns} ns after it was set", code="identity_unconfirmed"
    )


async def warm(agent: Agent, *, timeout: float) -> None:
    """Run one line in the warm interpreter, touching the pages that every execution touches.

    Raises:
        GuestError: The line did not run, or not in time.
    """
    limit = asyncio.timeout(timeout)
    line = Code(source="print(6*7)")
    try:
        async with limit, agent.execute(line, start_timeout=timeout) as execution:
            last = None
            async for event in execution:
                last = event  # and no more: a guest may say what it likes for as long
    except TimeoutError as err:
        if not limit.expired():
            raise
        raise GuestError(
            f"a trivial run in the guest did not end within {timeout} s", code="guest_unresponsive"
        ) from err
    if not isinstance(last, Exited) or last.exit_code != 0:
        raise GuestError(f"a trivial run in the guest ended with {last!r}", code="guest_unfit")


def _unconfirmed(identity: Identity, rng: Rng, receipt: IdentityReceipt) -> str:
    """Return what of `identity` the receipt does not confirm, empty when it confirms all."""
    seeded = "random" in receipt.generators or isinstance(rng, Preserve)
    checks = {
        f"hostname {receipt.hostname!r}": receipt.hostname == identity.hostname,
        f"machine id {receipt.machine_id!r}": receipt.machine_id == identity.machine_id,
        f"{receipt.entropy_bits} bits of entropy": receipt.entropy_bits >= MIN_ENTROPY_BITS,
        f"clock off by {receipt.clock_error_ns} ns": abs(receipt.clock_error_ns)
        <= MAX_CLOCK_ERROR_NS,
        f"generators {receipt.generators!r}": seeded,
        "no boot id": bool(receipt.boot_id),
    }
    return ", ".join(what for what, confirmed in checks.items() if not confirmed)
