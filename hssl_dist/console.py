"""What a person sees while a job runs: progress bars on a terminal, plain lines elsewhere.

All of it goes to standard error; standard output is for results.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PLAIN_INTERVAL_S = 10.0


class Console:
    """Lines and progress on one stream (standard error by default)."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr

    @property
    def is_terminal(self) -> bool:
        """Whether a person is watching a terminal."""
        return self._stream.isatty()

    def say(self, text: str) -> None:
        """One line."""
        print(text, file=self._stream, flush=True)

    def warn(self, text: str) -> None:
        """One line that something is not as it should be."""
        self.say(f"warning: {text}")

    @contextmanager
    def track(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """Progress of `total` equal pieces; yields a function that advances it by so many."""
        if self.is_terminal:
            with self._bar(title, total) as advance:
                yield advance
            return
        done, last_s, start_s = 0, time.monotonic(), time.monotonic()

        def advance_plain(count: int) -> None:
            nonlocal done, last_s
            done += count
            if time.monotonic() - last_s >= _PLAIN_INTERVAL_S and done < total:
                last_s = time.monotonic()
                self.say(f"{title}: {done} of {total}")

        yield advance_plain
        self.say(f"{title}: {done} of {total} in {time.monotonic() - start_s:.1f} s")

    @contextmanager
    def _bar(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=RichConsole(file=self._stream)) as progress:
            task = progress.add_task(title, total=total)
            yield lambda count: progress.advance(task, count)
