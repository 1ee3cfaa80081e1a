"""What install is asked for, what it remembers, and what it reads from systemd."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gatepass.errors import ConfigurationError, ErrorCode, GatepassError
from gatepass_broker.install.commands import printable
from gatepass_broker.install.manifest import Manifest, digest, load, save
from gatepass_broker.install.observe import Account
from gatepass_broker.install.openclaw import environment
from gatepass_broker.install.request import Request, ReverseProxy, reverse_proxy, unit_name
from gatepass_broker.install.services import fingerprint, unit_state
from gatepass_broker.install.steps import Steps


def test_what_was_said_once_is_kept_and_what_is_said_now_counts() -> None:
    earlier = Request(loopback_user="derek@example.com", openclaw_user="derek", port=790, users=("ci",))
    assert Request().over(earlier) == earlier
    assert Request(port=791, users=("x",)).over(earlier) == Request(
        loopback_user="derek@example.com", openclaw_user="derek", port=791, users=("x",)
    )


def test_a_reverse_proxy_is_kept_until_it_is_said_that_there_is_none() -> None:
    named = Request(reverse_proxies=(ReverseProxy("www-data", "nginx.service"),))
    assert Request().over(named) == named
    none = Request(reverse_proxies=()).over(named)
    assert (none.proxies, Request().over(none)) == ((), none)


def test_defaults_are_not_remembered_as_if_they_had_been_said() -> None:
    request = Request(loopback_user="d")
    assert (request.unit, request.proxy_port) == ("openclaw-gateway.service", 789)
    assert request.as_json() == {"loopback_user": "d"}


@pytest.mark.parametrize(("text", "name"), [("openclaw", "openclaw.service"), ("a@b.service", "a@b.service")])
def test_a_unit_may_be_named_as_systemctl_takes_it(text: str, name: str) -> None:
    assert unit_name(text) == name


@pytest.mark.parametrize("text", ["", "../x.service", "a/b.service", "x.socket", "a b.service", "x\n.service"])
def test_what_is_no_service_unit_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="not the name of a service unit"):
        unit_name(text)


def test_a_reverse_proxy_is_a_user_and_perhaps_a_unit() -> None:
    assert reverse_proxy("www-data") == ReverseProxy("www-data")
    assert reverse_proxy("www-data:nginx.service") == ReverseProxy("www-data", "nginx.service")
    assert str(reverse_proxy("www-data:nginx.service")) == "www-data:nginx.service"
    for text in ("", ":nginx.service", "www-data:", "www-data:nginx", "a b"):
        with pytest.raises(ConfigurationError, match="USER or USER:UNIT"):
            reverse_proxy(text)


def test_a_manifest_is_read_back_as_it_was_and_is_roots_alone(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    assert load(path) is None
    manifest = Manifest(
        request=Request(loopback_user="d", reverse_proxies=(ReverseProxy("w", "n.service"),)),
        files={"/a": digest(b"x")},
        members=["derek"],
        openclaw_set_up=True,
    )
    save(manifest, path)
    assert load(path) == manifest
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert manifest.is_own(Path("/a"), b"x")
    assert not manifest.is_own(Path("/a"), b"y")


@pytest.mark.parametrize("text", ["", "{", '{"files": 1}', '{"unheard_of": 1}', "\ufffd"])
def test_a_manifest_that_cannot_be_understood_is_not_taken_for_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "m").write_text(text)
    with pytest.raises(ConfigurationError, match="what an earlier install did"):
        load(tmp_path / "m")


def test_the_state_of_a_unit_is_read_as_systemctl_shows_it() -> None:
    shown = 'User=openclaw\nEnvironment=HOME=/srv "MOTD=a b \\"c\\"" EMPTY=\nLoadState=loaded\nActiveState=activating\n'
    found = unit_state(shown)
    assert found.loaded
    assert found.running
    assert not found.active
    assert found.user == "openclaw"
    assert found.environment == {"HOME": "/srv", "MOTD": 'a b "c"', "EMPTY": ""}
    assert not unit_state("LoadState=not-found\nActiveState=inactive\n").loaded


def test_a_fingerprint_tells_apart_what_merely_joins_to_the_same() -> None:
    assert fingerprint("a", "bc") != fingerprint("ab", "c")
    assert fingerprint("a", b"b") == fingerprint(b"a", "b")


def test_openclaws_commands_have_the_environment_of_its_unit_and_options_win() -> None:
    account = Account("derek", 4_242_424, 4_242_424, "/home/derek")
    request = Request(openclaw_config="/srv/o.json")
    declared = {"PATH": "/opt/node/bin", "OPENCLAW_CONFIG_PATH": "/elsewhere", "OPENCLAW_STATE_DIR": "/srv/state"}
    found = environment(request, account, declared)
    assert found["PATH"].split(":")[0] == "/opt/node/bin"
    assert "/usr/bin" in found["PATH"].split(":")
    assert found["OPENCLAW_CONFIG_PATH"] == "/srv/o.json"
    assert found["OPENCLAW_STATE_DIR"] == "/srv/state"
    assert found["HOME"] == "/home/derek"
    assert "XDG_RUNTIME_DIR" not in found


def test_another_users_output_cannot_drive_roots_terminal() -> None:
    assert printable("a\x1b]0;x\x07\r\n\tb\x9b") == "a?]0;x??\n\tb?"


def test_a_rehearsal_says_the_same_and_does_nothing() -> None:
    said: list[str] = []
    steps = Steps(said.append, dry_run=True)
    steps.do("burn it", lambda: pytest.fail("this was a rehearsal"))
    assert said == ["burn it"]
    assert steps.as_json()["steps"] == ["burn it"]


def test_undoing_goes_on_after_a_failure_and_says_at_the_end_what_is_left() -> None:
    def fail() -> None:
        raise GatepassError(ErrorCode.INTERNAL, "it is in use")

    steps, done = Steps(lambda _: None), []
    assert not steps.attempt("remove the user x", fail)
    assert not steps.attempt("remove /nowhere/x", Path("/nowhere/x").unlink)
    assert steps.attempt("remove y", lambda: done.append("y"))
    assert done == ["y"]
    assert [left.split(":")[0] for left in steps.left] == ["remove the user x", "remove /nowhere/x"]
    assert "it is in use" in steps.left[0]
