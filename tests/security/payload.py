"""Code in the forms in which data carries it."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class Payload:
    """Forms of a command that makes `marker`."""

    marker: Path

    @property
    def command(self) -> str:
        return f"touch {self.marker}"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        import os

        return os.system, (self.command,)

    @property
    def pickled(self) -> bytes:
        return pickle.dumps(self)

    @property
    def torch_zip(self) -> bytes:
        """As `torch.save` of today wraps pickles."""
        stream = io.BytesIO()
        torch.save({"weights": self}, stream)
        return stream.getvalue()

    @property
    def numpy_file(self) -> bytes:
        stream = io.BytesIO()
        np.save(stream, np.array([self], object), allow_pickle=True)
        return stream.getvalue()

    @property
    def python(self) -> str:
        return f"__import__('os').system({self.command!r})"
