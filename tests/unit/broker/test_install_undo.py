"""Taking everything off again: what a run that was killed has left too, and from an account that was renamed."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

import pytest

from gatepass.errors import ConfigurationError
from gatepass_broker.install import cli, files, openclaw
from gatepass_broker.install.layout import Layout
from gatepass_broker.install.manifest import Manifest, load, save
from gatepass_broker.install.openclaw import OpenClaw
from gatepass_broker.install.request import Request
from gatepass_broker.install.services import unit_state
from gatepass_broker.install.steps import Steps
from gatepass_broker.install.undo import Removal, begun, undo


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A machine on which systemd knows of no unit."""
    monkeypatch.setattr("gatepass_broker.install.services.systemctl", lambda *_: "")
    layout = Layout(tmp_path)
    layout.releases.mkdir(parents=True)
    return layout


def undone(layout: Layout, manifest: Manifest, *, discard_changes: bool = False) -> Steps:
    """What undoing has done."""
    save(manifest, layout.manifest)
    steps = Steps(lambda _: None)
    undo(Removal(layout, manifest, steps, purge=False, discard_changes=discard_changes))
    return steps


def test_what_a_killed_run_had_not_yet_put_in_its_place_goes_too(layout: Layout) -> None:
    broker, command = layout.broker_config, layout.links / "gatepass"
    for path in (broker, command, layout.gateway_config):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.staged_of(path).touch()
    steps = undone(
        layout, Manifest(files={str(broker): ""}, links={str(command): "/x"}, directories=[str(layout.config)])
    )
    assert not layout.config.exists()
    assert list(layout.links.iterdir()) == []
    assert (steps.notes, steps.left) == ([], [])


def test_one_that_was_interrupted_at_its_very_end_is_finished_by_the_next(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands that put OpenClaw back, and remove the guard, may be gone then: they are not asked for again."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            undone(layout, Manifest(request=Request(openclaw_user="root"), files={str(layout.units / "x"): ""}))
    noted = load(layout.manifest)
    assert noted == Manifest()
    assert undone(layout, noted).left == []
    assert not layout.home.exists()


def test_one_that_was_killed_before_it_had_a_record_leaves_nothing(layout: Layout) -> None:
    files.staged_of(layout.manifest).touch()
    noted = begun(layout)
    assert noted == Manifest()
    undone(layout, noted)
    assert not layout.home.exists()
    assert begun(layout) is None
    layout.home.mkdir()
    (layout.home / "mine").touch()
    assert begun(layout) is None


def test_an_account_that_was_renamed_gets_its_openclaw_back(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that the guard would go, and OpenClaw still believe what only the proxy may say."""
    put_back: list[OpenClaw] = []
    monkeypatch.setattr(openclaw, "state", lambda _: unit_state(""))
    monkeypatch.setattr(openclaw, "_persons_unit", lambda *_: unit_state(""))
    monkeypatch.setattr(openclaw, "undo_setup", lambda _, found, **__: put_back.append(found))
    own = os.geteuid()
    earlier = Request(openclaw_user="nobody-by-this-name")
    undone(layout, Manifest(request=earlier, openclaw_set_up=True, openclaw_uid=own))
    assert [found.account.name for found in put_back] == [pwd.getpwuid(own).pw_name]

    layout.releases.mkdir(parents=True)
    steps = undone(layout, Manifest(request=earlier, openclaw_set_up=True, openclaw_uid=4_000_000_000))
    assert "there is no user 'nobody-by-this-name' any more" in steps.notes[0]


@pytest.mark.parametrize("discard_changes", [False, True])
def test_nothing_is_taken_from_an_openclaw_that_cannot_be_put_back_unless_that_is_wanted(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, discard_changes: bool
) -> None:
    """Nobody would reach it: it would still believe the proxy alone, and the guard stays for that."""

    def refused(*_: object, **__: object) -> None:
        raise ConfigurationError("this was changed after setup")

    monkeypatch.setattr(openclaw, "state", lambda _: unit_state(""))
    monkeypatch.setattr(openclaw, "_persons_unit", lambda *_: unit_state(""))
    monkeypatch.setattr(openclaw, "undo_setup", refused)
    name = pwd.getpwuid(os.geteuid()).pw_name
    layout.units.mkdir(parents=True)
    unit = layout.units / "gatepass-broker.service"
    unit.touch()
    noted = Manifest(request=Request(openclaw_user=name), openclaw_set_up=True, files={str(unit): ""})
    steps = undone(layout, noted, discard_changes=discard_changes)
    assert len(steps.left) == 1
    assert (unit.exists(), layout.home.exists()) == (not discard_changes, not discard_changes)
    assert any("--discard-changes" in note for note in steps.notes) is not discard_changes


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        (["--loopback-user", "d", "--user", "root"], "run this again, or take everything off again"),
        (["--undo"], "run this again, for not everything is undone"),
    ],
)
def test_who_interrupts_it_is_told_what_to_do(
    options: list[str], cure: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "guard", interrupted)
    assert cli.main(options) == 130
    assert f"interrupted; {cure}" in capsys.readouterr().err
