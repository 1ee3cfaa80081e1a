"""What `gatepass revoke`, `lock` and `unlock` have in common: they are over when every gateway has acted."""

from __future__ import annotations

import argparse
from typing import Final

from gatepass.cli.lists import count, members
from gatepass.cli.manners import DONE, TRY_LATER, put, put_json, tell
from gatepass.oversight import Enforced

CONFIRMED: Final = """\
Returns when every gateway that is connected to the broker has carried it out. Exits with 4 if one has not within two
seconds: it is in force at the broker then, but sessions may go on at the gateways that are named. Exits with 4 as well
if it is in force but could not be recorded (a full disk). Takes root, but for a broker of your own."""


def show(options: argparse.Namespace, enforced: Enforced, sentence: str) -> int:
    """Say what happened (`sentence`, or all of it as JSON), and which gateways have not confirmed it."""
    if options.json:
        put_json(members(enforced))
    else:
        put(sentence)
    if not enforced.recorded:
        tell(
            "it is in force, but not on the record, as the broker's journal cannot be written: it ends with the next "
            "stop of the broker, unless there is room before. Free space, then say the same again"
        )
    if not enforced.waiting:
        return DONE if enforced.recorded else TRY_LATER
    names = ", ".join(f"'{name}'" for name in enforced.waiting)
    tell(
        f"{len(enforced.waiting)} of {count(enforced.gateways, 'gateway')} did not confirm it in time: {names}; what "
        "is open there may go on: look at its log, and 'gatepass sessions' says when it has acted"
    )
    return TRY_LATER


def reach(enforced: Enforced) -> str:
    """Return how many sessions ended, and where."""
    if not enforced.gateways:
        return "no gateway is connected: each learns of it before anything else when it comes back"
    return f"{count(enforced.ended, 'session')} ended at {count(enforced.acted, 'gateway')}"
