"""Seccomp: the system calls that no QEMU has a use for, refused to it.

QEMU's own filter, `-sandbox`, ends or refuses what would give rights or start programs. It lets
through ways into the kernel that need no rights and are where kernels break: programs for the
kernel, rings of requests, keys, other processes' memory, mounts, protocols of all kinds. This
filter refuses those, from before QEMU's first instruction on. See seccomp(2).
"""

from __future__ import annotations

import ctypes
import errno
import struct
import sys

from vmpool.engine.qemu.jail import calls

# linux/filter.h and linux/bpf_common.h
_LOAD = 0x20  # a word of the data
_IF_EQUAL = 0x15
_IF_AT_LEAST = 0x35
_RETURN = 0x06
_INSTRUCTION = struct.Struct("=HBBI")

# linux/seccomp.h
_SET_MODE_FILTER = 1
_ALLOW = 0x7FFF0000
_ERROR = 0x00050000
_KILL = 0x80000000
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16

# linux/audit.h, asm/unistd.h
_X86_64 = 0xC000003E
_X32_FROM = 0x40000000

_SYS_SECCOMP = 317
_SYS_SOCKET = 41
_SYS_SOCKETPAIR = 53
_AF_UNIX = 1

REFUSED = {
    # asm/unistd_64.h
    "ptrace": 101,
    "personality": 135,
    "modify_ldt": 154,
    "pivot_root": 155,
    "chroot": 161,
    "acct": 163,
    "mount": 165,
    "umount2": 166,
    "quotactl": 179,
    "io_setup": 206,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "migrate_pages": 256,
    "unshare": 272,
    "move_pages": 279,
    "perf_event_open": 298,
    "fanotify_init": 300,
    "name_to_handle_at": 303,
    "open_by_handle_at": 304,
    "setns": 308,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "kcmp": 312,
    "finit_module": 313,
    "kexec_file_load": 320,
    "bpf": 321,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "quotactl_fd": 443,
}
"""System calls by name; each answers that it is not permitted."""


def restrict() -> None:
    """Put the calling thread, which can get no new privileges, under the filter for good.

    Raises:
        HostError: The kernel refused; `isolation_failed`.
    """
    code = program()
    text = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog, with the gap that its pointer's alignment makes
    fprog = struct.pack("=H6xQ", len(code) // _INSTRUCTION.size, ctypes.addressof(text))
    calls.syscall(_SYS_SECCOMP, _SET_MODE_FILTER, 0, fprog)


def program() -> bytes:
    """Return the filter, as the kernel takes it."""
    assert sys.byteorder == "little"  # an argument's lower half comes first
    refuse = _ERROR | errno.EPERM
    return b"".join(
        (
            _do(_LOAD, _ARCHITECTURE_AT),
            # Of another architecture's numbers none is known: 32-bit programs are not ours.
            _do(_IF_EQUAL, _X86_64, 1, 0),
            _do(_RETURN, _KILL),
            _do(_LOAD, _NUMBER_AT),
            _do(_IF_AT_LEAST, _X32_FROM, 0, 1),
            _do(_RETURN, refuse),
            *(
                _do(_IF_EQUAL, number, 0, 1) + _do(_RETURN, refuse)
                for number in sorted(REFUSED.values())
            ),
            # A pair of most families is refused only after both its sockets were made.
            _do(_IF_EQUAL, _SYS_SOCKET, 2, 0),
            _do(_IF_EQUAL, _SYS_SOCKETPAIR, 1, 0),
            _do(_RETURN, _ALLOW),
            _do(_LOAD, _FIRST_ARGUMENT_AT),
            _do(_IF_EQUAL, _AF_UNIX, 0, 1),
            _do(_RETURN, _ALLOW),
            _do(_RETURN, refuse),
        )
    )


def _do(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    """Return an instruction; a jump passes over so many when its question is answered yes or no."""
    return _INSTRUCTION.pack(code, then, otherwise, value)
