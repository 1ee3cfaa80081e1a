"""The policy: who may have which tokens. Values in, values out; nothing here reads a file or a clock.

The first rule whose selectors all match the caller is the only one that counts. A request that goes beyond it is
denied with the reason: it is never trimmed to fit and never tried on a later rule.
"""

from __future__ import annotations

from typing import NamedTuple

from gatepass.claims import split_scope
from gatepass.errors import DeniedError, ErrorCode
from gatepass.messages import IssueRequest
from gatepass_broker.caller import Caller


class Selector(NamedTuple):
    """Which callers a rule is for. Each set that is there must hold; one of its members is enough.

    `uids` is compared with the caller's uid, each set in `gids` with its gid and supplementary groups together.
    """

    uids: tuple[frozenset[int], ...] = ()
    gids: tuple[frozenset[int], ...] = ()


class Grant(NamedTuple):
    """What a rule gives."""

    rule: str
    """The rule's name, for the journal."""
    identity: str
    audiences: tuple[str, ...]
    """At least one; the first is the default."""
    scopes: tuple[str, ...]
    """Sorted."""
    max_ttl: int
    """Longest life of a token in seconds."""


class Rule(NamedTuple):
    """One rule of the configuration."""

    selector: Selector
    grant: Grant


class Terms(NamedTuple):
    """What a token is to say, as agreed between a request and its grant."""

    audience: str
    scope: tuple[str, ...]
    ttl: int


def find_grant(rules: tuple[Rule, ...], caller: Caller) -> Grant | None:
    """Return the grant of the first rule that matches `caller`, or None: the default is to deny.

    A caller whose uid is unknown has no grant, whatever its groups: a token is bound to a uid.
    """
    if caller.uid is None:
        return None
    return next((rule.grant for rule in rules if _matches(rule.selector, caller)), None)


def agree(request: IssueRequest, grant: Grant, default_ttl: int) -> Terms:
    """Return what the requested token will say. Raise `DeniedError` if that goes beyond the grant."""
    return Terms(_audience(request, grant), _scope(request, grant), _ttl(request, grant, default_ttl))


def _matches(selector: Selector, caller: Caller) -> bool:
    if not selector.uids and not selector.gids:
        return False
    groups = caller.groups if caller.gid is None else caller.groups | {caller.gid}
    return all(caller.uid in uids for uids in selector.uids) and all(groups & gids for gids in selector.gids)


def _audience(request: IssueRequest, grant: Grant) -> str:
    if request.audience is None:
        return grant.audiences[0]
    if request.audience not in grant.audiences:
        raise _denied(f"audience '{request.audience}' is not granted; granted: {', '.join(grant.audiences)}")
    return request.audience


def _scope(request: IssueRequest, grant: Grant) -> tuple[str, ...]:
    if request.scope is None:
        return grant.scopes
    wanted = split_scope(request.scope)
    beyond = sorted(set(wanted) - set(grant.scopes))
    if beyond:
        raise _denied(f"scope '{' '.join(beyond)}' is not granted; granted: {' '.join(grant.scopes) or 'none'}")
    return wanted


def _ttl(request: IssueRequest, grant: Grant, default_ttl: int) -> int:
    if request.ttl is None:
        return min(default_ttl, grant.max_ttl)
    if request.ttl > grant.max_ttl:
        raise _denied(f"a life of {request.ttl} s is not granted; ask for at most {grant.max_ttl} s")
    return request.ttl


def _denied(reason: str) -> DeniedError:
    return DeniedError(ErrorCode.DENIED, reason)
