"""Files of rules in conf.d beside the configuration: read in order, trusted as it is, and named when they are wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gatepass.errors import ConfigurationError
from gatepass_broker.cli import main
from gatepass_broker.config import load
from gatepass_broker.settings import Settings

RULE = '[[rule]]\nuid = 1000\nscopes = ["operator.read"]\n'


@pytest.fixture
def main_file(tmp_path: Path) -> Path:
    path = tmp_path / "broker.toml"
    path.write_text(
        f'[broker]\nid = "host"\nmax_ttl = 600\nloopback_user = "derek@example.com"\n'
        f'state_dir = "{tmp_path}/state"\n[[socket]]\npath = "/run/gatepass/broker.sock"\n{RULE}'
    )
    path.chmod(0o600)
    return path


def add(main_file: Path, name: str, text: str = RULE) -> Path:
    path = main_file.parent / "conf.d" / name
    path.parent.mkdir(mode=0o755, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return path


def names(settings: Settings) -> list[str]:
    return [rule.grant.rule for rule in settings.rules.rules]


def error(main_file: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(main_file)
    return caught.value.message


def test_there_need_be_none(main_file: Path) -> None:
    assert names(load(main_file)) == ["rule[0]"]
    (main_file.parent / "conf.d").mkdir()
    assert names(load(main_file)) == ["rule[0]"]


def test_their_rules_come_after_the_others_by_the_names_of_the_files(main_file: Path) -> None:
    add(main_file, "20-b.toml", RULE + RULE)
    add(main_file, "10-a.toml", RULE + 'name = "agents"\nidentity = "alice"\n')
    add(main_file, "30-none.toml", "")
    settings = load(main_file)

    assert names(settings) == ["rule[0]", "agents", "20-b.toml:rule[0]", "20-b.toml:rule[1]"]
    assert [rule.grant.identity for rule in settings.rules.rules] == [
        "derek@example.com",
        "alice",
        *2 * ["derek@example.com"],
    ]
    assert [path.name for path in settings.rule_files] == ["10-a.toml", "20-b.toml", "30-none.toml"]


@pytest.mark.parametrize("name", [".hidden.toml", "rules.toml~", "rules.TOML", "rules.toml.bak", "README", "rules.d"])
def test_other_names_are_not_read(main_file: Path, name: str) -> None:
    add(main_file, name, "this is [ not TOML")

    assert names(load(main_file)) == ["rule[0]"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RULE.replace("uid", "uidd"), ": rule[0]: there is no key 'uidd' here; did you mean 'uid'?"),
        (RULE.replace("1000", "true"), ": rule[0].uid: "),
        (RULE + "max_ttl = 601\n", ": rule[0].max_ttl: 601 is more than broker.max_ttl, 600"),
        (RULE + 'name = "rule[0]"\n', ": rule[0].name: another rule has the name 'rule[0]'"),
        ('[broker]\nloopback_user = "mallory"\n', ": there is no key 'broker' here; there are: rule"),
        ("[[rules]]\n", "did you mean 'rule'?"),
        ("this is [ not TOML", ": this is not TOML"),
        ('[[rule]]\nuser = "no-such-user"\nscopes = []\n', ": rule[0].user: there is no user 'no-such-user'"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(main_file: Path, text: str, expected: str) -> None:
    path = add(main_file, "10-a.toml", text)

    assert error(main_file).startswith(str(path))
    assert expected in error(main_file)


def test_a_file_that_others_can_write_to(main_file: Path) -> None:
    path = add(main_file, "a.toml")
    path.chmod(0o620)

    assert f"{path}" in error(main_file)
    assert "others than its owner can write" in error(main_file)


def test_a_symbolic_link(main_file: Path) -> None:
    target = add(main_file, "target")
    path = target.with_name("a.toml")
    path.symlink_to(target)

    assert f"{path}: the file cannot be opened: it is a symbolic link" in error(main_file)


def test_a_fifo_is_an_error_and_no_wait(main_file: Path) -> None:
    path = add(main_file, "unused").with_name("a.toml")
    os.mkfifo(path, 0o600)

    assert f"{path}: this is not a regular file" in error(main_file)


def test_a_directory_that_is_called_like_a_file(main_file: Path) -> None:
    path = add(main_file, "unused").with_name("a.toml")
    path.mkdir()

    assert f"{path}: this is not a regular file" in error(main_file)


def test_a_directory_in_which_others_can_make_files(main_file: Path) -> None:
    directory = add(main_file, "a.toml").parent
    directory.chmod(0o777)

    assert f"{directory}: others than its owner can write to {directory}" in error(main_file)


def test_a_link_to_a_directory_in_which_others_can_make_files(main_file: Path, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "conf.d").symlink_to(tmp_path / "open")

    assert "others than its owner can write" in error(main_file)


def test_a_link_to_nowhere_and_what_is_no_directory(main_file: Path, tmp_path: Path) -> None:
    link = tmp_path / "conf.d"
    link.symlink_to(tmp_path / "gone")
    assert "No such file or directory" in error(main_file)
    link.unlink()
    link.write_text("")
    assert f"{link}: this is not a directory" in error(main_file)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to give files away")
@pytest.mark.parametrize("which", ["conf.d", "conf.d/a.toml"])
def test_what_belongs_to_another_user(main_file: Path, which: str) -> None:
    add(main_file, "a.toml")
    os.chown(main_file.parent / which, 1234, 0)

    assert f"{main_file.parent / which}: it belongs to uid 1234" in error(main_file)


def test_the_digest_is_that_of_all_files(main_file: Path) -> None:
    digests = [load(main_file).digest]
    path = add(main_file, "a.toml")
    digests.append(load(main_file).digest)
    path.write_text(RULE + "# changed\n")
    digests.append(load(main_file).digest)
    path.rename(path.with_name("b.toml"))
    digests.append(load(main_file).digest)
    add(main_file, "a.toml", "")
    digests.append(load(main_file).digest)

    assert len(set(digests)) == len(digests)


def test_check_counts_rules_and_files(main_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(main_file, "a.toml", RULE + RULE)

    assert main(["--config", str(main_file), "--check"]) == 0
    assert capsys.readouterr().out == f"{main_file}: no fault found; issuer gatepass:host, 3 rules in 2 files\n"
