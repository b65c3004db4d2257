"""Views: values of the host as bodies of the interface."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from msgspec import UNSET

from vmpool.api import bodies, codec, sandbox_bodies
from vmpool.errors import Fault, TaskError, TaskMemoryError, TaskTimeoutError
from vmpool.lifecycle import AutoResume
from vmpool.template_key import name_of, owner_of

if TYPE_CHECKING:
    from vmpool import policy
    from vmpool.catalogue import TemplateStatus
    from vmpool.clone import RestoreTimings
    from vmpool.errors import VmpoolError
    from vmpool.image import Image
    from vmpool.model import Exited, FileInfo, IdentityReceipt, Result
    from vmpool.run import RunOutcome
    from vmpool.sandbox import Sandbox
    from vmpool.vault import Checkpoint


_LAST_NS: Final = 253_402_300_799 * 10**9  # the end of the year 9999, RFC 3339's last


def rfc3339(unix_ns: int) -> str:
    """Return a time as RFC 3339 has it, in UTC, to the millisecond.

    What a guest calls a time may be none: it is moved to the nearest from 1970 to 9999.
    """
    at = datetime.fromtimestamp(min(max(unix_ns, 0), _LAST_NS) // 1_000_000 / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def milliseconds(ns: int) -> float:
    """Return nanoseconds as milliseconds, to the microsecond."""
    return round(ns / 1e6, 3)


def printable(guest_text: str) -> str:
    """Return text of a guest as Unicode: what was never UTF-8 becomes U+FFFD."""
    if guest_text.isascii():
        return guest_text
    return guest_text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def receipt(value: IdentityReceipt) -> bodies.Receipt:
    """Return an identity receipt."""
    return bodies.Receipt(
        hostname=printable(value.hostname),
        machine_id=printable(value.machine_id),
        boot_id=printable(value.boot_id),
        entropy_bits=value.entropy_bits,
        generators=[printable(name) for name in value.generators],
        clock_error_ms=milliseconds(value.clock_error_ns),
    )


def sandbox(value: Sandbox) -> sandbox_bodies.SandboxAnswer:
    """Return a sandbox, without its access token."""
    return sandbox_bodies.SandboxAnswer(
        id=value.id,
        template=value.template,
        state=value.state.value,
        created_at=rfc3339(value.created_ns),
        expires_at=rfc3339(value.expires_ns),
        on_expiry=value.claim.on_expiry.value,
        idle_timeout=value.claim.idle_timeout,
        auto_resume=value.claim.auto_resume is AutoResume.ON_REQUEST,
        parent=value.claim.parent_id,
        checkpoint=value.claim.parent_checkpoint_id,
        metadata=value.metadata,
        identity=receipt(value.receipt),
        timings_ms=restore_times(value.restore_timings, value.acquire_ns),
    )


def made(value: Sandbox) -> sandbox_bodies.SandboxAnswer:
    """Return a sandbox for whoever made it, with its access token."""
    return msgspec.structs.replace(sandbox(value), access_token=value.access_token)


def checkpoint(value: Checkpoint) -> sandbox_bodies.CheckpointAnswer:
    """Return a checkpoint, without its key."""
    return sandbox_bodies.CheckpointAnswer(
        id=value.id,
        name=value.name,
        keep=value.keep.value,
        sandbox=value.sandbox_id,
        template=value.template,
        base=value.base_id,
        created_at=rfc3339(value.created_ns),
        dirty_bytes=value.dirty_bytes,
        size_bytes=value.size_bytes,
    )


def restore_times(value: RestoreTimings, acquire_ns: int) -> sandbox_bodies.RestoreTimes:
    """Return how long making a sandbox took."""
    return sandbox_bodies.RestoreTimes(
        acquire=milliseconds(acquire_ns),
        spawn=milliseconds(value.spawn_ns),
        load=milliseconds(value.load_ns),
        resume=milliseconds(value.resume_ns),
        hello=milliseconds(value.hello_ns),
        identify=milliseconds(value.identify_ns),
        warm=milliseconds(value.warm_ns),
        rest=milliseconds(value.rest_ns),
    )


def fault(value: Exited) -> Literal["task"] | None:
    """Return `task` when the task failed, by its own word or by ours."""
    failed = value.exit_code != 0 or value.timed_out or value.out_of_memory
    return "task" if failed else None


def outcome(value: Exited) -> tuple[str, Fault | None]:
    """Return how an execution ended, as metrics name it, and whose fault that is."""
    if fault(value) is None:
        return "ok", None
    if value.timed_out:
        return TaskTimeoutError.code, Fault.TASK
    return (TaskMemoryError if value.out_of_memory else TaskError).code, Fault.TASK


def exit_line(value: Exited, began_ns: int) -> bodies.ExitLine:
    """Return the end of an execution that began at `began_ns` on the performance counter."""
    return bodies.ExitLine(
        exit_code=value.exit_code,
        signal=value.signal,
        timed_out=value.timed_out,
        out_of_memory=value.out_of_memory,
        fault=fault(value),
        duration_ms=milliseconds(time.perf_counter_ns() - began_ns),
        context_lost=True if value.context_lost else UNSET,
    )


def result(value: Result) -> bodies.ShownResult:
    """Return a value that code showed."""
    id = value.display_id
    return bodies.ShownResult(
        mime=mime(value.mime),
        is_main=value.is_main,
        display_id=UNSET if id is None else printable(id),
    )


def mime(bundle: dict[str, str]) -> dict[str, str]:
    """Return a MIME bundle of a guest."""
    return {printable(kind): printable(data) for kind, data in bundle.items()}


def run(value: RunOutcome) -> bodies.RunAnswer:
    """Return what came of a run."""
    stdout, stdout_exact = codec.text(value.stdout, cut=value.truncated)
    stderr, stderr_exact = codec.text(value.stderr, cut=value.truncated)
    times = value.timings
    parts = (times.acquire_ns, times.upload_ns, times.execute_ns, times.collect_ns)
    return bodies.RunAnswer(
        id=value.id,
        stdout=stdout,
        stderr=stderr,
        stdout_base64=UNSET if stdout_exact else value.stdout,
        stderr_base64=UNSET if stderr_exact else value.stderr,
        exit_code=value.exited.exit_code,
        signal=value.exited.signal,
        timed_out=value.exited.timed_out,
        out_of_memory=value.exited.out_of_memory,
        fault=fault(value.exited),
        truncated=value.truncated,
        results=[mime(result.mime) for result in value.results],
        error=None
        if value.error is None
        else bodies.ErrorRaised(
            name=printable(value.error.name),
            value=printable(value.error.value),
            traceback=printable(value.error.traceback),
        ),
        files={path: collected(content) for path, content in value.files.items()}
        | {path: uncollected(error) for path, error in value.missing.items()},
        timings_ms=bodies.RunTimes(
            acquire=milliseconds(times.acquire_ns),
            upload=milliseconds(times.upload_ns),
            first_output=None
            if times.first_output_ns is None
            else milliseconds(times.first_output_ns),
            execute=milliseconds(times.execute_ns),
            collect=milliseconds(times.collect_ns),
            total=milliseconds(sum(parts)),
        ),
        identity=receipt(value.receipt),
    )


def collected(content: bytes) -> bodies.CollectedFile:
    """Return a file that could be read."""
    try:
        return bodies.CollectedFile(content=content.decode())
    except UnicodeDecodeError:
        return bodies.CollectedFile(content_base64=content)


def uncollected(error: VmpoolError) -> bodies.CollectedFile:
    """Return why a file could not be read."""
    return bodies.CollectedFile(
        error=bodies.FileFailure(code=error.error_code, detail=printable(error.message))
    )


def file(value: FileInfo) -> bodies.FileEntry:
    """Return one entry of a guest's file system."""
    return bodies.FileEntry(
        path=printable(value.path),
        kind=value.kind.value,
        size_bytes=max(value.size_bytes, 0),
        mode=value.mode & 0o7777,
        owner=printable(value.owner),
        group=printable(value.group),
        modified_at=rfc3339(value.modified_ns),
        target=None if value.target is None else printable(value.target),
        resolved=None if value.resolved is None else printable(value.resolved.path),
        metadata=value.metadata,
    )


def pool(value: policy.Census, *, aim: int) -> bodies.PoolAnswer:
    """Return the clones of one template."""
    return bodies.PoolAnswer(
        aim=aim,
        ready=value.ready,
        restoring=value.restoring,
        held=value.held,
        dying=value.dying,
        waiting=value.waiting,
    )


def template(value: TemplateStatus) -> bodies.TemplateAnswer:
    """Return a template and its pool."""
    return bodies.TemplateAnswer(
        name=name_of(value.name),
        tenant=owner_of(value.name),
        state=value.state.value,
        error=value.error,
        image=value.image_name,
        image_digest=value.image,
        snapshot=value.snapshot,
        created_at=rfc3339(value.created_ns),
        memory_bytes=value.spec.memory_bytes,
        vcpus=value.spec.vcpus,
        disk_bytes=value.spec.disk_bytes,
        accelerator=value.spec.accelerator.value,
        limits=bodies.LimitsAnswer(
            ready=value.limits.ready,
            ready_most=value.limits.ready_most,
            standby=value.limits.standby,
            total=value.limits.total,
            queue=value.limits.queue,
            parallel_restores=value.limits.parallel_restores,
            memory_bytes=value.limits.memory_bytes,
        ),
        pool=pool(value.census, aim=value.aim),
    )


def image(value: Image) -> bodies.ImageAnswer:
    """Return an image."""
    return bodies.ImageAnswer(
        name=value.name,
        digest=value.digest,
        size_bytes=value.size_bytes,
    )
