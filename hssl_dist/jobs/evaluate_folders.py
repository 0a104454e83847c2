"""Folders of label maps: true ones, and one or more sets of predicted ones, in the images' own geometry.

A case is a file's name without its ending, so that formats may differ. A label without a prediction is an
error or, if that is allowed, a warning; a prediction without a label is a warning; both are named. Of files
that cannot be scored all are named before the job ends: nobody mends a hundred one run at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8

from hssl_dist import files
from hssl_dist.config.evaluate import EvaluateConfig
from hssl_dist.datasets.class_names import class_names
from hssl_dist.datasets.contract import listed, volumes
from hssl_dist.datasets.discovery import MAX_LABEL
from hssl_dist.errors import ConfigError, InputError, MissingError
from hssl_dist.imaging.labels import check_grid, decode_label, read_label
from hssl_dist.imaging.orientation import ras_spacing_mm, to_ras
from hssl_dist.imaging.source import SourceHeader, read_source
from hssl_dist.jobs.evaluate_inputs import Example
from hssl_dist.records import content_hash

_FIRST_CHANNEL = "_0000"
_MOST_TOLD = 20


class FolderInputs:
    """The cases that labels and all sets of predictions have in common.

    Raises MissingError for a folder without label maps, sets without a case in common and (unless that is
    allowed) missing predictions, and ConfigError for a pattern that finds no patient. Reading cases raises
    InputError for a damaged file, another grid than the label's, and values that are not declared; of several
    such files each is told by `warn` before.
    """

    grid: Literal["stored", "original"] = "original"

    def __init__(self, config: EvaluateConfig, labels: str, warn: Callable[[str], None]) -> None:
        self._max_voxels, self._warn = config.max_voxels, warn
        self._labels = _label_maps(labels, "labels")
        self._sets = {
            name: _label_maps(folder, f"predictions {name!r}") for name, folder in config.sets.items()
        }
        self._images = volumes(config.images) if config.images else {}
        self._labels_folder, self._folders = labels, config.sets
        self.sets = tuple(self._sets)
        self.surplus = {name: sorted(set(maps) - set(self._labels)) for name, maps in self._sets.items()}
        self.missing = {name: sorted(set(self._labels) - set(maps)) for name, maps in self._sets.items()}
        self._check_common(config.allow_missing)
        lacking = {case for cases in self.missing.values() for case in cases}
        self.cases = tuple(sorted(set(self._labels) - lacking))
        self._patients = {case: _patient(case, config.patient_pattern) for case in self.cases}
        self.classes = self._declared(config)

    # -------------------------------------------------------------------------------------- what there is

    def _check_common(self, allow_missing: bool) -> None:
        for name, maps in self._sets.items():
            if not set(maps) & set(self._labels):
                raise MissingError(
                    f"predictions {name!r} and labels have no case in common: {listed(sorted(maps))} beside "
                    f"{listed(sorted(self._labels))}; give files of the same names"
                )
        for name, cases in self.missing.items():
            if cases and not allow_missing:
                raise MissingError(
                    f"predictions {name!r} lack {len(cases)} of {len(self._labels)} labelled cases: "
                    f"{listed(cases)}; predict them, or score the others with --allow_missing true"
                )
        if not set.intersection(set(self._labels), *map(set, self._sets.values())):
            raise MissingError(
                "no labelled case is in all sets of predictions; compare sets of the same cases"
            )

    def _declared(self, config: EvaluateConfig) -> dict[int, str]:
        """Names by label value: the config's, the dataset's, or the values that occur in the labels."""
        declared = config.classes
        if config.dataset is not None and not declared:
            declared = class_names(files.resolve(config.dataset))
        if wrong := [value for value in declared if value > MAX_LABEL]:
            raise ConfigError(f"label value {wrong[0]} is declared; 1 to {MAX_LABEL} can be scored")
        return dict(sorted(declared.items())) if declared else self._found()

    def _found(self) -> dict[int, str]:
        """The values that occur in the labels, which are then their names."""
        values: set[int] = set()
        refused: list[str] = []
        for case in self.cases:
            with _noted("labels", refused):
                label = decode_label(read_label(self._labels[case], self._max_voxels), None)
                values |= {int(value) for plane in label for value in np.unique(plane)}
        self._refuse(refused)
        if not values - {0}:
            raise ConfigError(
                "all labels are empty and nothing names their values; give --dataset or --classes"
            )
        return {value: str(value) for value in sorted(values - {0})}

    @property
    def title(self) -> str:
        """The sets of predictions."""
        return (
            " and ".join((", ".join(self.sets[:-1]), self.sets[-1])) if len(self.sets) > 1 else self.sets[0]
        )

    @property
    def scored(self) -> str:
        """Each set and its folder, and the folder of the labels."""
        sets = ", ".join(f"{name}={files.shown(folder)}" for name, folder in self._folders.items())
        return f"{sets} beside the labels in {files.shown(self._labels_folder)}"

    @property
    def warnings(self) -> Sequence[str]:
        """Cases that are not scored."""
        return (
            *(
                f"predictions {name!r} lack {len(cases)} of {len(self._labels)} labelled cases, which are "
                f"scored for no set: {listed(cases)}"
                for name, cases in self.missing.items()
                if cases
            ),
            *(
                f"predictions {name!r} hold {len(cases)} cases without a label, which are not scored: "
                f"{listed(cases)}"
                for name, cases in self.surplus.items()
                if cases
            ),
        )

    @property
    def lineage(self) -> Mapping[str, Any]:
        """Each folder, and one hash over the content of its scored files; the cases that are not scored."""
        return {
            "labels": self._content(self._labels_folder, self._labels),
            "predictions": {
                name: self._content(self._folders[name], maps) for name, maps in self._sets.items()
            },
            "missing": self.missing,
            "surplus": self.surplus,
        }

    def _content(self, folder: str, maps: Mapping[str, str]) -> dict[str, str]:
        hashes = {case: files.sha256(maps[case])[0] for case in self.cases}
        return {"folder": files.shown(folder), "sha256": content_hash(hashes)}

    # ------------------------------------------------------------------------------------------- one case

    def examples(self) -> Iterator[Example]:
        """All cases, one in memory at a time. After a file that is refused the others are only read, so that
        the error at the end is of all of them.
        """
        refused: list[str] = []
        for case in self.cases:
            example = self._read(case, refused)
            if example is not None and not refused:
                yield example
        self._refuse(refused)

    def example(self, case: str) -> Example:
        """One case, checked."""
        refused: list[str] = []
        example = self._read(case, refused)
        if example is None:
            raise InputError(refused[0])
        return example

    def _read(self, case: str, refused: list[str]) -> Example | None:
        """A case; None if one of its files is refused, and why is added to `refused`."""
        label, reference = None, None
        with _noted("labels", refused):
            source = read_label(self._labels[case], self._max_voxels)
            reference = source.header
            label = decode_label(source, self.classes)
        predictions = {}
        for name in self.sets:
            with _noted(f"predictions {name!r}", refused):
                predictions[name] = self._prediction(name, case, reference)
        if label is None or reference is None or len(predictions) < len(self.sets):
            return None
        return Example(case, self._patients[case], label, predictions, ras_spacing_mm(reference.affine))

    def _refuse(self, refused: Sequence[str]) -> None:
        """Raise InputError if there is a reason; several are told one by one before."""
        if len(refused) == 1:
            raise InputError(refused[0])
        if refused:
            for reason in refused[:_MOST_TOLD]:
                self._warn(reason)
            told = "each" if len(refused) <= _MOST_TOLD else f"the first {_MOST_TOLD}"
            raise InputError(
                f"{len(refused)} label maps cannot be scored, {told} told above; mend them, or leave their "
                "cases out of all folders"
            )

    def _prediction(self, name: str, case: str, reference: SourceHeader | None) -> UInt8[np.ndarray, "z y x"]:
        """On the grid of its label, if that could be read."""
        source = read_label(self._sets[name][case], self._max_voxels)
        if reference is not None:
            check_grid(source, "its label", reference)
        return decode_label(source, self.classes)

    def image(self, case: str) -> Float32[np.ndarray, "z y x"] | None:
        """The first channel; None if the folder of images has none of that name."""
        url = self._images.get(case) or self._images.get(f"{case}{_FIRST_CHANNEL}")
        if url is None:
            return None
        source = read_source(url, self._max_voxels)
        check_grid(source, "its label", read_label(self._labels[case], self._max_voxels).header)
        return source.header.scaling.values(to_ras(source.raw[0], source.header.affine))


def _label_maps(folder: str, what: str) -> dict[str, str]:
    """URLs of a folder's label maps by case."""
    if not files.is_folder(folder):
        raise MissingError(f"{what}: there is no folder {files.shown(folder)}")
    found = volumes(folder)
    if not found:
        raise MissingError(f"{what}: there is no label map in {files.shown(folder)}; is it the right folder?")
    return found


def _patient(case: str, pattern: str | None) -> str:
    if pattern is None:
        return case
    match = re.search(pattern, case)
    if match is None or not match[1]:
        raise ConfigError(f"patient_pattern {pattern!r} finds no patient in case {case!r}")
    return match[1]


@contextmanager
def _noted(what: str, refused: list[str]) -> Iterator[None]:
    """Inside, a file that is refused is noted, with the folder it is of: label and prediction have the same
    name.
    """
    try:
        yield
    except InputError as error:
        refused.append(f"{what}: {error}")
