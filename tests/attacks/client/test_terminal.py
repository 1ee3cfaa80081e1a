"""Attacks on administrators by what they read: names of others' making, and what must not be in a command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gatepass.frames import Message
from support.client import Conversation, always, run_cli, scripted

EVIL = "x\x1b[2J\x1b]0;owned\x07\r\nits decision\n  allowed  yes\x9b31m\u202e"
"""Clears the screen, sets the title, overwrites its line, forges others, and turns the direction of writing."""
ONE_LINE = EVIL.replace("\n", "")
"""TOML has lines of its own: what is within them the broker has quoted."""
EXPLAINED: Message = {
    "caller": {"uid": 1, "unit": EVIL, "cgroup": EVIL, "slices": [EVIL], "user_unit": EVIL, "container": EVIL},
    "rules": [
        {"rule": EVIL, "matches": False, "failed": {"selector": "unit", "wanted": EVIL, "found": EVIL}},
    ],
    "decision": {"allowed": False, "code": "denied", "reason": EVIL},
    "cures": [
        {"kind": "rule", "text": EVIL, "toml": f"# {ONE_LINE}\nname = 1", "place": EVIL, "arguments": {"scope": EVIL}}
    ],
}
WHOAMI: Message = {
    "caller": {"uid": 1, "gid": 1, "groups": [], "pid": 1, "unit": EVIL, "cgroup": EVIL},
    "grant": None,
    "issuer": "gatepass:x",
}
TOKEN = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJkZXJlayJ9.c2lnbmF0dXJl"


@pytest.mark.parametrize(("command", "result"), [("explain", EXPLAINED), ("whoami", WHOAMI)], ids=["explain", "whoami"])
def test_a_cgroup_named_by_a_user_cannot_write_on_an_administrators_terminal(
    tmp_path: Path, command: str, result: Message
) -> None:
    with scripted(tmp_path / "s", always(lambda talk: talk.answer(result))):
        out = run_cli(command, socket=tmp_path / "s").stdout
    assert r"\x1b[2J" in out
    assert [character for character in out if not character.isprintable() and character != "\n"] == []
    assert not re.search(r"^ *allowed +yes$", out, re.MULTILINE)
    assert len(re.findall(r"^its decision$", out, re.MULTILINE)) == (1 if command == "explain" else 0)


@pytest.mark.parametrize("option", [["--jti", TOKEN], [f"--jti={TOKEN}"]], ids=["two words", "one"])
def test_a_token_in_place_of_its_id_is_refused_unasked_and_unrepeated(tmp_path: Path, option: list[str]) -> None:
    def answer(talk: Conversation) -> None:
        talk.answer()

    with scripted(tmp_path / "s", answer) as peer:
        done = run_cli("revoke", *option, socket=tmp_path / "s")
    assert (done.returncode, peer.connections) == (2, 0)
    assert "takes a token's id and no token" in done.stderr
    assert TOKEN[:20] not in done.stderr + done.stdout
