"""Units are restarted where they run something else than what is installed, and that is noted once they do."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatepass_broker.install import running, services
from gatepass_broker.install.layout import Layout
from gatepass_broker.install.manifest import Manifest
from gatepass_broker.install.place import Work
from gatepass_broker.install.problems import Intention
from gatepass_broker.install.release import Blueprint
from gatepass_broker.install.request import Request
from gatepass_broker.install.services import UnitError, UnitState
from gatepass_broker.install.steps import Steps

SOCKET = "gatepass-gateway.socket"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """On a machine where every unit runs and can be restarted."""
    monkeypatch.setattr(services, "state", lambda _: UnitState(True, True, True, "", {}))
    monkeypatch.setattr(services, "change", lambda *_: None)
    Layout(tmp_path).home.mkdir(parents=True)
    plan = Blueprint("1-a", "1", 1, (), (), 0)
    return Work(Intention(Layout(tmp_path), Request(), Manifest(), plan, None, ()), Steps(lambda _: None))


def test_only_what_runs_something_else_is_restarted(work: Work) -> None:
    assert [running.ensure(work, SOCKET, wanted) for wanted in ("a", "a", "b", "b")] == ["restart", "", "restart", ""]


def test_what_could_not_be_restarted_is_not_taken_to_run_what_it_ran_before(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else has it run the new by then: the operator, or systemd, for another unit that wants it."""
    running.ensure(work, SOCKET, "before")

    def fails(_: str, unit: str) -> None:
        monkeypatch.setattr(services, "_journal", lambda _: "")
        raise UnitError(unit, "the port is taken")

    with monkeypatch.context() as patch:
        patch.setattr(services, "change", fails)
        with pytest.raises(UnitError):
            running.ensure(work, SOCKET, "after")
    assert running.ensure(work, SOCKET, "before") == "restart"


def test_it_is_said_beforehand_what_is_restarted_too(work: Work) -> None:
    running.ensure(work, "gatepass-redirect.service", "a", bound="openclaw-gateway.service")
    assert work.steps.done == ["systemctl restart gatepass-redirect.service, and with it openclaw-gateway.service"]
