"""Root's files: replaced as a whole, never open to more people than they shall be, never through a link."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gatepass_broker.install import files


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(params=[0o000, 0o077], autouse=True)
def umask(request: pytest.FixtureRequest) -> object:
    before = os.umask(request.param)
    yield
    os.umask(before)


def test_a_file_has_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    for wanted in (0o644, 0o640, 0o600):
        files.write(tmp_path / "x", b"content", wanted)
        assert mode(tmp_path / "x") == wanted
        assert files.is_as(tmp_path / "x", b"content", wanted)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file to another group")
def test_a_file_is_never_readable_for_a_group_before_it_is_that_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    change = os.fchown

    def watched(descriptor: int, uid: int, gid: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        change(descriptor, uid, gid)

    monkeypatch.setattr(os, "fchown", watched)
    files.write(tmp_path / "x", b"secret", 0o640, 4_242)
    assert seen
    assert not [found for found in seen if found & 0o077]
    assert (tmp_path / "x").stat().st_gid == 4_242


def test_a_link_in_the_way_is_replaced_and_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    for name in ("x", ".x.new"):
        (tmp_path / name).symlink_to(target)
    files.write(tmp_path / "x", b"new", 0o644)
    assert target.read_bytes() == b"precious"
    assert not (tmp_path / "x").is_symlink()
    assert (tmp_path / "x").read_bytes() == b"new"


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write(tmp_path / "x", b"", 0o644)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_file_of_other_content_mode_or_kind_is_not_as_wanted(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert not files.is_as(path, b"", 0o644)
    files.write(path, b"a", 0o644)
    assert not files.is_as(path, b"b", 0o644)
    assert not files.is_as(path, b"a", 0o640)
    (tmp_path / "y").symlink_to(path)
    assert not files.is_as(tmp_path / "y", b"a", 0o644)


def test_a_link_changes_its_target_at_once(tmp_path: Path) -> None:
    for target in ("a", "b"):
        files.link(tmp_path / "current", target)
        assert files.target_of(tmp_path / "current") == target
    assert files.target_of(tmp_path) is None
    assert len(list(tmp_path.iterdir())) == 1


def test_directories_are_made_for_all_to_look_into(tmp_path: Path) -> None:
    wanted = tmp_path / "a" / "b"
    missing = files.missing_directories(wanted)
    assert missing == [tmp_path / "a", wanted]
    for directory in missing:
        files.make_directory(directory)
        assert mode(directory) == 0o755


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
def test_a_journal_is_given_to_root_and_nothing_that_a_link_in_it_names(tmp_path: Path) -> None:
    journal, outside = tmp_path / "journal", tmp_path / "outside"
    (journal / "deep").mkdir(parents=True)
    for path in (outside, journal / "deep" / "file"):
        path.write_bytes(b"")
    (journal / "link").symlink_to(outside)
    for path in (journal, journal / "deep", journal / "deep" / "file", outside):
        os.chown(path, 4_242, 4_242)
    os.chown(journal / "link", 4_242, 4_242, follow_symlinks=False)
    files.give_to_root(journal)
    assert {path.lstat().st_uid for path in (journal, *journal.rglob("*"))} == {0}
    assert outside.stat().st_uid == 4_242
