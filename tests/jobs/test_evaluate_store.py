"""Evaluating a model on a store: which datasets suit it, and which patients of another than its own."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hssl_dist.config.evaluate import EvaluateConfig
from hssl_dist.config.parts import SplitConfig
from hssl_dist.console import Console
from hssl_dist.errors import CheckpointError, ConfigError, HsslError
from hssl_dist.imaging import Recipe
from hssl_dist.jobs import evaluate
from hssl_dist.networks.weights import load_model, save_model
from hssl_dist.records import Manifest, Outcome
from hssl_dist.sampling.splits import split_manifest
from hssl_dist.store import write_manifest
from hssl_dist.store.layout import manifest_url
from tests.tiny_model import recipe_of, save_tiny_model
from tests.tiny_store import write_blobs

RECIPE = recipe_of()
SHARES = SplitConfig(test=0.25, validation=0.25)
SPLIT = {
    "config": SHARES.model_dump(mode="json"),
    "train": ["p0", "p1", "p2", "p3"],
    "validation": ["p4", "p5"],
    "test": ["p6", "p7"],
}
REMEDY = (
    "`predict` prepares images the model's own way, and `evaluate --predictions` scores what it predicts: "
    "give them the source files"
)


class Place:
    """A store with the model's own dataset, `own`, another like it, `clinic`, and the model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = str(folder / "store")
        self.add("own")
        self.clinic = self.add("clinic")
        self.model = self.save("model")

    def add(self, dataset: str, scans: Mapping[str, str] | None = None, **about: Any) -> Manifest:
        """Blobs; each case has a scan of its own, or the one given by its id. `about` is the header's."""
        manifest = write_blobs(self.store, dataset)
        records = [
            case.model_copy(update={"fingerprints": ((scans or {}).get(case.id, f"{dataset}/{case.id}"),)})
            for case in manifest.cases
        ]
        header = {"recipe": RECIPE.model_dump(mode="json"), **about}
        return write_manifest(self.store, manifest.header.model_copy(update=header), records)

    def save(self, name: str, **changes: Any) -> str:
        """A model of `own`, its card changed."""
        path = save_tiny_model(self.folder / name, dataset="own", split=SPLIT)
        card, state = load_model(Path(path))
        save_model(Path(path), state, card.model_copy(update=changes))
        return path

    def evaluate(self, **changes: Any) -> Outcome:
        values: dict[str, Any] = {
            "model": self.model,
            "dataset": "clinic",
            "part": "all",
            "store": {"url": self.store},
            "output": str(self.folder / "output"),
            "runs": str(self.folder / "runs"),
            "tracking": {"uri": f"sqlite:///{self.folder}/mlflow.db"},
            "intervals": {"resamples": 100},
            "threads": 1,
        }
        return evaluate.run(EvaluateConfig.model_validate(values | changes), Console(io.StringIO()))

    @property
    def scores(self) -> dict[str, Any]:
        return json.loads((self.folder / "output/scores.json").read_text())

    @property
    def scored(self) -> set[str]:
        return {case["case"] for case in self.scores["cases"]}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# --------------------------------------------------------------------------------------------- which patients


def test_all_labelled_patients_of_another_dataset_are_scored(place: Place) -> None:
    outcome = place.evaluate()
    assert place.scored == {case.id for case in place.clinic.cases if case.labelled}
    assert (outcome.summary["n_patients"], outcome.summary["part"]) == (8, "all")
    assert outcome.summary["patients_left_out"] == place.scores["lineage"]["patients_left_out"] == 0
    assert outcome.warnings == ()
    assert place.scores["title"] == f"{place.model} on all labelled patients of clinic"


def test_patients_the_model_was_trained_or_validated_on_are_left_out_whatever_their_names(
    place: Place,
) -> None:
    """p0 by the second of his cases; p3 has a test patient's scan, which the model has not met."""
    place.add("clinic", {"p0_b": "own/p4", "p1": "own/p2", "p3": "own/p7"})
    outcome = place.evaluate()
    assert place.scored == {"p2", "p3", "p4", "p5", "p6", "p7"}
    assert outcome.summary["patients_left_out"] == place.scores["lineage"]["patients_left_out"] == 2
    assert outcome.warnings == (
        "2 of the 8 labelled patients of dataset 'clinic' are left out: dataset 'own', which the model was "
        "trained or validated on, has scans of theirs",
    )
    assert place.scores["warnings"] == list(outcome.warnings)


@pytest.mark.parametrize("part", ["test", "validation"])
def test_a_part_of_another_datasets_split_has_no_known_patient_either(place: Place, part: str) -> None:
    patients = getattr(split_manifest(place.clinic, SHARES), part)
    cases = [case.id for case in place.clinic.cases if case.patient == patients[0]]
    place.add("clinic", {cases[0]: "own/p1"})
    outcome = place.evaluate(part=part)
    assert place.scored == {case.id for case in place.clinic.cases if case.patient in patients[1:]}
    assert outcome.summary["patients_left_out"] == 1
    assert outcome.warnings[0].startswith(f"1 of the 2 {part} patients of dataset 'clinic' are left out")


def test_of_the_models_own_dataset_the_patients_set_aside_are_scored(place: Place) -> None:
    outcome = place.evaluate(dataset=None, part="validation")
    assert place.scored == {"p4", "p5"}
    assert (outcome.summary["patients_left_out"], outcome.warnings) == (0, ())


def test_test_patients_that_were_pretrained_on_are_told(place: Place) -> None:
    place.model = place.save("seen", test_pretrained_on=("p7",))
    outcome = place.evaluate(dataset=None, part="test")
    assert place.scored == {"p6", "p7"}
    assert outcome.warnings == (
        "the network was pretrained on images, without labels, of 1 of the 2 patients, which may flatter "
        "their scores",
    )
    assert place.evaluate(dataset=None, part="validation", overwrite=True).warnings == ()


def _no_own_dataset(place: Place) -> None:
    Path(manifest_url(place.store, "own")).unlink()


def _torn(place: Place) -> None:
    path = Path(manifest_url(place.store, "own"))
    path.write_bytes(path.read_bytes()[:-10])


def _no_split(place: Place) -> None:
    place.model = place.save("model", split=None)


def _no_fingerprints(place: Place) -> None:
    """Of one training patient and of one to score; another training patient is gone."""
    for dataset, unmarked, gone in (("own", "p2", "p5"), ("clinic", "p7", "u")):
        manifest = place.add(dataset)
        records = [
            case.model_copy(update={"fingerprints": ()}) if case.id == unmarked else case
            for case in manifest.cases
            if case.id != gone
        ]
        write_manifest(place.store, manifest.header, records)


@pytest.mark.parametrize(
    ("spoil", "left_out", "reason"),
    [
        (_no_own_dataset, None, ": its own dataset 'own' is not in the store"),
        (_torn, None, ": STORE/own/manifest.jsonl "),
        (_no_split, None, ": its card does not list its patients"),
        (
            _no_fingerprints, 0,
            " for 2 patients of 'own' and 1 patients of 'clinic': the store has no fingerprints of them",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_one_warning(
    place: Place, spoil: Any, left_out: int | None, reason: str
) -> None:
    spoil(place)
    outcome = place.evaluate()
    (warning,) = outcome.warnings
    start = "whether the model was trained on scans of dataset 'clinic' cannot be checked"
    assert warning.startswith(f"{start}{reason.replace('STORE', place.store)}")
    assert "\n" not in warning
    assert outcome.summary["patients_left_out"] == place.scores["lineage"]["patients_left_out"] == left_out
    assert outcome.summary["n_patients"] == 8


def _as_it_is(place: Place) -> None:
    """The store as it is."""


def _all_known(place: Place) -> None:
    place.add("clinic", {case.id: "own/p0" for case in place.clinic.cases})


def _without_test_patients(place: Place) -> None:
    shares = SplitConfig(test=0.0, validation=0.25).model_dump(mode="json")
    place.model = place.save("model", split=SPLIT | {"config": shares, "test": []})


@pytest.mark.parametrize(
    ("prepare", "changes", "kind", "message"),
    [
        (
            _as_it_is, {"dataset": "own"}, ConfigError,
            "part all of dataset 'own' has the patients the model was trained on; score part test or "
            "validation of it, or another dataset",
        ),
        (
            _all_known, {}, ConfigError,
            "the model was trained or validated on a scan of each of the 8 labelled patients of dataset "
            "'clinic'; score another dataset",
        ),
        (
            _without_test_patients, {"part": "test"}, ConfigError,
            "there is no test patient in dataset 'clinic'; score all labelled ones with --part all",
        ),
        (
            _without_test_patients, {"part": "test", "dataset": None}, ConfigError,
            "there is no test patient in dataset 'own'; fine-tune with a larger split.test",
        ),
        (
            _no_split, {"part": "test"}, CheckpointError,
            "the model's card does not say what patients were set aside; fine-tune it again",
        ),
    ],
)  # fmt: skip
def test_patients_that_cannot_be_scored_are_refused(
    place: Place, prepare: Any, changes: Any, kind: type[HsslError], message: str
) -> None:
    prepare(place)
    with pytest.raises(kind) as caught:
        place.evaluate(**changes)
    assert str(caught.value) == message
    assert not (place.folder / "output").exists()


def test_a_model_without_test_patients_is_scored_on_another_dataset(place: Place) -> None:
    _without_test_patients(place)
    assert place.evaluate().summary["n_patients"] == 8


def test_scores_of_another_model_or_other_patients_are_not_replaced_unless_asked_to(place: Place) -> None:
    place.evaluate()
    place.evaluate(overlap=0.25)
    before = (place.folder / "output/scores.json").read_bytes()
    other, looks = place.save("other"), sorted((place.folder / "runs").rglob("*.json"))
    for changes, scored in (
        ({"model": other}, f"{other} on all labelled patients of clinic"),
        ({"part": "test"}, f"{place.model} on the test patients of clinic"),
        ({"dataset": None, "part": "validation"}, f"{place.model} on the validation patients of own"),
    ):
        with pytest.raises(ConfigError) as caught:
            place.evaluate(**changes)
        assert str(caught.value) == (
            f"output {place.folder}/output holds the scores of {place.model} on all labelled patients of "
            f"clinic, these would be of {scored}; choose another output, or replace them with "
            "--overwrite true"
        )
        assert (place.folder / "output/scores.json").read_bytes() == before
    assert sorted((place.folder / "runs").rglob("*.json")) == looks, "no look at patients was taken"
    place.evaluate(model=other, overwrite=True)
    assert place.scores["lineage"]["model"] == other


# --------------------------------------------------------------------------------------------- which datasets


def _changed(recipe: Recipe, **changes: Any) -> dict[str, Any]:
    return recipe.model_copy(update=changes).model_dump(mode="json")


def _clipped(**changes: float) -> dict[str, Any]:
    ct = recipe_of(("ct",))
    return _changed(ct, channels=(ct.channels[0].model_copy(update=changes),))


FLOAT16 = _changed(RECIPE, storage=RECIPE.storage | {"dtype": "float16"})
CT_CARD = {"modalities": ("ct",), "recipe": recipe_of(("ct",)).model_dump(mode="json")}


@pytest.mark.parametrize(
    ("card", "about", "differs"),
    [
        ({}, {"channels": ("ct",), "recipe": _clipped()}, "channels ct instead of mr"),
        (
            {}, {"recipe": _changed(RECIPE, spacing_mm=(3.0, 1.0, 1.0))},
            "spacing_mm (3.0, 1.0, 1.0) instead of (2.0, 1.0, 1.0)",
        ),
        (
            CT_CARD, {"channels": ("ct",), "recipe": _clipped(clip_low=-150.0)},
            "clip_low of channel 0 -150.0 instead of -200.0",
        ),
        (
            CT_CARD,
            {
                "channels": ("ct",),
                "recipe": _clipped(clip_low=-9.0, clip_high=8.0, offset=7.0, scale=6.0),
            },
            "clip_low of channel 0 -9.0 instead of -200.0, clip_high of channel 0 8.0 instead of 300.0, "
            "offset of channel 0 7.0 instead of 40.0 and 1 more",
        ),
        ({}, {"recipe": _changed(RECIPE, version=1)}, "recipe version 1 instead of 2"),
        ({}, {"recipe": FLOAT16}, "storage.dtype float16 instead of int16"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("dataset", "part"), [("clinic", "all"), ("own", "test")])
def test_a_dataset_preprocessed_otherwise_is_refused(
    place: Place, card: Any, about: Any, differs: str, dataset: str, part: str
) -> None:
    """Another dataset, and the model's own preprocessed anew."""
    place.model = place.save("model", **card)
    place.add(dataset, **about)
    with pytest.raises(ConfigError) as caught:
        place.evaluate(dataset=dataset, part=part)
    assert str(caught.value) == (
        f"dataset {dataset!r} is not preprocessed as the model's images were: {differs}; {REMEDY}"
    )
    assert not (place.folder / "output").exists()


@pytest.mark.parametrize(
    ("card", "about"),
    [
        (
            {},
            {"recipe": _changed(RECIPE, storage={"dtype": "int16", "chunk": [8, 8, 8], "shard": [8, 8, 8]})},
        ),
        ({"recipe": FLOAT16}, {"recipe": FLOAT16}),
        ({"recipe": None}, {"recipe": _changed(RECIPE, spacing_mm=(3.0, 1.0, 1.0))}),
        ({"modalities": ()}, {"channels": ("ct",)}),
        ({"recipe": {"version": 1}}, {"recipe": {"version": 1}}),
    ],
)
def test_what_changes_no_stored_number_or_is_not_known_is_no_difference(
    place: Place, card: Any, about: Any
) -> None:
    place.model = place.save("model", **card)
    place.add("clinic", **about)
    assert place.evaluate().warnings == ()


def test_recipes_of_other_versions_are_told(place: Place) -> None:
    place.model = place.save("model", recipe={"version": 1})
    with pytest.raises(
        CheckpointError, match=r"^the recipe in the model's card is not one of this version: "
    ):
        place.evaluate()
    place.model = place.save("model")
    place.add("clinic", recipe={"version": 1})
    with pytest.raises(ConfigError, match=r"^the recipe of dataset 'clinic' is not one of this version: "):
        place.evaluate()
