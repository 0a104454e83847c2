"""What a long measurement has found so far, in a file, so that a run that was stopped goes on from there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class OtherSettingsError(Exception):
    """The file is of a measurement with other settings."""


class Pieces:
    """Measured pieces by name; without a file nothing is kept.

    `settings` must be those of the pieces in the file, or OtherSettingsError says which differ.
    """

    def __init__(self, path: str | None, settings: Mapping[str, Any]) -> None:
        self._path = Path(path) if path else None
        self._settings = json.loads(json.dumps(settings))
        self._pieces: dict[str, Any] = {}
        if self._path and self._path.exists():
            kept = json.loads(self._path.read_text())
            known = kept["settings"]
            if odd := sorted(
                key
                for key in known.keys() | self._settings.keys()
                if known.get(key) != self._settings.get(key)
            ):
                raise OtherSettingsError(
                    f"{path} was measured with other settings ({', '.join(odd)}): name another file, or "
                    "remove it"
                )
            self._pieces = kept["pieces"]

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The piece, measured now if it is not kept."""
        if name not in self._pieces:
            self._pieces[name] = measure()
            self.save()
        return self._pieces[name]

    def growing(self, name: str) -> Piece:
        """A piece that is measured bit by bit."""
        return Piece(self._pieces.setdefault(name, {}), self.save)

    def save(self) -> None:
        """Write all that there is, whole or not at all."""
        if self._path:
            aside = self._path.with_name(f"{self._path.name}.part")
            aside.write_text(json.dumps({"settings": self._settings, "pieces": self._pieces}))
            aside.replace(self._path)


@dataclass(frozen=True)
class Piece:
    """What is found of a piece, to be added to, and how that is kept."""

    found: dict[str, Any]
    save: Callable[[], None]
