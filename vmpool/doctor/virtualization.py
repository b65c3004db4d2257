"""Virtualization: what KVM is worth on this host, why not more, and where its tests can run.

From plain values to findings; reads nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmpool.doctor.finding import Finding, State
from vmpool.model import GIB, Accelerator

if TYPE_CHECKING:
    from vmpool.engine.qemu.probe import Probe
    from vmpool.model import Processor

EXTENSIONS = ("vmx", "svm")
"""Flags in /proc/cpuinfo of what hardware KVM runs guests with: Intel's VT-x, AMD's SVM."""

HARDWARE_MODULES = ("kvm_intel", "kvm_amd")

EMULATED_HOST_BYTES = 6 * GIB
"""The emulated host of the kvm ring: 4 GiB that are its own, and QEMU with what it translates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """What KVM has to build on here.

    Attributes:
        extensions: Those of `EXTENSIONS` that the processor shows.
        modules: Kernel modules beside `kvm` that implement it.
    """

    extensions: tuple[str, ...]
    modules: tuple[str, ...]

    def __str__(self) -> str:
        """Why it cannot be what a stock guest needs; empty when it can."""
        if self.extensions:
            return ""
        substitutes = [name for name in self.modules if name not in HARDWARE_MODULES]
        words = "the processor shows neither vmx nor svm"
        if not substitutes:
            return words
        return f"{words}, and {', '.join(substitutes)} does without, for kernels made for it"


def acceleration(probe: Probe, provider: Provider) -> Finding:
    """Judge what executes guest instructions, as it was found by running a guest."""
    fast = probe.accelerator is Accelerator.KVM
    why = ": ".join(filter(None, (probe.reason, str(provider))))
    return Finding(
        name="KVM",
        purpose="runs guests at full speed; without it QEMU emulates them, some ten times slower",
        state=State.OK if fast else State.DEGRADED,
        detail="runs guests" if fast else why,
        remedy=probe.remedy,
    )


def ring(probe: Probe, *, vsock: bool, emulated: Processor | None, available_bytes: int) -> Finding:
    """Judge where the tests of KVM and vhost-vsock can run: here, or in an emulated host.

    Args:
        probe: Whether KVM runs guests here.
        vsock: Whether the kernel grants vsock context ids.
        emulated: What QEMU can emulate; `None` when it does not say.
        available_bytes: Memory that is to be had.
    """
    lacking = []
    if probe.accelerator is not Accelerator.KVM:
        lacking.append("KVM")
    if not vsock:
        lacking.append("vhost-vsock")
    nested = emulated is not None and "svm" in emulated.features
    roomy = available_bytes >= EMULATED_HOST_BYTES
    state, remedy = State.OK, ""
    if not lacking:
        detail = "can run on this machine"
    elif nested and roomy:
        detail = f"can run in an emulated host, for lack of {' and '.join(lacking)} here"
    elif nested:
        state, remedy = State.DEGRADED, "free memory"
        detail = (
            f"neither here, for lack of {' and '.join(lacking)}, nor in an emulated host, "
            f"which takes {EMULATED_HOST_BYTES // GIB} GiB of memory"
        )
    else:
        state, remedy = State.DEGRADED, "install a QEMU whose TCG has SVM"
        detail = (
            f"neither here, for lack of {' and '.join(lacking)}, nor in an emulated host: "
            "QEMU emulates no processor with SVM"
        )
    return Finding(
        name="kvm tests",
        purpose="make test-kvm, for whoever changes vmpool",
        state=state,
        detail=detail,
        remedy=remedy,
    )
