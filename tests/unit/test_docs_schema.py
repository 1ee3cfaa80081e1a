"""The JSON Schemas for editors are current, and take what the programs take and nothing with a misspelt key."""

from __future__ import annotations

import json
import re
import runpy
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from gatepass_broker.install.configuration import broker_text
from gatepass_broker.install.request import Request

DOCS: Final = Path(__file__).parents[2] / "docs"
PAGE: Final = (DOCS / "configuration.md").read_text(encoding="utf-8")
NAMES: Final = ("broker.schema.json", "gateway.schema.json", "rules.schema.json")
TYPES: Final[Mapping[str, type | tuple[type, ...]]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
}
_LIMITS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "minimum": lambda value, limit: value >= limit,
    "maximum": lambda value, limit: value <= limit,
    "exclusiveMinimum": lambda value, limit: value > limit,
    "minLength": lambda value, limit: len(value) >= limit,
    "maxLength": lambda value, limit: len(value) <= limit,
    "pattern": lambda value, pattern: re.search(pattern, value) is not None,
    "enum": lambda value, values: value in values,
    "required": lambda value, keys: all(key in value for key in keys),
}
_STRUCTURE: Final = {"$ref", "anyOf", "type", "properties", "propertyNames", "items", "additionalProperties"}
_REMARKS: Final = {"title", "description", "default", "$schema", "$defs"}


def fits(value: Any, schema: Any, root: Any) -> bool:
    """Whether `value` fits, by what of JSON Schema these use; what else a schema says fails the test."""
    assert schema.keys() <= _STRUCTURE | _REMARKS | _LIMITS.keys(), schema
    if "$ref" in schema:
        return fits(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    if "anyOf" in schema:
        return any(fits(value, kind, root) for kind in schema["anyOf"])
    kind = TYPES[schema["type"]] if "type" in schema else object
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not object):
        return False
    if not all(_LIMITS[name](value, limit) for name, limit in schema.items() if name in _LIMITS):
        return False
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema["additionalProperties"]
        names = {"type": "string", **schema.get("propertyNames", {})}
        return all(fits(key, names, root) for key in value) and all(
            fits(item, known[key], root) if key in known else others is not False and fits(item, others, root)
            for key, item in value.items()
        )
    return all(fits(item, schema["items"], root) for item in value) if isinstance(value, list) else True


def is_taken(name: str, text: str) -> bool:
    schema = json.loads((DOCS / "schema" / name).read_text(encoding="utf-8"))
    return fits(tomllib.loads(text), schema, schema)


def examples(heading: str) -> list[str]:
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^```toml\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert found
    return found


def test_they_are_what_the_code_says() -> None:
    made: dict[str, str] = runpy.run_path(str(DOCS / "make_configuration.py"))["schemas"]()
    written = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "schema").iterdir()}
    assert made == written, "docs/schema is stale: run `.venv/bin/python docs/make_configuration.py`"


@pytest.mark.parametrize("name", NAMES)
def test_every_key_and_table_has_a_description_and_no_null(name: str) -> None:
    schema = json.loads((DOCS / "schema" / name).read_text(encoding="utf-8"))
    assert "null" not in json.dumps(schema).replace("'null'", "")
    for title, table in schema["$defs"].items():
        assert table["additionalProperties"] is False
        assert table["description"]
        if title not in ("File", "RulesFile"):
            assert [key for key, form in table["properties"].items() if not form.get("description")] == []


@pytest.mark.parametrize("heading", ["broker.toml", "conf.d", "gateway.toml"])
def test_the_examples_are_taken(heading: str) -> None:
    name = "rules.schema.json" if heading == "conf.d" else heading.replace(".toml", ".schema.json")
    for text in examples(heading):
        assert is_taken(name, text)
        assert not is_taken(name, f'{text}\nunkown = "x"\n')


def test_what_install_writes_is_taken() -> None:
    text = broker_text(Request(loopback_user="derek@example.com", openclaw_user="derek"))
    assert is_taken("broker.schema.json", text)
    assert not is_taken("broker.schema.json", text.replace("loopback_user", "loopback_usr"))


@pytest.mark.parametrize(
    ("key", "taken"),
    [
        ("uid = 1", True),
        ("uid = [1, 2]", True),
        ("uid = true", False),
        ('uid = "1"', False),
        ("uid = -1", False),
        ('pid_namespace = "nested"', True),
        ('pid_namespace = ["host"]', True),
        ('pid_namespace = "other"', False),
        ('bind = "unit"', True),
        ('bind = "none"', False),
        ("reconnect = 604801", False),
        ('executable = "/bin/sh"', False),
    ],
)
def test_values_of_a_rule(key: str, taken: bool) -> None:
    assert is_taken("rules.schema.json", f"[[rule]]\nscopes = []\n{key}\n") is taken
