"""A token in a file that no file system holds: a sealed memfd that the holder's /proc entry gives a path to.

Against a file in a runtime directory: nothing is left behind when the holder is killed, and no two holders can meet.
Opening the path takes the right to ptrace the holder (proc(5)), which is: root, and this user. A sealed one
(memfd_create(2)) cannot be changed by those who can open it, so it is replaced as a whole.
"""

from __future__ import annotations

import fcntl
import os
from types import TracebackType
from typing import Final

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class TokenFile:
    """A path whose content is always one whole token, without a newline. It lives as long as this process."""

    def __init__(self, token: str) -> None:
        self._descriptor = _sealed(token)

    @property
    def path(self) -> str:
        """The path, for processes of this user in this pid namespace."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def replace(self, token: str) -> None:
        """Let the path lead to `token`: whoever opens it gets the old one or the new one, never a mixture."""
        descriptor = _sealed(token)
        try:
            os.dup2(descriptor, self._descriptor, inheritable=False)
        finally:
            os.close(descriptor)

    def __enter__(self) -> TokenFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._descriptor)


def _sealed(content: str) -> int:
    descriptor = os.memfd_create("gatepass-token", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(descriptor, 0o400)
        os.write(descriptor, content.encode("ascii"))
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
