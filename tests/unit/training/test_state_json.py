"""A state's JSON is the canonical one, however its lists have grown, and what was encoded is not again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from hssl_dist.records import canonical_json
from hssl_dist.training.state_json import StateJson


class Counted(dict[str, float]):
    """A dictionary that counts how often it is encoded."""

    encoded = 0

    def items(self) -> Any:
        self.encoded += 1
        return super().items()


def states() -> Iterator[dict[str, Any]]:
    history: list[Any] = []
    yield {}
    yield {"stage": "encoder", "history": history}
    for step in range(3):
        history.append((step, {"loss": step / 7, "ä": 1e-9}))
        yield {"stage": "encoder", "history": history, "nested": {"b": [1, None], "a": True}}
    history.pop()
    yield {"history": history}
    history[:] = [(9, {"loss": 0.0}), *history, (10, {})]
    yield {"history": history, "log": [], "stage": "decoder"}
    yield {"history": list(history), "log": [{"loss": 1}]}
    yield {"history": [(9, {"loss": 5.0}), (10, {})], "log": [{"loss": 2}]}


def test_it_is_the_canonical_json() -> None:
    encoder = StateJson()
    for state in states():
        data = encoder.encode(state)
        assert data == canonical_json(state).encode()
        assert json.loads(data).keys() == state.keys()


def test_an_entry_is_encoded_once() -> None:
    encoder, history = StateJson(), [Counted(loss=1.0)]
    encoder.encode({"history": history})
    once = history[0].encoded
    assert once >= 1
    history.append(Counted(loss=2.0))
    assert encoder.encode({"history": history}) == b'{"history":[{"loss":1.0},{"loss":2.0}]}'
    assert (history[0].encoded, history[1].encoded) == (once, once)


def test_what_json_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Out of range float values"):
        StateJson().encode({"history": [float("nan")]})
