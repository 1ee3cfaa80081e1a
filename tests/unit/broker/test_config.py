"""The configuration: what it means, and what is said about a wrong one."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest

from gatepass.daemon.toml_tables import parse_tables
from gatepass.errors import ConfigurationError, ErrorCode
from gatepass.messages import Binding
from gatepass_broker.config import load, resolve
from gatepass_broker.operator_scopes import OPERATOR_SCOPES
from gatepass_broker.peer import overflow_uid
from gatepass_broker.personal import personal
from gatepass_broker.policy import condition
from gatepass_broker.schema import File
from gatepass_broker.settings import Settings

BASE = """
[broker]
id = "host"
loopback_user = "derek@example.com"

[[socket]]
path = "/run/gatepass/broker.sock"

[[rule]]
uid = 1000
scopes = ["operator.read"]
"""


def settings(text: str) -> Settings:
    return resolve(parse_tables(text.encode(), File), source="broker.toml", digest="x")


@pytest.mark.parametrize(
    "text", ["x = " + "[" * 5_000, BASE.replace("uid = 1000", 'user = "a\\u0000b"')], ids=["deep", "NUL"]
)
def test_a_file_that_no_library_likes_is_an_error_and_no_crash(text: str) -> None:
    assert error(text)


def error(text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        settings(text)
    assert caught.value.code is ErrorCode.MISCONFIGURED
    return caught.value.message


def test_defaults() -> None:
    result = settings(BASE)
    (rule,) = result.rules.rules

    assert result.rules.issuer == "gatepass:host"
    assert rule.selector == (condition("uid", 1000),)
    assert rule.grant.identity == "derek@example.com"
    assert (rule.grant.rule, rule.grant.audiences, rule.grant.max_ttl) == ("rule[0]", ("openclaw",), 3600)
    assert result.state_dir == Path("/var/lib/gatepass")
    assert result.jwks_file is None
    (entry,) = result.sockets
    assert (entry.mode, entry.owner, entry.group, entry.allow) == (0o660, None, None, frozenset({"request"}))


def test_names_are_looked_up_at_load() -> None:
    user, group = pwd.getpwuid(0).pw_name, grp.getgrgid(0).gr_name
    text = BASE.replace("uid = 1000", f'user = ["{user}"]\ngroup = "{group}"\nuid = [0, 1]')

    assert settings(text).rules.rules[0].selector == (
        condition("uid", 0, 1),
        condition("user", 0, wanted=f"{user} (0)"),
        condition("group", 0, wanted=f"{group} (0)"),
    )


def test_every_key_of_a_rule() -> None:
    text = BASE.replace(
        'scopes = ["operator.read"]',
        'scopes = ["x.*", "operator.read", "*"]\nname = "all"\nunit = ["a.service", "b@*.scope"]\n'
        'user_unit = "t-\\\\x2d.scope"\nslice = "-.slice"\nuser_slice = ["app.slice"]\ncgroup = ["/", "/a/b.service"]\n'
        'container = "0123456789ab"\npid_namespace = ["host", "nested"]\nbind = "process"\nreconnect = 604800\n'
        "per_minute = 7",
    )
    (rule,) = settings(text).rules.rules

    assert rule.selector == (
        condition("uid", 1000),
        condition("unit", "a.service", "b@*.scope"),
        condition("user_unit", r"t-\x2d.scope"),
        condition("slice", "-.slice"),
        condition("user_slice", "app.slice"),
        condition("cgroup", "/", "/a/b.service"),
        condition("container", "0123456789ab"),
        condition("pid_namespace", "host", "nested"),
    )
    assert (rule.grant.scopes, rule.grant.scope_patterns) == (("operator.read",), ("*", "x.*"))
    assert (rule.grant.binding, rule.grant.reconnect, rule.grant.per_minute) == (Binding.PROCESS, 604_800, 7)


def test_a_rule_asks_and_gives_nothing_more_by_default() -> None:
    (rule,) = settings(BASE).rules.rules

    assert (rule.grant.binding, rule.grant.reconnect, rule.grant.per_minute) == (Binding.UID, 0, None)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("loopback_user", "loopback_usr", "broker: there is no key 'loopback_usr' here; did you mean 'loopback_user'?"),
        ("[[rule]]", "[[rules]]", "there is no key 'rules' here; did you mean 'rule'?"),
        ("scopes =", "scope =", "rule[0]: there is no key 'scope' here; did you mean 'scopes'?"),
        ('scopes = ["operator.read"]', "", "rule[0]: the key 'scopes' is missing"),
        ("uid = 1000", "", "rule[0]: say whom this rule is for"),
        ("uid = 1000", "uid = true", "rule[0].uid: "),
        ("uid = 1000", "uid = -1", "rule[0].uid: "),
        ("uid = 1000", "uid = 4294967295", "rule[0].uid: "),
        ("uid = 1000", f"uid = {overflow_uid()}", "it never matches"),
        ("uid = 1000", 'user = "no-such-user"', "rule[0].user: there is no user 'no-such-user'"),
        ("uid = 1000", 'group = "no-such-group"', "rule[0].group: there is no group"),
        ("uid = 1000", "uid = 1000\nmax_ttl = 3601", "rule[0].max_ttl: 3601 is more than broker.max_ttl"),
        ("uid = 1000", "uid = 1000\naudiences = []", "rule[0].audiences: name at least one"),
        ("operator.read", "operator read", "rule[0].scopes: "),
        ("operator.read", 'a\\"b', "rule[0].scopes: "),
        ("derek@example.com", "derek@example@com", "more than one '@'"),
        ("derek@example.com", "derek\\u0000", "broker.loopback_user: "),
        ("derek@example.com", " derek", "broker.loopback_user: "),
        ("derek@example.com", "d\\u0435rek@example.com", "broker.loopback_user: "),
        ('id = "host"', 'id = "host"\ndefault_ttl = 4000', "broker.default_ttl: 4000 is more than"),
        ('id = "host"', 'id = "host"\nmax_ttl = 100000', "broker.max_ttl: "),
        ('id = "host"', 'id = "host"\nstate_dir = "state"', "not an absolute path"),
        ("/run/gatepass/broker.sock", "@gatepass", "socket[0].path: abstract sockets have no permissions"),
        ("/run/gatepass/broker.sock", "broker.sock", "socket[0].path: 'broker.sock' is not an absolute path"),
        ('broker.sock"', 'broker.sock"\nmode = "4777"', "socket[0].mode: "),
        ('broker.sock"', 'broker.sock"\ngroup = "no-such-group"', "socket[0].group: there is no group"),
        ('broker.sock"', 'broker.sock"\nallow = ["everything"]', "socket[0].allow"),
        ('[[socket]]\npath = "/run/gatepass/broker.sock"', "", "there is no [[socket]]"),
        ("[broker]", "[broker", "(at line 2"),
        *(
            ("uid = 1000", f"unit = {name}", "rule[0].unit: ")
            for name in (
                '"openclaw"',
                '"openclaw.Service"',
                '"openclaw.slice"',
                '"openclaw.target"',
                '"a b.service"',
                '"user@1000.service/a.scope"',
                '"openclaw@.service"',
                '"ä.service"',
                '".service"',
                '"a.service\\n"',
                f'"{"a" * 248}.service"',
                '["a.service", "b"]',
            )
        ),
        ("uid = 1000", 'user_unit = "tui"', "rule[0].user_unit: "),
        ("uid = 1000", 'slice = "openclaw.service"', "rule[0].slice: "),
        ("uid = 1000", 'user_slice = "app/b.slice"', "rule[0].user_slice: "),
        *(
            ("uid = 1000", f'cgroup = "{path}"', "rule[0].cgroup: ")
            for path in ("system.slice", "/a/../b", "/a/./b", "/a//b", "/a/", "//", "/a\\nb", "/..")
        ),
        *(
            ("uid = 1000", f'container = "{text}"', "rule[0].container: ")
            for text in ("0123456789a", "0123456789AB", "0123456789ag", "0" * 65)
        ),
        ("uid = 1000", 'pid_namespace = "hosts"', "rule[0].pid_namespace: "),
        ("uid = 1000", 'uid = 1000\nbind = "cgroup"', "rule[0].bind: "),
        ("uid = 1000", "uid = 1000\nreconnect = 604801", "rule[0].reconnect: "),
        ("uid = 1000", "uid = 1000\nreconnect = -1", "rule[0].reconnect: "),
        ("uid = 1000", "uid = 1000\nper_minute = 0", "rule[0].per_minute: "),
        ("uid = 1000", 'uid = 1000\nname = "a\\u001b[1m"', "rule[0].name: "),
        (
            "uid = 1000",
            'uid = 1000\nscopes = []\n[[rule]]\nuid = 1\nname = "rule[0]"\nscopes = []\n[[rule]]\nuid = 2',
            "rule[1].name: another rule has the name 'rule[0]'",
        ),
        ("uid = 1000", "uid = 1000\ncontainers = []", "did you mean 'container'?"),
        ("uid = 1000", "uid = 1000\nexecutable = 1", "there is no key 'executable' here; there are: scopes, name, "),
    ],
)
def test_what_is_wrong_where(old: str, new: str, expected: str) -> None:
    assert old in BASE

    assert expected in error(BASE.replace(old, new))


def test_two_sockets_with_one_path() -> None:
    assert "the same path" in error(BASE + '[[socket]]\npath = "/run/gatepass/broker.sock"\n')


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "broker.toml"
    path.write_text(BASE.replace("uid = 1000", "uid = true"))
    path.chmod(0o600)

    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert caught.value.message.startswith(f"{path}: rule[0].uid: ")


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "broker.toml"
    path.write_text(BASE)
    path.chmod(0o600)
    before = load(path).digest
    path.write_text(BASE + "# changed\n")

    assert load(path).digest != before


class TestPersonal:
    def environ(self, directory: Path) -> dict[str, str]:
        return {"XDG_RUNTIME_DIR": str(directory), "XDG_STATE_HOME": str(directory / "state")}

    def test_it_serves_this_user_only_with_everything(self, tmp_path: Path) -> None:
        result = personal("derek@example.com", 1234, self.environ(tmp_path))
        (rule,) = result.rules.rules
        (entry,) = result.sockets

        assert rule.selector == (condition("uid", 1234),)
        assert (rule.grant.identity, rule.grant.scopes) == ("derek@example.com", OPERATOR_SCOPES)
        assert (entry.path, entry.mode) == (tmp_path / "gatepass" / "broker.sock", 0o600)
        assert entry.allow == {"request", "follow", "admin"}
        assert result.jwks_file == tmp_path / "gatepass" / "jwks.json"
        assert (tmp_path / "gatepass").stat().st_mode & 0o777 == 0o700

    def test_options_narrow_it(self, tmp_path: Path) -> None:
        result = personal("derek", 1, self.environ(tmp_path), scopes=["operator.read"], audiences=["a", "b"], ttl=60)
        (rule,) = result.rules.rules

        assert (rule.grant.scopes, rule.grant.audiences) == (("operator.read",), ("a", "b"))
        assert (result.rules.default_ttl, rule.grant.max_ttl) == (60, 60)

    def test_without_a_runtime_directory_it_says_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="--socket PATH"):
            personal("derek", os.geteuid(), {"XDG_RUNTIME_DIR": str(tmp_path / "none")})

    def test_a_bad_name_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="loopback_user"):
            personal("derek\n", 1, self.environ(tmp_path))
