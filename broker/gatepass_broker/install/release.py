"""A release: a virtual environment of root's with a copy of the running installation, made without a network.

It lies at its own path from the beginning, because commands in it name that, and counts once it is marked complete. A
daemon's command names the release, so that what it loads later is of the same release as what it has loaded. The
client's names `current` instead: `gatepass openclaw setup` writes the place that it runs from into launchers, which
have to outlive an upgrade.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution
from pathlib import Path
from typing import Final, NamedTuple

from gatepass_broker.install.commands import run
from gatepass_broker.install.files import link, make_directory
from gatepass_broker.install.layout import Layout
from gatepass_broker.install.requirements import NAME, Source, sources

COMPLETE: Final = ".complete"
_COMPILE_SECONDS: Final = 300.0

_SCRIPT: Final = """\
#!{python} -I
import sys

from {module} import {function}

sys.exit({function}())
"""
"""`-I`: neither the environment nor the directory of whoever calls has a say in what is imported."""

_FORM: Final = 1
"""To be raised when a release is made otherwise from the same files."""


class Blueprint(NamedTuple):
    """What a release is made of."""

    name: str
    """Its directory: the version, and a digest of all that it consists of."""
    version: str
    distributions: int
    sources: tuple[Source, ...]
    scripts: tuple[tuple[str, str, str], ...]
    """Commands: name, module, function."""
    size: int
    """Bytes."""


def blueprint(distributions: Sequence[Distribution]) -> Blueprint:
    """Return what to make from the installed `distributions`, gatepass's first. Raise `ConfigurationError`."""
    taken = tuple(source for entry in distributions for source in sources(entry))
    version = distributions[0].version
    whole, size = hashlib.sha256(f"{_FORM} {sys.version_info[:2]} {base_interpreter()}".encode()), 0
    for source in sorted(taken):
        content = source.read()
        whole.update(f"{source.name}\0{len(content)}\0".encode())
        whole.update(content)
        size += len(content)
    scripts = tuple(_scripts(distributions[0]))
    return Blueprint(f"{version}-{whole.hexdigest()[:12]}", version, len(distributions), tuple(taken), scripts, size)


def base_interpreter() -> Path:
    """Return the Python that the running one's virtual environment was made from, without links."""
    return Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()


def is_complete(layout: Layout, name: str) -> bool:
    """Whether the release is there as a whole."""
    return (layout.releases / name / COMPLETE).is_file()


def make(layout: Layout, plan: Blueprint) -> None:
    """Make the release. Raise `CommandError`, `ConfigurationError`, `OSError`."""
    directory = layout.releases / plan.name
    if directory.exists():  # of a run that was interrupted
        shutil.rmtree(directory)
    run(base_interpreter(), "-I", "-m", "venv", "--without-pip", directory)
    packages = site_packages(directory)
    for source in plan.sources:
        _copy(source, packages / source.name)
    for name, module, function in plan.scripts:
        python = (layout.current if name == NAME else directory) / "bin" / "python"
        text = _SCRIPT.format(python=python, module=module, function=function)
        (directory / "bin" / name).write_text(text, encoding="utf-8")
    python = directory / "bin" / "python"
    run(python, "-I", "-m", "compileall", "-q", packages, timeout=_COMPILE_SECONDS)
    _close_to_others(directory)
    (directory / COMPLETE).touch(mode=0o644)


def site_packages(directory: Path) -> Path:
    """Return where a release has its packages."""
    return directory / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def switch(layout: Layout, name: str) -> None:
    """Let `current` be the release `name`, at once. Raise `OSError`."""
    link(layout.current, f"{layout.releases.name}/{name}")


def current(layout: Layout) -> str | None:
    """Return the name of the release in use."""
    try:
        return Path(layout.current.readlink()).name
    except OSError:
        return None


def dispensable(layout: Layout) -> list[Path]:
    """Return the releases that nobody needs: not the current one, not the one before, and none that runs."""
    if not layout.releases.is_dir():
        return []
    in_use = {current(layout), *_running(layout)}
    others = [entry for entry in layout.releases.iterdir() if entry.name not in in_use]
    others.sort(key=lambda entry: (is_complete(layout, entry.name), entry.lstat().st_mtime_ns))
    return others[:-1]


def _scripts(entry: Distribution) -> Iterator[tuple[str, str, str]]:
    for point in entry.entry_points.select(group="console_scripts"):
        yield point.name, point.module, point.attr


def _copy(source: Source, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read())  # checked again: it may have been changed since


def _close_to_others(directory: Path) -> None:
    """Let everybody read and nobody write, whatever the umask was."""
    commands = directory / "bin"
    for top, _, names in os.walk(directory):
        Path(top).chmod(0o755)
        for path in (Path(top, name) for name in names):
            if not path.is_symlink():
                path.chmod(0o755 if path.parent == commands else 0o644)


def _running(layout: Layout) -> Iterator[str]:
    """Yield the releases of running processes, which load parts of themselves late."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            program = process.read_bytes().split(b"\0", 1)[0]
        except OSError:
            continue
        path = Path(os.fsdecode(program))
        if path.is_relative_to(layout.releases):
            yield from path.relative_to(layout.releases).parts[:1]  # anybody may call a program by any name


def remove(directory: Path) -> None:
    """Remove a release. Raise `OSError`."""
    shutil.rmtree(directory)


def make_places(layout: Layout) -> None:
    """Make the directories of all releases."""
    for directory in (layout.home.parent, layout.home, layout.releases):
        if not directory.is_dir():
            make_directory(directory)
