"""An unknown key is refused wherever it stands, with the nearest key that is known there."""

from __future__ import annotations

import msgspec
import pytest

from gatepass.daemon.toml_tables import parse_tables
from gatepass.errors import ConfigurationError


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    """A table."""


class Leaf(_Strict):
    colour: str = ""
    weight: int = 0


class Branch(_Strict):
    leaf: Leaf = msgspec.field(default_factory=Leaf)
    leaves: tuple[Leaf, ...] = ()
    named: dict[str, Leaf] = {}
    maybe: Leaf | None = None


class Tree(_Strict):
    branch: tuple[Branch, ...] = ()
    root: Branch = msgspec.field(default_factory=Branch)


@pytest.mark.parametrize(
    ("text", "where", "hint"),
    [
        ("branches = 1", "", "did you mean 'branch'?"),
        ("zzz = 1", "", "there are: branch, root"),
        ("[root]\nlaef = {}", "root", "did you mean 'leaf'?"),
        ("[root.leaf]\ncolor = 1", "root.leaf", "did you mean 'colour'?"),
        ("[root.maybe]\ncolor = 1", "root.maybe", "did you mean 'colour'?"),
        ("[root.named.x]\ncolor = 1", "root.named[]", "did you mean 'colour'?"),
        ('[root.named."a.b[0]"]\ncolor = 1', "root.named[]", "did you mean 'colour'?"),
        ("[[branch]]\n[[branch]]\nleavs = []", "branch[1]", "did you mean 'leaves'?"),
        ("[[branch]]\n[branch.leaf]\nwieght = 1", "branch[0].leaf", "did you mean 'weight'?"),
        ("[[branch]]\n[[branch.leaves]]\n[[branch.leaves]]\nwieght = 1", "branch[0].leaves[1]", "'weight'?"),
        ('"a\\n`b" = 1', "", r"there is no key 'a\n`b' here"),
    ],
)
def test_an_unknown_key(text: str, where: str, hint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_tables(text.encode(), Tree)

    assert caught.value.where == where
    assert hint in caught.value.message
