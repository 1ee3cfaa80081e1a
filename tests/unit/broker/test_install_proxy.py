"""What is said about the proxy and the redirect when they are installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatepass_broker.install import proxy
from gatepass_broker.install.commands import CommandError
from gatepass_broker.install.layout import Layout
from gatepass_broker.install.manifest import Manifest
from gatepass_broker.install.observe import first_unprivileged_port, lets_programs_attach
from gatepass_broker.install.place import Work
from gatepass_broker.install.problems import Intention
from gatepass_broker.install.release import Blueprint
from gatepass_broker.install.request import Request, ReverseProxy
from gatepass_broker.install.steps import Steps

NGINX = ReverseProxy("www-data", "nginx.service")


@pytest.mark.parametrize(("content", "attach"), [("0\n", True), ("1\n", False), ("3\n", False), (None, True)])
def test_programs_of_one_account_attach_to_each_other_unless_the_kernel_forbids_it(
    tmp_path: Path, content: str | None, attach: bool
) -> None:
    scope = tmp_path / "ptrace_scope"
    if content is not None:
        scope.write_text(content)
    assert lets_programs_attach(scope) is attach


def test_what_an_operator_remarked_in_the_proxys_file_is_kept_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "_check", lambda *_: None)
    layout, manifest = Layout(tmp_path), Manifest()
    layout.home.mkdir(parents=True)
    plan = Blueprint("1-a", "1", 1, (), (), 0)

    def placed(content: bytes) -> Steps:
        work = Work(Intention(layout, Request(), manifest, plan, None, ()), Steps(lambda _: None))
        proxy._place_configuration(work, content)
        assert layout.gateway_config.read_bytes() == content
        return work.steps

    for content in (b"first", b"second"):
        assert placed(content).notes == []
    assert not layout.gateway_config_before.exists()
    layout.gateway_config.write_bytes(b"second # mine")
    (note,) = placed(b"third").notes
    assert str(layout.gateway_config_before) in note
    assert layout.gateway_config_before.read_bytes() == b"second # mine"
    assert layout.gateway_config_before.stat().st_mode & 0o777 == 0o640
    assert str(layout.gateway_config_before) in manifest.files, "or --undo would leave it"


def test_a_proxys_file_that_the_proxy_would_not_take_is_found_before_that_is_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is not written anew, and by the name that the operator knows."""

    def refused(*command: object) -> str:
        raise CommandError(f"gatepass-gateway: {command[2]}: limits: there is no key 'waitign' here")

    monkeypatch.setattr(proxy, "run", refused)
    layout = Layout(tmp_path)
    layout.config.mkdir(parents=True)
    layout.gateway_config.write_bytes(b"the same")
    layout.gateway_config.chmod(0o640)
    plan = Blueprint("1-a", "1", 1, (), (), 0)
    work = Work(Intention(layout, Request(), Manifest(), plan, None, ()), Steps(lambda _: None))
    with pytest.raises(CommandError, match=rf"^gatepass-gateway: {layout.gateway_config}: limits: there is no key"):
        proxy._place_configuration(work, b"the same")


@pytest.mark.parametrize(
    ("named", "attach", "notes"),
    [(NGINX, True, 1), (NGINX, False, 0), (ReverseProxy("www-data"), True, 0)],
    ids=["unit", "unit, protected", "account"],
)
def test_it_is_said_where_a_unit_does_not_tell_the_reverse_proxy_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: ReverseProxy, attach: bool, notes: int
) -> None:
    monkeypatch.setattr(proxy, "lets_programs_attach", lambda: attach)
    work = work_for(tmp_path, Request(reverse_proxies=(named,)))
    proxy.warn_of_attaching(work)
    assert len(work.steps.notes) == notes
    assert all("ptrace_scope" in note for note in work.steps.notes)


@pytest.mark.parametrize(
    ("content", "port", "notes"), [("1024\n", 789, 0), ("80\n", 789, 1), ("1024\n", 1_024, 1), (None, 1_023, 0)]
)
def test_it_is_said_where_any_user_can_take_the_proxys_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, port: int, notes: int
) -> None:
    setting = tmp_path / "ip_unprivileged_port_start"
    if content is not None:
        setting.write_text(content)
    monkeypatch.setattr(proxy, "first_unprivileged_port", lambda: first_unprivileged_port(setting))
    work = work_for(tmp_path, Request(port=port))
    proxy.warn_of_open_port(work)
    assert len(work.steps.notes) == notes
    assert all(f"port {port} " in note for note in work.steps.notes)


def work_for(root: Path, request: Request) -> Work:
    plan = Blueprint("1-a", "1", 1, (), (), 0)
    return Work(Intention(Layout(root), request, Manifest(), plan, None, ()), Steps(lambda _: None))
