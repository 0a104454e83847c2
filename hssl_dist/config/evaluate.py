"""Config of `hssl evaluate`: a model and a store, or folders of label maps, in; scores out."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt, model_validator

from hssl_dist import files
from hssl_dist.config.finetune import ModelUri
from hssl_dist.config.parts import JobConfig, Part, StoreConfig, TrackingConfig, Url
from hssl_dist.config.preprocess import ClassNames, PatientPattern

_NAMED = re.compile(r"([^/=]+)=(.+)")
"""`name=folder`; no name has a `/`, so a folder with a `=` in it is told by the `/` before."""
ScoredPart = Literal["test", "validation", "all"]
_OF_FOLDERS = ("labels", "images", "classes", "patient_pattern", "allow_missing")
"""Keys that say nothing about a model and a store."""


def _resolve_folder(text: str) -> str:
    """`name=folder` or `folder`, with the folder resolved; resolving again changes nothing.

    A resolved folder begins with `/` or a scheme, so a `=` further on is never taken for a name's.
    """
    match = _NAMED.fullmatch(text)
    return f"{match[1]}={files.resolve(match[2])}" if match else files.resolve(text)


def _name_and_folder(text: str) -> tuple[str, str]:
    """The two halves of `name=folder`; the name is the folder's own if none is given."""
    match = _NAMED.fullmatch(text)
    return (match[1], match[2]) if match else (text.rsplit("/", 1)[-1], text)


class SurfaceDiceConfig(Part):
    """Normalised surface Dice: how far a surface may be off and still count as right (docs/evaluate.md)."""

    tolerance_mm: NonNegativeFloat = 1.0
    """For every class that has none of its own."""
    class_tolerance_mm: dict[str, NonNegativeFloat] = Field(default={})
    """By the class's name, e.g. {"liver": 7}."""


class IntervalConfig(Part):
    """Bootstrap intervals over patients."""

    resamples: Annotated[int, Field(ge=100)] = 10_000
    """Times the patients are drawn."""
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.95
    """Share of intervals that are to hold the true value."""
    seed: int = 0
    """Seed of the draws; the same seed gives the same intervals."""


class EvaluateConfig(JobConfig):
    """Score a fine-tuned model on a dataset's test patients, or predicted label maps beside true ones."""

    model: ModelUri | None = None
    """`models:/name@alias`, `models:/name/version`, `runs:/id`, or a checkpoint's path."""
    predictions: tuple[Annotated[str, AfterValidator(_resolve_folder)], ...] = ()
    """Instead of a model: folders of predicted label maps, as `folder` or `name=folder` (./lr=1 is a folder,
    lr=1 a name and a folder); each further one is compared with the first."""
    labels: Url | None = None
    """Folder of the true label maps, of the same names as the predicted ones."""
    images: Url | None = None
    """Folder of the images, for pictures; `<case>` or `<case>_0000`."""
    dataset: str | None = None
    """With a model: dataset of the store, preprocessed as the model's; the one it was fine-tuned on if not
    given. With folders: the challenge folder, or its dataset.json, that names the classes."""
    classes: ClassNames = Field(default={})
    """Names of the label values, where no `dataset` gives them; the values of the labels otherwise."""
    patient_pattern: PatientPattern | None = None
    """Regular expression with one group that finds the patient in a case's name; each case is one without."""
    allow_missing: bool = False
    """Score what there is if labels lack a prediction, with a warning; it is an error otherwise."""
    part: ScoredPart = "test"
    """Patients to score: `test` or `validation` of the split the model was trained with (another dataset is
    split anew), or `all` labelled ones of another dataset than the model's."""
    store: StoreConfig = StoreConfig()
    output: Url = Field(default="hssl/evaluation", validate_default=True)
    """Folder for `scores.json`, `scores.csv` and `report.html`."""
    overwrite: bool = False
    """Replace the scores of another model, or of other patients or folders, in the output."""
    runs: Url | None = Field(default="hssl/runs", validate_default=True)
    """Folder or URL of runs: whom a model was scored on is noted there, for studies to tell (docs/study.md);
    nowhere if null."""
    tracking: TrackingConfig = TrackingConfig()
    overlap: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Overlap of neighbouring windows."""
    surface_dice: SurfaceDiceConfig = SurfaceDiceConfig()
    intervals: IntervalConfig = IntervalConfig()
    max_voxels: PositiveInt = 1 << 30
    """Largest label map accepted, in voxels of the header."""
    threads: PositiveInt | None = None
    """CPU threads; torch's choice if not given."""

    @property
    def sets(self) -> dict[str, str]:
        """Folder of each set of predictions, by its name."""
        return dict(map(_name_and_folder, self.predictions))

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.model is None) == (not self.predictions):
            raise ValueError("give either `model`, or `predictions` and `labels`")
        if self.predictions and self.labels is None:
            raise ValueError("`predictions` need the true `labels` beside them; give their folder")
        given = [key for key in _OF_FOLDERS if getattr(self, key)]
        if self.model is not None and given:
            raise ValueError(f"`{given[0]}` goes with `predictions`; with a model, the store has it")
        names = Counter(_name_and_folder(text)[0] for text in self.predictions)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"two `predictions` are called {twice[0]!r}; name them, as in ours=FOLDER")
        return self
