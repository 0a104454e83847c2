"""A command whose lines are waited for, such as a pretraining's driver."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Self

DEADLINE_S = 600.0


class Driver:
    """A process and the `lines` it has said so far; killed at the deadline, and when the block ends."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, deadline_s: float = DEADLINE_S
    ) -> None:
        self.process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._deadline = threading.Timer(deadline_s, self.process.kill)

    def __enter__(self) -> Self:
        self._deadline.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._deadline.cancel()
        self.process.kill()
        self.process.communicate()

    def wait_for(self, start: str) -> None:
        """Read on until a line starts so."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith(start):
                return
        raise AssertionError(f"no line {start!r} in {self.lines[-20:]}")

    def end(self) -> int:
        """Read to the end; the exit status."""
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)
        return self.process.wait()
