"""What is the case on this machine, as `observe` finds it and `findings` judges it."""

from __future__ import annotations

from typing import Final, NamedTuple

from gatepass.errors import GatepassError
from gatepass.openclaw_setup.answering import Answering
from gatepass.openclaw_setup.launcher import LauncherFacts
from gatepass.replies import Whoami

TOKEN_VARIABLE: Final = "OPENCLAW_GATEWAY_TOKEN"


class Issue(NamedTuple):
    """What OpenClaw finds wrong in its configuration."""

    path: str
    message: str


class Listener(NamedTuple):
    """A listening socket."""

    uid: int
    program: str | None
    """The name that its process shows; None where it is another user's, or hides itself as gatepass does."""


class Facts(NamedTuple):
    """What is the case."""

    config: str
    config_mode: int
    proxy_file: str
    launcher: LauncherFacts
    issues: tuple[Issue, ...]
    token_variables: tuple[str, ...]
    """Places that set OPENCLAW_GATEWAY_TOKEN."""
    at_proxy_port: Listener | None
    at_openclaw_port: Listener | None
    answering: Answering
    """On the port that commands dial."""
    broker: Whoami | GatepassError
    """What the broker says of this user, or why it does not."""
    is_locked: bool
    """Whether an administrator has locked gatepass."""
    uid: int
    proxy_uids: frozenset[int]
    """Users that may run the proxy."""
    commands: str
    """The directory of gatepass's commands."""
