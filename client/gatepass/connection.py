"""Connect to the broker, and to nobody else."""

from __future__ import annotations

import socket

from gatepass.server_identity import check_path, check_server


def connect(path: str) -> socket.socket:
    """Return a non-blocking connection to the broker at `path`.

    Never waits: a Unix socket connects at once, or refuses with EAGAIN while its queue is full (connect(2)). Raise
    `UnreachableError` (IMPOSTOR) if somebody else may be there, `ConfigurationError` for an unusable path, `OSError`.
    """
    owner = check_path(path)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        connection.connect(path)
        check_server(connection, path, owner)
    except BaseException:
        connection.close()
        raise
    return connection
