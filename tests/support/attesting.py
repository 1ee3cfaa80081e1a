"""Attests whoever connects, as a process of its own: `python -m support.attesting SOCKET [KERNEL]`.

Prints a line when it listens, then one for each connection: what it knows of the caller, as JSON. `KERNEL` is one of
`seccomp.OLD_KERNELS`, whose lacks it then has.
"""

from __future__ import annotations

import json
import os
import socket
import sys

from gatepass_broker.peer import attest
from gatepass_broker.pidfd import boottime
from gatepass_broker.places import Places
from support.seccomp import OLD_KERNELS, refuse


def main() -> None:
    """Serve until killed."""
    refuse(*OLD_KERNELS[sys.argv[2] if len(sys.argv) > 2 else "6.13"])
    places = Places.of_this_machine()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(sys.argv[1])
        os.chmod(sys.argv[1], 0o666)  # noqa: PTH101
        listening.listen()
        print("ready", flush=True)
        while True:
            empty_at = boottime()  # those who connect one after the other, with a question between
            connection, _ = listening.accept()
            with connection:
                peer = attest(connection, places, empty_at)
                caller = peer.caller
                cgroup = None if caller.cgroup is None else caller.cgroup._asdict()
                known = caller._replace(groups=frozenset())._asdict() | {"groups": sorted(caller.groups)}
                line = json.dumps(known | {"cgroup": cgroup, "exited": peer.has_exited()})
                peer.close()
            print(line, flush=True)  # nothing is left of this one when the line is read


if __name__ == "__main__":
    main()
