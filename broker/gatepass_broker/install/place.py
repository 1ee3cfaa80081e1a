"""Putting files where they belong: noted in the manifest first, changed only where they differ."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

from gatepass_broker.install import files, manifest
from gatepass_broker.install.problems import Intention
from gatepass_broker.install.steps import Steps


class Work(NamedTuple):
    """An installation under way."""

    intention: Intention
    steps: Steps

    def note(self) -> None:
        """Write the manifest, with what is about to be made."""
        if not self.steps.dry_run:
            manifest.save(self.intention.manifest, self.intention.layout.manifest)


def place(work: Work, path: Path, content: bytes, mode: int = 0o644, group: int | None = None) -> bool:
    """Make `path` a file with just this content, mode and group (a gid). Return whether it was anything else."""
    noted = work.intention.manifest.files
    _warn_of_changes(work, path, content)
    noted[str(path)] = manifest.digest(content)
    if files.is_as(path, content, mode, group):
        return False
    work.note()
    make_directory(work, path.parent)
    work.steps.do(f"write {path}", lambda: files.write(path, content, mode, group))
    return True


def place_link(work: Work, path: Path, target: Path) -> None:
    """Make `path` a symbolic link to `target`."""
    work.intention.manifest.links[str(path)] = str(target)
    if files.target_of(path) == str(target):
        return
    work.note()
    make_directory(work, path.parent)
    work.steps.do(f"link {path} to {target}", lambda: files.link(path, str(target)))


def make_directory(work: Work, path: Path) -> None:
    """Make the directory `path`, and those above it that are missing."""
    noted = work.intention.manifest.directories
    for directory in files.missing_directories(path):
        if str(directory) in noted and work.steps.dry_run:
            continue
        if str(directory) not in noted:
            noted.append(str(directory))
            work.note()
        work.steps.do(f"make {directory}", partial(files.make_directory, directory))


def remove_stale(work: Work, wanted: set[Path]) -> bool:
    """Remove files of an earlier installation that this one does not have. Return whether there were any."""
    noted = work.intention.manifest.files
    stale = [Path(name) for name in noted if Path(name) not in wanted]
    for path in stale:
        work.steps.do(f"remove {path}", partial(path.unlink, missing_ok=True))
        del noted[str(path)]
        work.note()
    return bool(stale)


def _warn_of_changes(work: Work, path: Path, content: bytes) -> None:
    written = work.intention.manifest.files.get(str(path))
    found = None if path.is_symlink() else files.read(path)
    if written is None or found is None:
        return
    if manifest.digest(found) not in (written, manifest.digest(content)):
        work.steps.note(f"{path} was changed since it was installed, and is replaced; put what is yours into a drop-in")
