"""What is done, one step after the other: said, noted for the report, and done unless it is a rehearsal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gatepass.errors import GatepassError


class Steps:
    """Does each step as it is told, and keeps the account of it."""

    def __init__(self, tell: Callable[[str], None], *, dry_run: bool = False) -> None:
        self.dry_run = dry_run
        self.done: list[str] = []
        self.notes: list[str] = []
        self.left: list[str] = []
        """What could not be undone, with the reason."""
        self._tell = tell

    def do(self, what: str, action: Callable[[], object]) -> None:
        """Say `what` is done, in the imperative, and do it unless this is a rehearsal."""
        self.done.append(what)
        self._tell(what)
        if not self.dry_run:
            action()

    def attempt(self, what: str, action: Callable[[], object]) -> bool:
        """Do as `do`, but go on where it fails: what is undone has no second half. Return whether it succeeded."""
        try:
            self.do(what, action)
        except GatepassError as error:
            self.leave(f"{what}: {error.message}")
        except OSError as error:
            self.leave(f"{what}: {error.filename or ''} {error.strerror}")
        else:
            return True
        return False

    def note(self, text: str) -> None:
        """Say at the end what a person should know."""
        if text not in self.notes:
            self.notes.append(text)

    def leave(self, text: str) -> None:
        """Say at once, and keep, that something is left."""
        self.left.append(text)
        self._tell("  this failed: see the end")

    def as_json(self) -> dict[str, Any]:
        """Return the account for machines."""
        return {"dry_run": self.dry_run, "steps": self.done, "notes": self.notes, "left": self.left}
