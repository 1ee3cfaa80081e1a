"""A kernel that refuses what newer ones have: real seccomp filters, for this process and its children, for good."""

from __future__ import annotations

import ctypes
import errno
import platform
import socket
import struct
from typing import Final, NamedTuple

from gatepass_broker.peer import SO_PEERPIDFD
from gatepass_broker.pidfd import PIDFD_GET_INFO

_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_MODE_FILTER: Final = 2
_RET_ERRNO: Final = 0x00050000
_RET_ALLOW: Final = 0x7FFF0000
_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_NUMBER: Final = 0  # struct seccomp_data: int nr, u32 arch, u64 instruction_pointer, u64 args[6]
_ARGUMENTS: Final = 16

_NUMBERS: Final = {
    "x86_64": {"ioctl": 16, "getsockopt": 55, "pidfd_open": 434},
    "aarch64": {"ioctl": 29, "getsockopt": 209, "pidfd_open": 434},
}


class Refusal(NamedTuple):
    """A system call with these low 32 bits in some of its arguments, and what it fails with."""

    call: str
    arguments: dict[int, int]
    error: int


NO_INFO: Final = Refusal("ioctl", {1: PIDFD_GET_INFO}, errno.ENOTTY)
"""Before Linux 6.13."""
NO_PEER_PIDFD: Final = Refusal("getsockopt", {1: socket.SOL_SOCKET, 2: SO_PEERPIDFD}, errno.ENOPROTOOPT)
"""Before Linux 6.5."""
NO_PIDFD_OPEN: Final = Refusal("pidfd_open", {}, errno.ENOSYS)
"""Before Linux 5.3."""

OLD_KERNELS: Final = {
    "6.13": (),
    "6.5": (NO_INFO,),
    "6.1": (NO_INFO, NO_PEER_PIDFD),
    "5.2": (NO_INFO, NO_PEER_PIDFD, NO_PIDFD_OPEN),
}
"""What a kernel as old as that, or a little newer, refuses."""


def can_refuse() -> bool:
    """Whether the numbers of system calls are known for this machine."""
    return platform.machine() in _NUMBERS


def refuse(*refusals: Refusal) -> None:
    """Let these calls fail from now on. Raise `OSError`."""
    program = b"".join(_check(refusal) for refusal in refusals) + _instruction(_RETURN, _RET_ALLOW)
    buffer = ctypes.create_string_buffer(program)
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_void_p(ctypes.addressof(header)), 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def _check(refusal: Refusal) -> bytes:
    """Return instructions that fail the call if all matches, and else go on behind themselves."""
    wanted = [(_NUMBER, _NUMBERS[platform.machine()][refusal.call])]
    wanted += [(_ARGUMENTS + 8 * place, value) for place, value in refusal.arguments.items()]
    code = b""
    for index, (offset, value) in enumerate(wanted):
        behind = 2 * (len(wanted) - index - 1) + 1  # to skip, those of this comparison done
        code += _instruction(_LOAD, offset) + _instruction(_JUMP_IF_EQUAL, value, otherwise=behind)
    return code + _instruction(_RETURN, _RET_ERRNO | refusal.error)


def _instruction(code: int, value: int, otherwise: int = 0) -> bytes:
    return struct.pack("HBBI", code, 0, otherwise, value)
