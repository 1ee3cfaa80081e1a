"""ARCHITECTURE.md leads a newcomer to code that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = [
    CHECKOUT / "client" / "gatepass",
    CHECKOUT / "client" / "gatepass" / "openclaw_setup",
    CHECKOUT / "broker" / "gatepass_broker",
    CHECKOUT / "gateway" / "gatepass_gateway",
    CHECKOUT / "client",
]
STEP = re.compile(r"`([\w/]+\.py)(?::\s+([\w.]+))?`")


def test_every_file_and_function_that_it_names_exists() -> None:
    steps = STEP.findall((CHECKOUT / "ARCHITECTURE.md").read_text())
    assert len(steps) > 25
    for file, name in steps:
        places = [package / file for package in PACKAGES if (package / file).is_file()]
        assert places, file
        assert not name or any(name in _names(place) for place in places), f"{file}: {name}"


def _names(path: Path) -> set[str]:
    """Return what a module defines: `function`, `Class`, `method`, `Class.method`."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef))
            names |= {name for method in methods for name in (method.name, f"{node.name}.{method.name}")}
    return names
