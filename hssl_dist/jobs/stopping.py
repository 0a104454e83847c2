"""Requests to stop: SIGTERM and Ctrl-C ask a run to save its state and end, here or in a worker elsewhere."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ASKED: ContextVar[threading.Event | None] = ContextVar("_ASKED", default=None)
_ELSEWHERE: ContextVar[Callable[[], bool]] = ContextVar("_ELSEWHERE", default=lambda: False)


@contextmanager
def asked_by(asked: Callable[[], bool]) -> Iterator[None]:
    """Inside, `stop_requests` also says that a stop was asked for once `asked` does, as of a worker whose
    driver gets the signals.
    """
    token = _ELSEWHERE.set(asked)
    try:
        yield
    finally:
        _ELSEWHERE.reset(token)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether a stop was asked for inside the context, or one around it.

    A context inside another, as of a study's fine-tuning, shares its requests and leaves the signals to it: a
    request that comes when the inner job has no more use for it stops the outer.

    SIGTERM only asks, however often it comes: schedulers send it again before they kill. So does the first
    Ctrl-C; from the second on it acts as it did before. Outside of the main thread, which alone gets signals,
    only `asked_by` asks.
    """
    elsewhere, around = _ELSEWHERE.get(), _ASKED.get()
    if threading.current_thread() is not threading.main_thread():
        yield elsewhere
        return
    if around is not None:
        yield lambda: around.is_set() or elsewhere()
        return
    asked = threading.Event()
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.set()
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])

    token = _ASKED.set(asked)
    for number in _SIGNALS:
        signal.signal(number, ask)
    try:
        yield lambda: asked.is_set() or elsewhere()
    finally:
        _ASKED.reset(token)
        for number, handler in before.items():
            signal.signal(number, handler)
