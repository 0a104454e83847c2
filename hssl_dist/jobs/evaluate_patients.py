"""Which patients of a store's dataset a model is scored on: none that it was trained or validated on.

Of the model's own dataset those its card set aside. Another dataset may hold the same scans under other
names; fingerprints tell, as long as the model's own dataset is in the store, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hssl_dist.config.evaluate import ScoredPart
from hssl_dist.config.parts import SplitConfig
from hssl_dist.errors import CheckpointError, ConfigError, MissingError, StoreError
from hssl_dist.networks.weights import ModelCard
from hssl_dist.records import CaseRecord, Manifest
from hssl_dist.sampling.splits import (
    labelled_cases,
    labelled_patients,
    patients_showing,
    patients_unmarked,
    scans_of,
    split_manifest,
)
from hssl_dist.store import read_manifest

IN_WORDS: dict[ScoredPart, str] = {"test": "test", "validation": "validation", "all": "labelled"}
"""What the patients of each part are called."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The cases to score, in the manifest's order, and what is to be said of the choice.

    `left_out` counts patients of the part whom the model was trained or validated on; None if that could not
    be checked.
    """

    cases: Sequence[CaseRecord]
    left_out: int | None
    warnings: tuple[str, ...] = ()


def choose(part: ScoredPart, card: ModelCard, manifest: Manifest, root: str) -> Chosen:
    """The labelled cases of a part of the model's dataset, or of another one in the store at `root`.

    Raises ConfigError for a part without patients and for `all` of the model's own dataset, MissingError for
    patients that are gone, CheckpointError for a card that does not say who was set aside.
    """
    if manifest.dataset == card.dataset:
        patients = _set_aside(part, card, manifest)
        chosen = Chosen(labelled_cases(manifest, patients), 0, _pretrained_on(card, patients))
        remedy = f"fine-tune with a larger split.{part}"
    else:
        chosen = _of_another(part, card, manifest, root)
        remedy = "score another dataset" if part == "all" else "score all labelled ones with --part all"
    if not chosen.cases:
        raise ConfigError(f"there is no {IN_WORDS[part]} patient in dataset {manifest.dataset!r}; {remedy}")
    return chosen


def _set_aside(part: ScoredPart, card: ModelCard, manifest: Manifest) -> tuple[str, ...]:
    """Patients of the dataset the model was trained on, all of whom are still there."""
    if part == "all":
        raise ConfigError(
            f"part all of dataset {manifest.dataset!r} has the patients the model was trained on; "
            "score part test or validation of it, or another dataset"
        )
    patients = tuple(_split_of(card)[part])
    if gone := sorted(set(patients) - set(labelled_patients(manifest))):
        raise MissingError(
            f"{len(gone)} of the {len(patients)} {part} patients are not in dataset "
            f"{manifest.dataset!r} with a label any more, {gone[0]!r} first; "
            "use the store the model was trained on, or fine-tune it again"
        )
    return patients


def _pretrained_on(card: ModelCard, patients: Sequence[str]) -> tuple[str, ...]:
    """A warning if test patients among them have been seen, without labels."""
    seen = set(card.test_pretrained_on or ()) & set(patients)
    told = (
        f"the network was pretrained on images, without labels, of {len(seen)} of the {len(patients)} "
        "patients, which may flatter their scores"
    )
    return (told,) if seen else ()


def _of_another(part: ScoredPart, card: ModelCard, manifest: Manifest, root: str) -> Chosen:
    """Another dataset is split by the config the model's own was; who is known to the model is left out."""
    if part == "all":
        patients = labelled_patients(manifest)
    else:
        split = split_manifest(manifest, SplitConfig.model_validate(_split_of(card)["config"]))
        patients = split.test if part == "test" else split.validation
    known, warnings = _known(card, manifest, root)
    if known is None:
        return Chosen(labelled_cases(manifest, patients), None, warnings)
    left_out = known & set(patients)
    if left_out and len(left_out) == len(patients):
        raise ConfigError(
            f"the model was trained or validated on a scan of each of the {len(patients)} {IN_WORDS[part]} "
            f"patients of dataset {manifest.dataset!r}; score another dataset"
        )
    if left_out:
        told = (
            f"{len(left_out)} of the {len(patients)} {IN_WORDS[part]} patients of dataset "
            f"{manifest.dataset!r} are left out: dataset {card.dataset!r}, which the model was trained or "
            "validated on, has scans of theirs"
        )
        warnings = (told, *warnings)
    return Chosen(labelled_cases(manifest, set(patients) - left_out), len(left_out), warnings)


def _known(card: ModelCard, manifest: Manifest, root: str) -> tuple[frozenset[str] | None, tuple[str, ...]]:
    """The dataset's patients of whom the model was trained or validated on a scan, and what of that cannot be
    checked; None if nothing can.
    """
    unchecked = f"whether the model was trained on scans of dataset {manifest.dataset!r} cannot be checked"
    if card.dataset is None or card.split is None:
        return None, (f"{unchecked}: its card does not list its patients",)
    try:
        own = read_manifest(root, card.dataset)
    except MissingError:
        return None, (f"{unchecked}: its own dataset {card.dataset!r} is not in the store",)
    except StoreError as error:
        return None, (f"{unchecked}: {error}",)
    trained = {*card.split["train"], *card.split["validation"]}
    gone = trained - patients_showing(own, scans_of(own, trained))
    doubtful = {
        card.dataset: len(gone | (trained & patients_unmarked(own))),
        manifest.dataset: len(patients_unmarked(manifest) & set(labelled_patients(manifest))),
    }
    known = patients_showing(manifest, scans_of(own, trained))
    named = " and ".join(f"{count} patients of {name!r}" for name, count in doubtful.items() if count)
    return known, (f"{unchecked} for {named}: the store has no fingerprints of them",) if named else ()


def _split_of(card: ModelCard) -> dict[str, Any]:
    if card.split is None:
        raise CheckpointError(
            "the model's card does not say what patients were set aside; fine-tune it again"
        )
    return card.split
