"""The accounts that gatepass runs as, and who may ask it."""

from __future__ import annotations

import grp
from functools import partial
from typing import Final

from gatepass_broker.install.commands import run
from gatepass_broker.install.layout import BROKER_ACCOUNT, CALLERS_GROUP, GATEWAY_ACCOUNT
from gatepass_broker.install.manifest import Manifest
from gatepass_broker.install.observe import find_account, find_group
from gatepass_broker.install.steps import Steps

USERS: Final = (BROKER_ACCOUNT, GATEWAY_ACCOUNT)
GROUPS: Final = (CALLERS_GROUP, *USERS)


def missing_users() -> list[str]:
    """Return the accounts that are not there."""
    return [name for name in USERS if find_account(name) is None]


def missing_groups() -> list[str]:
    """Return the groups that are not there."""
    return [name for name in GROUPS if find_group(name) is None]


def is_member(name: str) -> bool:
    """Whether an account is in the group that may ask for tokens."""
    account = find_account(name)
    try:
        group = grp.getgrnam(CALLERS_GROUP)
    except KeyError:
        return False
    return account is not None and (account.gid == group.gr_gid or account.name in group.gr_mem)


def add_member(name: str) -> None:
    """Put an account into that group. Raise `CommandError`."""
    run("gpasswd", "--add", name, CALLERS_GROUP)


def remove(steps: Steps, manifest: Manifest) -> None:
    """Remove what install has made of accounts, groups and memberships."""
    for name in manifest.members:
        if CALLERS_GROUP not in manifest.groups and is_member(name):
            steps.attempt(
                f"take {name} out of the group {CALLERS_GROUP}",
                partial(run, "gpasswd", "--delete", name, CALLERS_GROUP),
            )
    for name in manifest.users:
        if find_account(name) is not None:
            steps.attempt(f"remove the user {name}", partial(run, "userdel", name))
    for name in manifest.groups:
        if find_group(name) is not None:  # userdel takes the user's own group with it
            steps.attempt(f"remove the group {name}", partial(run, "groupdel", name))
