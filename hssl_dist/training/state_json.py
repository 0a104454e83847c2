"""The JSON of a run's state, whose history only grows: what one checkpoint encoded, the next one keeps.

After a million steps the history has a hundred thousand entries, and to encode all of them takes the training
thread a second, every time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hssl_dist.records import canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping


class StateJson:
    """Encodes the states of one run, one after the other, each to the bytes of its canonical JSON.

    An entry of a list of the top level, once it was encoded, must not change; lists may grow and be replaced.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[list[Any], list[str]]] = {}

    def encode(self, state: Mapping[str, Any]) -> bytes:
        """Canonical JSON of `state`."""
        parts = (f"{canonical_json(key)}:{self._text(key, state[key])}" for key in sorted(state))
        return f"{{{','.join(parts)}}}".encode()

    def _text(self, key: str, value: Any) -> str:
        if not isinstance(value, list):
            return canonical_json(value)
        entries, texts = self._known.get(key, ([], []))
        # Held here, an entry keeps its identity: no other object can be taken for it.
        if len(entries) > len(value) or any(a is not b for a, b in zip(entries, value, strict=False)):
            entries, texts = [], []
        texts = texts + [canonical_json(entry) for entry in value[len(entries) :]]
        self._known[key] = (list(value), texts)
        return f"[{','.join(texts)}]"
