"""docs/configuration.md is what the generator makes of the code as it is now, and every key in it is explained."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import msgspec
import pytest

from gatepass.daemon.toml_tables import parse_tables
from gatepass.errors import ConfigurationError
from gatepass_broker import schema as broker_schema
from gatepass_gateway import schema as gateway_schema

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "configuration.md").read_text(encoding="utf-8")


def test_the_page_is_what_the_code_says() -> None:
    made: str = runpy.run_path(str(DOCS / "make_configuration.py"))["page"]()
    assert made == PAGE, "docs/configuration.md is stale: run `.venv/bin/python docs/make_configuration.py`"


def test_every_key_has_a_meaning() -> None:
    rows = re.findall(r"^\| (`.*?`) \|.*\| (.*?) \|$", PAGE, re.MULTILINE)
    assert [key for key, meaning in rows if not meaning.strip()] == [], "put a docstring under the field in schema.py"


@pytest.mark.parametrize(
    ("heading", "form"), [("broker.toml", broker_schema.File), ("gateway.toml", gateway_schema.File)]
)
def test_the_examples_are_accepted(heading: str, form: type[msgspec.Struct]) -> None:
    for example in _toml_below(PAGE, heading):
        parse_tables(example.encode(), form)


def test_the_proxys_file_in_the_openclaw_guide_is_accepted() -> None:
    guide = (DOCS / "openclaw.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```toml\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    whole = next(example for example in examples if "[listen]" in example)
    for part in (example for example in examples if "[listen]" not in example):
        parse_tables(f"{whole}\n{part}".encode(), gateway_schema.File)


def test_every_configuration_error_names_its_key() -> None:
    """So that what troubleshooting says about the message, that it names the key, holds."""
    with pytest.raises(ConfigurationError) as error:
        parse_tables(b'[broker]\nloopback_usr = "derek@example.com"', broker_schema.File)
    assert error.value.where == "broker"
    assert "did you mean 'loopback_user'?" in error.value.message


def _toml_below(page: str, heading: str) -> list[str]:
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    examples = re.findall(r"^```toml\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert examples
    return examples
