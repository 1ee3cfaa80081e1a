from __future__ import annotations

import os
import pwd

import pytest

from gatepass.cli.accounts import Account, find_account, user_name
from gatepass.cli.manners import USAGE, CommandError

ME = pwd.getpwuid(os.getuid())


def test_a_user_is_found_by_name_and_by_number_with_the_groups_of_a_login() -> None:
    expected = Account(ME.pw_uid, ME.pw_gid, tuple(sorted(os.getgrouplist(ME.pw_name, ME.pw_gid))))
    assert find_account(ME.pw_name) == expected
    assert find_account(str(ME.pw_uid)) == expected


def test_a_number_without_an_account_is_a_user_of_unknown_groups() -> None:
    assert find_account("3987654321") == Account(3_987_654_321, None, None)


def test_a_name_comes_before_a_number_as_for_chown(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = pwd.struct_passwd(("4711", "x", 1234, 1234, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwnam", lambda name: odd)
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid])
    assert find_account("4711").uid == 1234


@pytest.mark.parametrize("user", ["no-such-user", "", "-1", "4294967295", "99999999999999999999", "1.0", "१", "a\0b"])
def test_what_is_no_user_is_said_so(user: str) -> None:
    with pytest.raises(CommandError, match="there is no user") as caught:
        find_account(user)
    assert caught.value.status == USAGE


def test_a_user_without_a_name_is_shown_by_number() -> None:
    assert user_name(ME.pw_uid) == ME.pw_name
    assert user_name(3_987_654_321) == "3987654321"
    assert user_name(2**70) == str(2**70)
    assert user_name(None) == "unknown"
