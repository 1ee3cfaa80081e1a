from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import gatepass

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", gatepass.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(gatepass, name) is not None
    assert name in dir(gatepass)


def test_nothing_else_is() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        gatepass.no_such_name  # noqa: B018 - looking it up is the test


def test_the_version_has_one_place() -> None:
    assert gatepass.__version__ == version("gatepass")


HEAVY = (
    "anyio",
    "asyncio",
    "cryptography",
    "dataclasses",
    "importlib.metadata",
    "json",
    "logging",
    "pathlib",
    "random",
)


def loaded_after(code: str, *among: str) -> set[str]:
    show = f"import sys; {code}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", show], capture_output=True, text=True, check=True, env=_path())
    return set(done.stdout.split()) & set(among)


def _path() -> dict[str, str]:
    import msgpack

    return {"PYTHONPATH": f"{ROOT / 'client'}:{Path(msgpack.__file__).parents[1]}"}


def test_importing_the_face_loads_nothing() -> None:
    assert loaded_after("import gatepass", "msgpack", "socket", "gatepass.client", *HEAVY) == set()


@pytest.mark.parametrize("command", ["token", "whoami", "status"])
def test_a_command_that_starts_on_every_login_loads_nothing_heavy(command: str) -> None:
    assert loaded_after(f"import gatepass.cli.{command}", *HEAVY, "subprocess", "ctypes") == set()


LATER = tuple(
    f"gatepass.{name}" for name in ("claims", "explanation", "oversight", "replies", "revocations", "sessions")
)


@pytest.mark.parametrize("modules", ["gatepass.cli.token", "gatepass.cli.openclaw_secret, gatepass.cli.openclaw_token"])
def test_who_only_wants_a_token_does_not_load_what_others_need(modules: str) -> None:
    assert loaded_after(f"import {modules}", "textwrap", *LATER) == set()


def test_the_secret_command_loads_json_because_it_speaks_it_and_nothing_else_heavy() -> None:
    code = "import gatepass.cli.openclaw_secret, gatepass.cli.openclaw_token"
    assert loaded_after(code, *HEAVY, "subprocess", "ctypes") == {"json"}
