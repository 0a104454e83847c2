"""What an evaluation needs of its inputs, wherever they come from: a model and a store, or folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Float32, UInt8

from hssl_dist.records import Triple


@dataclass(frozen=True, slots=True)
class Example:
    """A case in memory: its true label, and each set's prediction on the same grid, in RAS."""

    case: str
    patient: str
    label: UInt8[np.ndarray, "z y x"]
    predictions: Mapping[str, UInt8[np.ndarray, "z y x"]]
    spacing_mm: Triple


class Inputs(Protocol):
    """Cases with a label and one prediction per set; they are read when asked for, one at a time."""

    @property
    def title(self) -> str:
        """What is scored, in a few words."""
        ...

    @property
    def scored(self) -> str:
        """What is scored and where it lies, in a few words; equal for the same input alone."""
        ...

    @property
    def grid(self) -> Literal["stored", "original"]:
        """Which grid labels and predictions are compared on."""
        ...

    @property
    def classes(self) -> Mapping[int, str]:
        """Names by label value."""
        ...

    @property
    def sets(self) -> Sequence[str]:
        """Names of the sets of predictions."""
        ...

    @property
    def cases(self) -> Sequence[str]:
        """Names of the cases."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """What is not as it should be."""
        ...

    @property
    def lineage(self) -> Mapping[str, Any]:
        """Where labels and predictions come from, as JSON."""
        ...

    def examples(self) -> Iterator[Example]:
        """All cases, one after the other."""
        ...

    def example(self, case: str) -> Example:
        """One case again."""
        ...

    def image(self, case: str) -> Float32[np.ndarray, "z y x"] | None:
        """The first channel of a case's image in RAS; None if there is none."""
        ...
