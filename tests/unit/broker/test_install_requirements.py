"""Which installed files make a release, and what is refused as one."""

from __future__ import annotations

import base64
import hashlib
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

import pytest

from gatepass.errors import ConfigurationError
from gatepass_broker.install.requirements import (
    Requirement,
    installed_distributions,
    requirement,
    sources,
)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("msgpack>=1.1", Requirement("msgpack", None, conditional=False)),
        ("anyio >= 4.8 ; extra == 'broker'", Requirement("anyio", "broker", conditional=True)),
        ('typing_extensions>=4.5; python_version < "3.13"', Requirement("typing_extensions", None, conditional=True)),
        ('x[y,z]; (os_name == "nt") and extra == "all"', Requirement("x", "all", conditional=True)),
        ("a.b-c_d", Requirement("a.b-c_d", None, conditional=False)),
    ],
)
def test_a_requirement_is_read_as_far_as_it_matters(line: str, expected: Requirement) -> None:
    assert requirement(line) == expected


def test_a_checkout_is_refused_because_it_has_no_files_of_its_own() -> None:
    with pytest.raises(ConfigurationError, match="installed as a link to a checkout") as refused:
        installed_distributions(("broker", "gateway"))
    assert "pip install '.[all]'" in refused.value.message


def test_commands_and_byte_code_are_not_copied_and_everything_else_is() -> None:
    entry = distribution("anyio")
    names = {source.name for source in sources(entry)}
    assert {"anyio/__init__.py", "anyio/py.typed", f"anyio-{entry.version}.dist-info/METADATA"} <= names
    assert not [name for name in names if ".." in name or "__pycache__" in name]
    assert all(source.path.is_file() for source in sources(entry))


def test_a_file_that_was_changed_after_it_was_installed_is_refused(tmp_path: Path) -> None:
    (source,) = [source for source in sources(package(tmp_path, b"x = 1\n")) if source.name == "p.py"]
    assert source.read() == b"x = 1\n"
    source.path.write_bytes(b"x = 2\n")
    with pytest.raises(ConfigurationError, match="changed after it was installed"):
        source.read()
    source.path.unlink()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        source.read()


def test_an_installation_without_a_record_is_refused(tmp_path: Path) -> None:
    entry = package(tmp_path, b"")
    (tmp_path / "p-1.dist-info" / "RECORD").unlink()
    with pytest.raises(ConfigurationError, match="not on record"):
        list(sources(entry))


def package(directory: Path, content: bytes) -> Distribution:
    """An installed distribution of one module."""
    information = directory / "p-1.dist-info"
    information.mkdir()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    (directory / "p.py").write_bytes(content)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: p\nVersion: 1\n")
    (information / "RECORD").write_text(f"p.py,sha256={digest},{len(content)}\np-1.dist-info/RECORD,,\n")
    return PathDistribution(information)
