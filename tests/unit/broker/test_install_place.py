"""Putting files where they belong: on record before they are there, and only where something differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatepass_broker.install import files
from gatepass_broker.install.layout import Layout
from gatepass_broker.install.manifest import Manifest, digest, load
from gatepass_broker.install.place import Work, place, place_link, remove_stale
from gatepass_broker.install.problems import Intention
from gatepass_broker.install.release import Blueprint
from gatepass_broker.install.request import Request
from gatepass_broker.install.steps import Steps


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return new(tmp_path)


def new(root: Path, *, dry_run: bool = False) -> Work:
    """A run, with what an earlier one has noted."""
    layout = Layout(root)
    layout.home.mkdir(parents=True, exist_ok=True)
    noted = load(layout.manifest) or Manifest()
    plan = Blueprint("1-a", "1", 1, (), (), 0)
    return Work(Intention(layout, Request(), noted, plan, None, ()), Steps(lambda _: None, dry_run=dry_run))


def noted(work: Work) -> Manifest:
    """What is on record, on the disk."""
    found = load(work.intention.layout.manifest)
    assert found is not None
    return found


def test_a_file_is_placed_once_with_the_directories_above_it(work: Work, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.conf"
    assert place(work, path, b"x")
    assert path.read_bytes() == b"x"
    found = noted(work)
    assert found.files == {str(path): digest(b"x")}
    assert found.directories == [str(tmp_path / "a"), str(tmp_path / "a" / "b")]
    again = new(tmp_path)
    assert not place(again, path, b"x")
    assert again.steps.done == []


def test_it_is_on_record_before_it_is_there(work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        place(work, tmp_path / "x", b"x")
    assert str(tmp_path / "x") in noted(work).files


def test_a_changed_file_is_replaced_and_that_is_said(work: Work, tmp_path: Path) -> None:
    path = tmp_path / "x"
    place(work, path, b"first")
    place(work, path, b"second")
    assert work.steps.notes == []
    path.write_bytes(b"by hand")
    place(work, path, b"third")
    assert path.read_bytes() == b"third"
    (note,) = work.steps.notes
    assert "was changed since it was installed" in note


def test_a_rehearsal_leaves_no_trace(tmp_path: Path) -> None:
    work = new(tmp_path, dry_run=True)
    before = sorted(tmp_path.rglob("*"))
    assert place(work, tmp_path / "a" / "x", b"x")
    assert place(work, tmp_path / "a" / "y", b"y")
    place_link(work, tmp_path / "bin" / "link", tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    directories = [step for step in work.steps.done if step.startswith("make ")]
    assert directories == [f"make {tmp_path / 'a'}", f"make {tmp_path / 'bin'}"]


def test_what_an_earlier_installation_had_and_this_one_has_not_is_removed(work: Work, tmp_path: Path) -> None:
    place(work, tmp_path / "old", b"x")
    place(work, tmp_path / "kept", b"x")
    (tmp_path / "foreign").touch()
    assert remove_stale(work, {tmp_path / "kept"})
    assert not (tmp_path / "old").exists()
    assert (tmp_path / "kept").exists()
    assert (tmp_path / "foreign").exists()
    assert list(noted(work).files) == [str(tmp_path / "kept")]
    assert not remove_stale(work, {tmp_path / "kept"})


def test_a_link_is_made_once(work: Work, tmp_path: Path) -> None:
    for _ in range(2):
        place_link(work, tmp_path / "bin" / "gatepass", Path("/opt/x"))
    assert work.steps.done == [f"make {tmp_path / 'bin'}", f"link {tmp_path / 'bin' / 'gatepass'} to /opt/x"]
    assert noted(work).links == {str(tmp_path / "bin" / "gatepass"): "/opt/x"}
