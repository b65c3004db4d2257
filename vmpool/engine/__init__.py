"""Engine: the seam between the product and the hypervisor.

An engine is finished when `tests/contract/test_engine.py` passes on it. How memory is shared and
which migration capability is set stays inside the engine's own package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from vmpool.delta import Delta
    from vmpool.errors import InfrastructureError
    from vmpool.model import AgentAddress, Attachment, Kernel, MachineSpec, Processor
    from vmpool.snapshot import Snapshot


class Capture(Protocol):
    """A checkpoint being made of one machine: enter, pause, `take`, resume, `write`, leave.

    Entering finds out how much there is to copy, so that `take` need not, once no other capture of
    the machine is under way. Leaving gives back what it held and removes what is not whole. Each
    step raises `EngineError` when the hypervisor failed or died, `DiskFullError` or `SnapshotError`
    when `directory` did not take it; the machine is as it was, and the directory holds no
    checkpoint.
    """

    @property
    def dirty_bytes(self) -> int:
        """How much memory of its own the machine had when it was taken."""

    async def __aenter__(self) -> Self:
        """Prepare; the machine may run."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give back what was held; completes when cancelled."""

    async def take(self) -> None:
        """Copy devices and changed memory of the paused machine; it may run again afterwards.

        Raises:
            EngineError: It is not paused; code `machine_running`.
        """

    async def write(self) -> None:
        """Write what was taken; publishing makes it durable. The machine may run, or be gone."""

    async def lend(self) -> Delta | None:
        """Write what was taken but for the memory, which stays in this process until it is left.

        In place of `write`, for children that are loaded while the capture is held.

        Returns:
            The memory; `None` when it was too much to be held, and is written as well.
        """


class Machine(Protocol):
    """One hypervisor process that holds a guest."""

    @property
    def pid(self) -> int:
        """Process id of the hypervisor."""

    @property
    def spec(self) -> MachineSpec:
        """What this machine shares with its siblings."""

    @property
    def agent_address(self) -> AgentAddress:
        """Where the guest agent's byte stream is reached."""

    async def processor(self) -> Processor:
        """Return what the guest's virtual CPUs are, as they turned out on this host.

        Raises:
            EngineError: The hypervisor failed or died; call `kill()`.
        """

    async def pause(self) -> None:
        """Stop the virtual CPUs. *Idempotent.*

        Raises:
            EngineError: The hypervisor failed or died; call `kill()`.
        """

    async def resume(self) -> None:
        """Let the virtual CPUs run. *Idempotent.*

        Raises:
            EngineError: The hypervisor failed or died; call `kill()`.
        """

    async def connect(self, tap: int) -> None:
        """Give the guest a network. *Not idempotent.*

        Args:
            tap: Descriptor of its other end, the caller's to close: the machine has one of its own.

        Raises:
            ConflictError: `nic_missing`; the machine has no network device.
            EngineError: The hypervisor refused, and there is no network; or failed or died.
        """

    async def disconnect(self) -> None:
        """Take the guest's network away, if it has one, for the guest to see. *Idempotent.*

        Raises:
            EngineError: The hypervisor failed or died; call `kill()`.
        """

    async def save(self, directory: Path) -> None:
        """Write memory, device state and disk of a paused machine into `directory`.

        Only for a machine that was booted: its memory is the file that its clones will share.
        The machine is of no further use; call `kill()`. *Not idempotent.*

        Args:
            directory: Existing, empty, on the state file system. Filled with the files that
                `Snapshot` names; the caller adds the manifest and publishes.

        Raises:
            EngineError: The hypervisor failed; `directory` holds no snapshot.
            DiskFullError: The disk is full; `directory` holds no snapshot.
        """

    def capture(self, directory: Path) -> Capture:
        """Return what writes into `directory` how this machine differs from its template.

        Only for a machine that was restored, which goes on to be of use.

        Args:
            directory: Existing, empty, on the state file system. Filled with the files of a
                checkpoint; the caller adds the manifest and publishes.

        Raises:
            EngineError: The machine was booted; code `machine_booted`.
        """

    def capture_disk(self, directory: Path) -> Capture:
        """Return what writes into `directory` the disk of this machine alone, as `capture`.

        What the guest has not written to it yet is not there: have it do so first.

        Raises:
            InvalidRequestError: `disk_missing`; what the guest writes is memory, or the machine was
                booted.
        """

    async def wait(self) -> int:
        """Return the hypervisor's exit code once it has ended; negative for a signal.

        Returns the moment the process dies, whatever the cause, so that a crash is noticed at once.
        May be awaited by several callers and after the end.
        """

    async def obituary(self) -> InfrastructureError:
        """Return what ended the machine, as an error to raise, once it has ended.

        A `GuestError` when the guest did it (`guest_panicked`, `guest_powered_off`,
        `guest_rebooted`, `guest_event_flood`), an `EngineError` with command and log tail when the
        hypervisor did (`qemu_died`).
        """

    async def kill(self) -> None:
        """End the hypervisor; return when it is reaped. *Idempotent*, safe after a crash.

        Files in the attachment's directory are the caller's to remove.
        """

    async def release(self) -> None:
        """Let go of the machine, which runs on for whoever adopts it. *Idempotent.*

        It is of no further use here: its end is not noticed any more.
        """


class Shell(Protocol):
    """A hypervisor that waits for a state and costs no CPU."""

    @property
    def pid(self) -> int:
        """Process id of the hypervisor."""

    async def load(self, snapshot: Snapshot) -> Machine:
        """Load a state and return the paused machine; the shell is spent. *Not idempotent.*

        Args:
            snapshot: The template that the shell was prepared for, or a checkpoint against it.

        Raises:
            SnapshotError: The state does not fit (`snapshot_unfit`) or is damaged; the hypervisor
                is gone.
            EngineError: The hypervisor failed; it is gone. On cancellation it is gone too.
        """

    async def wait(self) -> int:
        """Return the exit code once the waiting hypervisor has ended, as `Machine.wait`."""

    async def kill(self) -> None:
        """End the hypervisor; return when it is reaped. *Idempotent.*"""


class Engine(Protocol):
    """A way to start machines."""

    @property
    def version(self) -> str:
        """The hypervisor's version, as it stands in `MachineSpec.qemu_version`."""

    def close(self) -> None:
        """Give back what is kept to start machines with; those that run go on. *Idempotent.*

        It starts none any more. What is not closed is given back when it is no more.
        """

    def shape(self, spec: MachineSpec) -> str:
        """Return a digest of all in the machine of `spec` that a saved state depends on."""

    async def processor(self, spec: MachineSpec, at: Attachment) -> Processor:
        """Return all that this host can make the virtual CPUs of guests under `spec`'s accelerator.

        Asks a hypervisor that holds no machine and is gone afterwards; takes a tenth of a second.

        Raises:
            HostError: The spec's CPU model is not to be had here; code `cpu_model_unfit`.
            EngineError: The hypervisor failed; nothing is left but files in `at.directory`.
        """

    async def boot(self, spec: MachineSpec, kernel: Kernel, at: Attachment) -> Machine:
        """Boot a machine; return it running, with the guest still coming up.

        Raises:
            EngineError: The hypervisor did not start; nothing is left but files in `at.directory`.
        """

    async def prepare(self, template: Snapshot, at: Attachment) -> Shell:
        """Start a hypervisor that waits for `template`'s state or one that descends from it.

        Raises:
            SnapshotError: This engine makes another machine of its spec than it was saved from;
                code `snapshot_unfit`.
            EngineError: The hypervisor did not start; nothing is left but files in `at.directory`.
        """

    async def reboot(
        self, template: Snapshot, state: Snapshot, kernel: Kernel, at: Attachment
    ) -> Machine:
        """Boot a machine of a template on the disk of one of its checkpoints; return it running.

        The guest is still coming up, and connected to nothing. The machine is of the template like
        one that was restored, and can be captured and adopted like one.

        Args:
            state: A checkpoint against `template`; of it only the disk is used.
            kernel: What the template's image is booted with.

        Raises:
            SnapshotError: `snapshot_unfit`; the checkpoint is of another template, or this engine
                makes another machine of the template's spec than it was saved from.
            EngineError: The hypervisor did not start, or refused the disk; nothing is left but
                files in `at.directory`.
        """

    async def adopt(self, template: Snapshot, at: Attachment) -> Machine:
        """Take over a machine of a manager that is gone, found by its directory; return it running.

        What that manager had begun and not ended is undone: virtual CPUs that it had stopped to
        save the machine run, half a capture is dropped.

        Args:
            template: What the machine was restored from, itself or its forebears.
            at: What it was prepared with.

        Raises:
            EngineError: There is none, or it does not answer, or it never ran; code
                `machine_lost`. What there is, is as it was; end it by its directory.
        """
