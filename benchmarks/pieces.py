"""Pieces of a long measurement, kept in a file so that a run that was stopped goes on behind the last one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class OtherSettingsError(Exception):
    """The file is of a measurement with other settings."""


class Pieces:
    """Measured pieces by name; without a file they are measured each time.

    `settings` must be those of the pieces in the file, or OtherSettingsError says which differ.
    """

    def __init__(self, path: str | None, settings: Mapping[str, Any]) -> None:
        self._path = Path(path) if path else None
        self._settings = json.loads(json.dumps(settings))
        self._pieces: dict[str, Any] = {}
        if self._path and self._path.exists():
            kept = json.loads(self._path.read_text())
            odd = [key for key in kept["settings"] if kept["settings"][key] != self._settings.get(key)]
            if odd or kept["settings"].keys() != self._settings.keys():
                raise OtherSettingsError(
                    f"{path} was measured with other settings ({', '.join(odd) or 'others'}): name another "
                    "file, or remove it"
                )
            self._pieces = kept["pieces"]

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The piece, measured now if it is not kept."""
        if name not in self._pieces:
            self._pieces[name] = json.loads(json.dumps(measure()))
            if self._path:
                aside = self._path.with_suffix(".part")
                aside.write_text(json.dumps({"settings": self._settings, "pieces": self._pieces}))
                aside.replace(self._path)
        return self._pieces[name]
