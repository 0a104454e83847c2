"""The recipe: target spacing, the pooled CT numbers, and when its hash changes."""

from __future__ import annotations

import numpy as np
import pytest

from hssl_dist.config.preprocess import DatasetConfig, StorageConfig
from hssl_dist.errors import MissingError
from hssl_dist.imaging import CaseSurvey, ChannelSurvey, resolve_recipe


def survey(name, spacing_mm=(1.0, 1.0, 1.0), values=(0.0, 1.0), foreground="tissue"):
    values = np.asarray(values, dtype=float)
    shares = min(256, len(values))
    channel = ChannelSurvey(
        voxels=len(values),
        minimum=values.min(),
        maximum=values.max(),
        mean=values.mean(),
        std=values.std(),
        quantiles=tuple(np.quantile(values, (np.arange(shares) + 0.5) / shares, method="hazen")),
        fingerprint="ab",
    )
    return CaseSurvey(
        id=name, shape=(9, 9, 9), spacing_mm=spacing_mm, foreground=foreground, channels=(channel,)
    )


def resolve(surveys, modality="mr", **config):
    dataset = DatasetConfig(name="d", layout="folder", source="d", group="g", **config)
    return resolve_recipe(dataset, {1: "one"}, (modality,), surveys, StorageConfig())


def spacing_of(spacings):
    return resolve([survey(f"c{i:03d}", spacing) for i, spacing in enumerate(spacings)]).spacing_mm


def test_the_target_spacing_is_the_median():
    assert spacing_of([(1, 0.5, 0.6), (1.2, 0.7, 0.7), (2, 0.9, 0.8)]) == (1.2, 0.7, 0.7)


def test_thick_slices_keep_the_tenth_percentile():
    spacings = [(z, 0.5, 0.5) for z in np.linspace(2, 4, 11)]
    assert spacing_of(spacings) == (2.2, 0.5, 0.5)
    assert spacing_of([(x, y, z) for z, y, x in spacings]) == (0.5, 0.5, 2.2)


def test_the_coarse_axis_never_gets_finer_than_the_next():
    assert spacing_of([(0.2, 0.5, 0.8), (0.2, 0.5, 0.8)] + [(4, 0.5, 0.8)] * 4) == (0.8, 0.5, 0.8)


def test_a_configured_spacing_wins():
    assert resolve([survey("a")], spacing_mm=(3.0, 1.5, 1.5)).spacing_mm == (3.0, 1.5, 1.5)


def test_mr_is_left_to_each_volume():
    (channel,) = resolve([survey("a")]).channels
    assert channel.model_dump() == {
        "rule": "mr",
        "clip_low": None,
        "clip_high": None,
        "offset": None,
        "scale": None,
    }


def test_ct_pools_the_foreground_of_all_cases():
    rng = np.random.default_rng(0)
    cases = [rng.normal(50 * k, 30, 20_000) for k in range(4)]
    (channel,) = resolve(
        [survey(f"c{k}", values=values, foreground="label") for k, values in enumerate(cases)], "ct"
    ).channels
    pooled = np.concatenate(cases)
    low, high = np.percentile(pooled, (0.5, 99.5))
    clipped = pooled.clip(low, high)
    assert channel.clip_low == pytest.approx(low, abs=1)
    assert channel.clip_high == pytest.approx(high, abs=1)
    assert channel.offset == pytest.approx(clipped.mean(), abs=0.5)
    assert channel.scale == pytest.approx(clipped.std(), abs=0.5)


def test_every_case_counts_alike_whatever_its_size():
    small, large = survey("a", values=[100.0] * 4), survey("b", values=[0.0] * 200)
    assert resolve([small, large], "ct").channels[0].offset == pytest.approx(50.0)


def test_once_there_are_annotations_tissue_does_not_count():
    annotated = survey("a", values=[40, 50, 60], foreground="label")
    air = survey("b", values=[-1000, -990, -900])
    both, alone = resolve([annotated, air], "ct"), resolve([annotated], "ct")
    assert both.channels == alone.channels


def test_a_flat_foreground_is_not_divided_by_zero():
    assert resolve([survey("a", values=[7.0, 7.0])], "ct").channels[0].scale == 1.0


def test_the_hash_depends_on_what_changes_voxels_and_on_nothing_else():
    surveys = [survey("a", (1, 1, 1)), survey("b", (2, 1, 1)), survey("c", (3, 1, 1))]
    recipe = resolve(surveys)
    assert resolve(surveys[::-1]).hash == recipe.hash
    assert resolve(surveys, spacing_mm=(2.0, 1.0, 1.0)).hash == recipe.hash
    assert resolve(surveys, spacing_mm=(2.0, 1.0, 0.9)).hash != recipe.hash
    assert resolve(surveys, "ct").hash != recipe.hash
    assert recipe.model_copy(update={"version": recipe.version + 1}).hash != recipe.hash
    assert type(recipe).model_validate_json(recipe.to_json()) == recipe


def test_without_a_readable_case_there_is_no_recipe():
    with pytest.raises(MissingError, match="dataset 'd' has no readable case; see the quarantine"):
        resolve([])
