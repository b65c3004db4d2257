"""A sandbox has a machine or a checkpoint, never both and never neither, whatever is refused."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from vmpool.errors import ConflictError, NotFoundError, VmpoolError
from vmpool.journal import Journal
from vmpool.lifecycle import AutoResume, EndReason, OnExpiry, SandboxState
from vmpool.model import ClockPolicy, IdentityReceipt, Preserve, Rng, Seed, Unique
from vmpool.scope import Role, Scope
from vmpool.store import CheckpointRow, Purpose, SandboxRow, Store
from vmpool.store.schema import SCHEMA

if TYPE_CHECKING:
    from pathlib import Path

KEY = b"a key that nobody is shown"
RECEIPT = IdentityReceipt(
    hostname="h",
    machine_id="0" * 32,
    boot_id="b",
    entropy_bits=256,
    generators=("random",),
    clock_error_ns=-5,
)


def row(id: str = "a", rng: Rng | None = None) -> SandboxRow:
    return SandboxRow(
        id=id,
        template="python",
        clone_id="c",
        owner="local",
        state=SandboxState.RUNNING,
        created_ns=1,
        deadline_ns=100,
        base_id="base",
        timeout=1.5,
        idle_timeout=2.5,
        on_expiry=OnExpiry.PAUSE,
        auto_resume=AutoResume.ON_REQUEST,
        rng=rng or Unique(),
        clock=ClockPolicy.FROZEN,
        clock_offset_ns=-7,
        env={"A": "ä"},
        access_hash=b"\0\xff",
        receipt=RECEIPT,
        parent_id="p",
        parent_checkpoint_id="pc",
    )


def kept(
    id: str, name: str | None = None, *, purpose: Purpose = Purpose.KEPT, owner: str = "local"
) -> CheckpointRow:
    return CheckpointRow(
        id=id,
        purpose=purpose,
        name=name,
        owner=owner,
        sandbox_id="a",
        template="python",
        base_id="base",
        agent_key=KEY,
        created_ns=5,
        saved_ns=4,
        dirty_bytes=3,
        size_bytes=2,
        env={"A": "ä"},
    )


PAUSED = kept("cp", purpose=Purpose.PAUSE)


@pytest.mark.parametrize("rng", [Unique(), Seed(value=7), Preserve()])
async def test_all_that_makes_a_sandbox_again_is_found_again(tmp_path: Path, rng: Rng) -> None:
    async with Store(tmp_path / "db") as store:
        await store.record_sandbox(row(rng=rng))
    async with Store(tmp_path / "db") as store:
        assert await store.open_sandboxes() == [row(rng=rng)]


async def test_a_pause_and_its_end_are_one_step_each(tmp_path: Path) -> None:
    async with Store(tmp_path / "db") as store:
        await store.record_sandbox(row())
        await store.checkpoints.pause(PAUSED, deadline_ns=90, paused_ns=50)
        (found,) = await store.open_sandboxes()
        assert (found.state, found.checkpoint_id) == (SandboxState.PAUSED, "cp")
        assert (found.deadline_ns, found.paused_ns) == (90, 50)
        assert await store.checkpoints.all() == [PAUSED]
        await store.checkpoints.resume(
            "a", clone_id="d", receipt=RECEIPT, deadline_ns=200, clock_offset_ns=3
        )
        (found,) = await store.open_sandboxes()
        assert (found.state, found.checkpoint_id) == (SandboxState.RUNNING, None)
        assert (found.clone_id, found.deadline_ns, found.clock_offset_ns) == ("d", 200, 3)
        assert await store.checkpoints.all() == []


async def test_a_pause_of_what_does_not_run_records_nothing(tmp_path: Path) -> None:
    async with Store(tmp_path / "db") as store:
        await store.record_sandbox(row())
        await store.end_sandbox("a", EndReason.KILLED)
        with pytest.raises(NotFoundError):
            await store.checkpoints.pause(PAUSED, deadline_ns=1, paused_ns=1)
        assert await store.checkpoints.all() == []
        for turn in (
            store.checkpoints.resume(
                "a", clone_id="d", receipt=RECEIPT, deadline_ns=1, clock_offset_ns=0
            ),
            store.checkpoints.move("a", clone_id="d", receipt=RECEIPT, clock_offset_ns=0),
        ):
            with pytest.raises(NotFoundError):
                await turn
        assert (await store.sandbox("a")).clone_id == "c"


async def test_the_end_of_a_paused_sandbox_is_that_of_what_it_would_have_gone_on_from(
    tmp_path: Path,
) -> None:
    async with Store(tmp_path / "db") as store:
        await store.record_sandbox(row())
        await store.checkpoints.record(kept("mine", "first"))
        await store.checkpoints.pause(PAUSED, deadline_ns=1, paused_ns=1)
        await store.end_sandbox("a", EndReason.EXPIRED)
        assert [each.id for each in await store.checkpoints.all()] == ["mine"]
        assert (await store.sandbox("a")).checkpoint_id is None


async def test_a_name_is_its_owners_once(tmp_path: Path) -> None:
    async with Store(tmp_path / "db") as store:
        _, alice = await store.tokens.add("alice", Role.USE.scopes)
        await store.checkpoints.record(kept("1", "first"))
        await store.checkpoints.record(kept("2", "first", owner=alice.id))
        await store.checkpoints.record(kept("3"))
        await store.checkpoints.record(kept("4"))
        for owner in ("local", alice.id):
            with pytest.raises(ConflictError) as raised:
                await store.checkpoints.record(kept("5", "first", owner=owner))
            assert raised.value.error_code == "checkpoint_exists"
        await store.checkpoints.remove("1")
        await store.checkpoints.remove("1")
        await store.checkpoints.record(kept("5", "first"))


def test_a_row_shows_no_secret() -> None:
    for shown in (repr(kept("1")), repr(row())):
        assert repr(KEY) not in shown
        assert "ä" not in shown
        assert "xff" not in shown


async def test_a_journal_of_before_there_were_checkpoints_is_taken_over(tmp_path: Path) -> None:
    async with Journal(tmp_path / "db", SCHEMA[:2]) as journal:
        await journal.run(
            lambda db: db.execute(
                """INSERT INTO sandboxes
                (id, template, clone_id, token_id, state, created_ns, deadline_ns, metadata)
                VALUES ('a', 'python', 'c', NULL, 'running', 1, 2, '{}')"""
            )
        )
    async with Store(tmp_path / "db") as store:
        (found,) = await store.open_sandboxes()
        assert (found.base_id, found.receipt, found.rng) == ("", None, Unique())


async def test_a_paused_sandbox_without_a_checkpoint_cannot_be_recorded(tmp_path: Path) -> None:
    async with Store(tmp_path / "db") as store:
        await store.record_sandbox(row())
    database = sqlite3.connect(tmp_path / "db")
    with pytest.raises(sqlite3.IntegrityError):
        database.execute("UPDATE sandboxes SET state = 'paused'")
    database.close()


async def test_what_was_a_tokens_is_its_tenants(tmp_path: Path) -> None:
    older = (
        """INSERT INTO tokens (id, name, hash, created_ns, role)
            VALUES ('t', 'ci', x'00', 1, 'use')""",
        """INSERT INTO sandboxes
            (id, template, clone_id, token_id, state, created_ns, deadline_ns, metadata)
            VALUES ('a', 'python', 'c', 't', 'running', 1, 2, '{}')""",
        """INSERT INTO checkpoints
            (id, purpose, name, token_id, sandbox_id, template, base_id, agent_key, created_ns,
            saved_ns, dirty_bytes, size_bytes, env)
            VALUES ('k', 'kept', 'first', NULL, 'a', 'python', 'base', x'00', 1, 1, 1, 1, '{}')""",
        """INSERT INTO audit (time_ns, token_id, action, subject, detail, outcome)
            VALUES (1, 't', 'run', 'a', '{}', 'ok'), (2, NULL, 'run', 'b', '{}', 'ok')""",
    )
    async with Journal(tmp_path / "db", SCHEMA[:4]) as journal:
        for statement in older:
            await journal.run(lambda db, one=statement: db.execute(one))  # type: ignore[misc]
    async with Store(tmp_path / "db") as store:
        (token,) = await store.tokens.list()
        assert (token.tenant_id, token.scopes) == (
            "t",
            frozenset({Scope.SANDBOXES, Scope.METRICS}),
        )
        assert [(each.id, each.name) for each in await store.tenants.all()] == [
            ("local", "local"),
            ("t", "t"),
        ]
        assert (await store.sandbox("a")).owner == "t"
        (checkpoint,) = await store.checkpoints.all()
        assert (checkpoint.owner, checkpoint.secrets) == ("local", {})
        assert [row.tenant_id for row in await store.audit.entries(9)] == ["local", "t"]
        with pytest.raises(ConflictError) as raised:
            await store.tenants.remove("t")
        assert raised.value.error_code == "tenant_in_use"
        _, added = await store.tokens.add("more", frozenset(), tenant="t")
        assert added.tenant_id == "t"


async def test_a_tenant_that_has_nothing_can_go_and_its_tokens_with_it(tmp_path: Path) -> None:
    async with Store(tmp_path / "db") as store:
        made = await store.tenants.add("acme", {"sandboxes": 1})
        token, _ = await store.tokens.add("ci", Role.USE.scopes, tenant="acme")
        for wrong, code in (("acme", "tenant_exists"), ("A b", "tenant_name_invalid")):
            with pytest.raises(VmpoolError) as raised:
                await store.tenants.add(wrong, {})
            assert raised.value.error_code == code
        with pytest.raises(VmpoolError) as raised:
            await store.tenants.change("local", name="acme", quota={})
        assert raised.value.error_code == "tenant_exists"
        with pytest.raises(ConflictError):
            await store.tenants.remove("local")
        assert (await store.tenants.quotas())[made.id] == {"sandboxes": 1}
        await store.tenants.remove(made.id)
        assert await store.tokens.find(token) is None
        for gone in (store.tenants.find("acme"), store.tenants.remove("acme")):
            with pytest.raises(NotFoundError) as missing:
                await gone
            assert missing.value.error_code == "tenant_not_found"
