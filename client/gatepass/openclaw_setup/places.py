"""Where everything is."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from gatepass.openclaw_setup import launcher
from gatepass.openclaw_setup.files import read_if_there
from gatepass.openclaw_setup.record import Record, from_text, record_path


class Places(NamedTuple):
    """The files of one setup."""

    config: Path
    launcher: Path
    proxy_file: Path
    record: Path


def find_places(config: str, proxy_file: str | None, environ: Mapping[str, str]) -> tuple[Places, Record | None]:
    """Return where everything is or will be, and what an earlier setup has noted. Raise `ConfigurationError`."""
    own = environ.get("OPENCLAW_STATE_DIR")
    state = Path(os.path.realpath(own or Path(config).parent))
    noted = record_path(state)
    text = read_if_there(noted)
    record = None if text is None else from_text(text, str(noted))
    proxy = proxy_file or (record.proxy_file if record else None) or _default_proxy_file(environ)
    return Places(Path(config), state / launcher.NAME, Path(proxy).absolute(), noted), record


def own_commands() -> Path:
    """Return the directory of gatepass's commands: they are installed beside the Python that runs them."""
    beside = Path(sys.executable).parent
    return beside if (beside / "gatepass").exists() else Path(sys.argv[0]).absolute().parent


def _default_proxy_file(environ: Mapping[str, str]) -> str:
    base = environ.get("XDG_CONFIG_HOME")
    return str((Path(base) if base else Path.home() / ".config") / "gatepass" / "gateway.toml")
