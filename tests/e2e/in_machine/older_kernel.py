"""Runs a command as if the kernel were older. Run by a test inside a booted machine, in place of a service's command.

    python older_kernel.py 6.12|6.4 COMMAND...

A filter (seccomp(2)) answers as a kernel does that has not heard of a call: before Linux 6.13 the ioctl PIDFD_GET_INFO
is none (ENOTTY), before 6.5 the socket option SO_PEERPIDFD is none (ENOPROTOOPT).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
import sys

IOCTL, GETSOCKOPT = {"x86_64": (16, 55), "aarch64": (29, 209)}[platform.machine()]
PIDFD_GET_INFO = 0xFF0B
"""The lower half: the upper one has the size of the struct, which grows."""
SO_PEERPIDFD = 77

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
LOAD, AND, JUMP_IF_EQUAL, RETURN = 0x20, 0x54, 0x15, 0x06  # linux/bpf_common.h
ALLOW, ERRNO = 0x7FFF0000, 0x00050000  # linux/seccomp.h
NUMBER, ARGUMENTS = 0, 16  # struct seccomp_data

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand: struct sock_filter."""


def refused(call: int, argument: int, mask: int, value: int, error: int) -> list[Instruction]:
    """Return what answers a call with an error, if the lower half of an argument is `value` under `mask`."""
    return [
        (LOAD, 0, 0, NUMBER),
        (JUMP_IF_EQUAL, 0, 4, call),
        (LOAD, 0, 0, ARGUMENTS + 8 * argument),
        (AND, 0, 0, mask),
        (JUMP_IF_EQUAL, 0, 1, value),
        (RETURN, 0, 0, ERRNO | error),
    ]


def install(program: list[Instruction]) -> None:
    """Put this process, and what it becomes, under the filter."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    filter_ = struct.pack("@HP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter_, 0, 0)):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def check(error: int, attempt: str) -> None:
    """Exit unless the filter does what it is for: a test would pass without it."""
    pidfd = os.pidfd_open(os.getpid())
    near, far = socket.socketpair()
    try:
        if attempt == "ioctl":
            fcntl.ioctl(pidfd, 0xC040FF0B, bytes(64))
        else:
            near.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
    except OSError as refusal:
        if refusal.errno == error:
            return
    finally:
        os.close(pidfd)
        near.close()
        far.close()
    sys.exit(f"{attempt} is not refused with {error}")


def main(version: str, *command: str) -> None:
    """Become the command."""
    program = refused(IOCTL, 1, 0xFFFF, PIDFD_GET_INFO, errno.ENOTTY)
    if version == "6.4":
        program += refused(GETSOCKOPT, 2, 0xFFFFFFFF, SO_PEERPIDFD, errno.ENOPROTOOPT)
    install([*program, (RETURN, 0, 0, ALLOW)])
    check(errno.ENOTTY, "ioctl")
    if version == "6.4":
        check(errno.ENOPROTOOPT, "getsockopt")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
