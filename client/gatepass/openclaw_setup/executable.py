"""Asking OpenClaw itself: which version it is, where its configuration is, and whether that is valid."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any, Final

from gatepass.errors import ConfigurationError
from gatepass.openclaw_setup.facts import Issue
from gatepass.openclaw_setup.versions import Version, parse_version, why_it_cannot_work

TIMEOUT: Final = 60.0
"""Seconds. A command takes two on an idle machine, and its first run completes OpenClaw's installation."""


_PLACE_OF_SCOPES: Final = (
    *("properties", "gateway", "properties", "auth", "properties", "identityScopes"),
    *("additionalProperties", "items", "enum"),
)
"""In its JSON schema."""


class OpenClaw:
    """The command `openclaw`."""

    def __init__(self, path: str | None) -> None:
        found = shutil.which(path or "openclaw")
        if found is None:
            raise ConfigurationError(
                f"'{path or 'openclaw'}' is not a command here; name OpenClaw's with --openclaw PATH"
            )
        self.path = os.path.abspath(found)  # noqa: PTH100 - a link is kept: it is how a package manager names it

    def version(self) -> Version:
        """Return its version. Raise `ConfigurationError` if it cannot work with gatepass."""
        done = self._run("--version")
        version = parse_version(done.stdout)
        if version is None:
            raise ConfigurationError(f"this does not say its version: {_tail(done)}", where=self.path)
        if reason := why_it_cannot_work(version):
            raise ConfigurationError(reason, where=self.path)
        return version

    def config_path(self) -> str:
        """Return where its configuration is. Raise `ConfigurationError`."""
        return str(self._json("config", "file", "--json").get("path"))

    def operator_scopes(self) -> tuple[str, ...]:
        """Return every operator scope that it can grant to an identity. Raise `ConfigurationError`.

        They differ from release to release, and it takes no configuration with a name that it does not know.
        """
        found: Any = self._json("config", "schema", "--json")
        for key in _PLACE_OF_SCOPES:
            found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, list) or not found:
            raise ConfigurationError(
                "this OpenClaw has no gateway.auth.identityScopes, without which a login through gatepass has no scope",
                where=self.path,
            )
        return tuple(map(str, found))

    def issues(self, config_path: str | None = None) -> tuple[Issue, ...]:
        """Return what OpenClaw finds wrong in its configuration, or in another file. Raise `ConfigurationError`."""
        changed = {} if config_path is None else {"OPENCLAW_CONFIG_PATH": config_path}
        answer = self._json("config", "validate", "--json", changed=changed)
        if answer.get("valid") is True:
            return ()
        found = answer.get("issues") or [{"message": answer.get("error", {}).get("message", "not valid")}]
        return tuple(Issue(str(issue.get("path", "")), str(issue.get("message", ""))) for issue in found)

    def _json(self, *arguments: str, changed: Mapping[str, str] | None = None) -> dict[str, Any]:
        done = self._run(*arguments, changed=changed)
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ConfigurationError(f"'openclaw {' '.join(arguments)}' does not answer: {_tail(done)}")
        return answer

    def _run(self, *arguments: str, changed: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **(changed or {}), "NO_COLOR": "1"}
        try:
            return subprocess.run(
                [self.path, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigurationError(f"'{self.path} {' '.join(arguments)}' does not run: {error}") from error


def _tail(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr + done.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"
