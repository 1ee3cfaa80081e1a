"""No page links to what is not there, and no command is shown that the programs do not have."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from gatepass.cli import COMMANDS
from gatepass.openclaw_setup.versions import OLDEST

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted(
    path for folder in (".", "docs", "systemd", "demo", "bench") for path in (ROOT / folder).glob("*.md")
)
PROGRAMS: Final = ("gatepass", "gatepass-broker", "gatepass-gateway", "gatepass-redirect")
ENDS: Final = frozenset({"|", "||", "&&", ";", "&", ">", "<", ">>", "--", "#", ")"})
"""Words after which the arguments of a command are over."""
STARTS: Final = ENDS | {"$(", "$", "sudo", "exec"}
"""Words after which a command may begin; an assignment is another."""


class Shown(NamedTuple):
    """A command on a page."""

    program: str
    command: str
    """`openclaw setup`; empty for the daemons, but for `gatepass-broker install`."""
    options: tuple[str, ...]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_no_link_is_dead(page: Path) -> None:
    text = _without_code(page.read_text(encoding="utf-8"))
    dead = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if _is_dead(page, link)]
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_command_shown_exists_with_its_options(page: Path) -> None:
    wrong = [shown for shown in _commands(page.read_text(encoding="utf-8")) if not _exists(shown)]
    assert wrong == []


def test_commands_are_found_and_judged() -> None:
    block = "gatepass token --audienc x | gatepass verify --json\ngatepass-broker --chek $(x --y)\n"
    page = f"```sh\n{block}```\n`gatepass nothing`"
    assert [_exists(shown) for shown in _commands(page)] == [False, True, False, False]


def test_the_oldest_openclaw_is_the_one_that_setup_takes() -> None:
    assert f"It needs OpenClaw {OLDEST} or later" in (ROOT / "docs" / "openclaw.md").read_text(encoding="utf-8")


def _is_dead(page: Path, link: str) -> bool:
    if "://" in link or link.startswith("mailto:"):
        return False
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists() or ROOT not in (target, *target.parents):
        return True
    return bool(anchor) and target.suffix == ".md" and anchor not in _anchors(target)


@cache
def _anchors(page: Path) -> frozenset[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", _without_code(page.read_text(encoding="utf-8"), spans=False), re.MULTILINE)
    found: dict[str, int] = {}
    anchors = set()
    for heading in headings:
        base = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading)).strip().lower().replace(" ", "-")
        seen = found.get(base, 0)
        found[base] = seen + 1
        anchors.add(f"{base}-{seen}" if seen else base)
    return frozenset(anchors)


def _without_code(text: str, *, spans: bool = True) -> str:
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "`code`", text) if spans else text


def _commands(text: str) -> Iterator[Shown]:
    """Yield the commands in blocks of shell and in spans of code that begin with one of our programs."""
    blocks = re.findall(r"^```(?:sh|console|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    lines += [span for span in spans if span.split()[0] in PROGRAMS] if spans else []
    for line in lines:
        yield from _commands_in(line)


def _commands_in(line: str) -> Iterator[Shown]:
    words = [part for word in _split(line) for part in re.split(r"(\$\(|\))", word) if part]
    for index, word in enumerate(words):
        program = word.rpartition("/")[2]
        before = words[index - 1] if index else "|"
        if program in PROGRAMS and (before in STARTS or "=" in before):
            yield _shown(program, words[index + 1 :])


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return line.split()


def _shown(program: str, following: list[str]) -> Shown:
    arguments: list[str] = []
    inside = 0  # of $( … ), whose commands are looked at by themselves
    for word in following:
        if not inside and (word in ENDS or word.endswith(";")):
            break
        inside += (word == "$(") - (word == ")")
        if not inside and word != ")":
            arguments.append(word)
    command = _command(arguments) if program == "gatepass" else "install" if arguments[:1] == ["install"] else ""
    options = tuple(word.partition("=")[0] for word in arguments if re.match(r"--?[a-z]", word))
    return Shown(program, command, options)


def _command(arguments: list[str]) -> str:
    """Return the command that `gatepass` takes these arguments for; one that does not exist is returned as well."""
    candidates = (" ".join(arguments[:2]), " ".join(arguments[:1]))
    unknown = next((word for word in arguments if not word.startswith("-")), "")
    return next((candidate for candidate in candidates if candidate in COMMANDS), unknown)


def _exists(shown: Shown) -> bool:
    if shown.program == "gatepass" and shown.command not in (*COMMANDS, ""):
        return False
    known = _options(shown.program, shown.command)
    return all(option in known for option in shown.options)


@cache
def _options(program: str, command: str) -> frozenset[str]:
    """Return the options that a program's own help names."""
    arguments = [str(Path(sys.executable).with_name(program)), *command.split(), "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=20)
    return frozenset(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", done.stdout))
