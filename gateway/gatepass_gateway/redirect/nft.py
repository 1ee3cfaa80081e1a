"""nftables through its own library, in this process: a table with `flags owner` lives as long as the netlink socket
that made it, and a child process would take that with it.

The library keeps one socket for each context (libnftables(3); nft_mnl_socket_open() in nft_ctx_new()).
"""

from __future__ import annotations

import ctypes
import signal
from functools import cache
from types import TracebackType
from typing import Final, Self

from gatepass.errors import ConfigurationError, ErrorCode, GatepassError

_LIBRARY: Final = "libnftables.so.1"
_DEFAULT: Final = 0  # NFT_CTX_DEFAULT
_STATELESS: Final = 1 << 2  # NFT_CTX_OUTPUT_STATELESS: no counters
_NUMERIC: Final = 0xF << 7  # NFT_CTX_OUTPUT_NUMERIC_ALL: no names, which files like /etc/protocols could change

_SIGNATURES: Final = {
    "nft_ctx_new": (ctypes.c_void_p, [ctypes.c_uint32]),
    "nft_ctx_free": (None, [ctypes.c_void_p]),
    "nft_ctx_buffer_output": (ctypes.c_int, [ctypes.c_void_p]),
    "nft_ctx_buffer_error": (ctypes.c_int, [ctypes.c_void_p]),
    "nft_ctx_get_output_buffer": (ctypes.c_char_p, [ctypes.c_void_p]),
    "nft_ctx_get_error_buffer": (ctypes.c_char_p, [ctypes.c_void_p]),
    "nft_ctx_output_set_flags": (None, [ctypes.c_void_p, ctypes.c_uint]),
    "nft_run_cmd_from_buffer": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]),
}
"""<nftables/libnftables.h>"""


class NftError(GatepassError):
    """The library, or the kernel, refused a command. `reason` is what it said, in one line."""

    def __init__(self, said: str) -> None:
        self.reason = (said.splitlines() or ["no reason given"])[0].removeprefix("Error: ")
        super().__init__(ErrorCode.INTERNAL, f"nftables: {self.reason}")

    @property
    def is_missing(self) -> bool:
        """Whether something that was named, or a part of the kernel, is not there."""
        return "No such file or directory" in self.reason

    @property
    def is_forbidden(self) -> bool:
        """Whether the kernel does not let us."""
        return "Operation not permitted" in self.reason


class Nft:
    """A context of libnftables, with a netlink socket of its own. Not safe for threads; a context manager."""

    def __init__(self) -> None:
        self._library = _library()
        self._context: int | None = self._library.nft_ctx_new(_DEFAULT)
        if not self._context:
            raise GatepassError(ErrorCode.INTERNAL, "nftables: no context can be made, is the memory full?")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_output_set_flags(self._context, _STATELESS | _NUMERIC)

    def run(self, commands: str) -> str:
        """Run `commands` (nft(8)), the changes among them as one transaction. Return the output; raise `NftError`."""
        # A signal would cut short what the library waits for, and it takes that for a failure.
        held_back = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            status = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held_back)
        if status != 0:
            raise NftError(self._library.nft_ctx_get_error_buffer(self._context).decode(errors="replace"))
        output: bytes = self._library.nft_ctx_get_output_buffer(self._context)
        return output.decode(errors="replace")

    def close(self) -> None:
        """Close the socket. The kernel takes away the tables that it owns."""
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the socket."""
        self.close()


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise ConfigurationError(f"{_LIBRARY} is missing; on Debian: apt-get install nftables") from None
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
