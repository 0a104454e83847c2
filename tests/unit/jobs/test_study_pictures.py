"""A study's pictures and its embedding map, of models and a store on disk."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from hssl_dist.config.evaluate import EvaluateConfig
from hssl_dist.config.parts import StoreConfig, TrackingConfig
from hssl_dist.errors import CheckpointError, MissingError
from hssl_dist.jobs.demo_pictures import draw_cases
from hssl_dist.jobs.study_embeddings import central_region, embed, embedding_map, load_encoder
from hssl_dist.jobs.study_pictures import draw_task_cases, typical_pair
from hssl_dist.networks.pretraining import pool
from hssl_dist.networks.weights import save_model
from hssl_dist.segmentation.study_cells import CaseDice
from hssl_dist.store import open_reader, read_manifest
from tests.case_records import record
from tests.models import pretrained_model
from tests.study_cells import cell, scored
from tests.tiny_model import save_tiny_model
from tests.tiny_pretraining import GROUPS, write_store
from tests.tiny_store import write_blobs

CPU = torch.device("cpu")
TRACKING = TrackingConfig()


def _cases(*dice: float) -> tuple[CaseDice, ...]:
    return tuple(scored(f"p{place}", f"p{place}", value) for place, value in enumerate(dice))


def test_the_typical_pair_is_that_of_the_median_gain_at_the_smallest_share() -> None:
    gains = {0: 0.3, 1: -0.1, 2: 0.05, 3: 0.1}
    cells = [cell("multi", fraction=1.0, cases=_cases(0.9)), cell(fraction=1.0)]
    for subset, gain in gains.items():
        cells += [
            cell(subset=subset, cases=_cases(0.5)),
            cell("multi", subset=subset, cases=_cases(0.5 + gain)),
        ]
    cells.append(cell("multi", subset=9, cases=_cases(0.1)))  # without scratch beside it
    arm, scratch = typical_pair(cells, "multi")
    assert (arm.arm, arm.subset, arm.fraction) == ("multi", 2, 0.05)
    assert (scratch.arm, scratch.subset) == ("scratch", 2)
    assert typical_pair(cells, "single") is None
    assert typical_pair([cell("multi"), cell(cases=_cases(0.5))], "multi") is None  # no patient in common


def test_three_cases_are_drawn_with_both_models(tmp_path: Path) -> None:
    write_blobs(str(tmp_path / "store"))
    models = [save_tiny_model(tmp_path / name, dataset="blobs", seed=seed) for seed, name in enumerate("ab")]
    dice = (0.5, 0.9, 0.7, 0.1)
    cells = [
        cell("multi", "blobs", cases=_cases(*dice), model=models[0]),
        cell("scratch", "blobs", cases=_cases(*(value / 2 for value in dice)), model=models[1]),
    ]
    store = StoreConfig(url=str(tmp_path / "store"))
    titles = {"multi": "HSSL"}
    found = draw_task_cases(cells, "multi", store=store, tracking=TRACKING, titles=titles, device=CPU)
    assert found is not None
    assert (found.task, dict(found.classes)) == ("blobs", {1: "bright", 2: "dark"})
    assert [[picture.caption for picture in row] for row in found.rows] == [
        ["Best: p1, HSSL, Dice 90.0", "Best: p1, scratch, Dice 45.0"],
        ["Median: p0, HSSL, Dice 50.0", "Median: p0, scratch, Dice 25.0"],
        ["Worst: p3, HSSL, Dice 10.0", "Worst: p3, scratch, Dice 5.0"],
    ]
    pngs = [picture.png for row in found.rows for picture in row]
    assert all(png.startswith(b"\x89PNG") for png in pngs)
    assert len(set(pngs)) == 6
    alone = draw_task_cases(cells[:1], "multi", store=store, tracking=TRACKING, titles=titles, device=CPU)
    assert alone is None
    gone = [one.model_copy(update={"cases": (scored("other", "x", 0.5),)}) for one in cells]
    with pytest.raises(MissingError, match="case 'other' of blobs is not in the store"):
        draw_task_cases(gone, "multi", store=store, tracking=TRACKING, titles={}, device=CPU)


def test_the_demo_draws_each_chosen_case_in_three_tiles(tmp_path: Path) -> None:
    write_blobs(str(tmp_path / "store"))
    model = save_tiny_model(tmp_path / "model", dataset="blobs")
    config = EvaluateConfig(model=model, store=StoreConfig(url=str(tmp_path / "store")), runs=None)
    cases = [{"case": f"p{place}", "dice": {"bright": dice}} for place, dice in enumerate((0.5, 0.9, 0.7))]

    def height(count: int) -> int:
        scores = {"lineage": {"model": model, "dataset": "blobs"}, "cases": cases[:count]}
        return imread(io.BytesIO(draw_cases(config, scores)), format="png").shape[0]

    assert height(3) == pytest.approx(3 * height(1), abs=6)
    assert height(2) == pytest.approx(2 * height(1), abs=6)


def _save_pretrained(folder: Path) -> str:
    card, state = pretrained_model()
    folder.mkdir()
    save_model(folder, state, card)
    return str(folder)


def test_embeddings_are_pooled_features_of_the_central_region_of_every_case(tmp_path: Path) -> None:
    write_store(str(tmp_path / "store"))
    store = StoreConfig(url=str(tmp_path / "store"))
    encoder = load_encoder(TRACKING, _save_pretrained(tmp_path / "model"))
    found = embed(encoder, list(GROUPS), store, (4, 8, 8), CPU)
    assert found.tasks == tuple(task for task in GROUPS for _ in range(3))
    assert found.patients[:2] == ("spleen/case_0", "spleen/case_1")
    manifest = read_manifest(store.url, "heart")
    reader = open_reader(store.url)
    one = manifest.cases[1]
    box = central_region(one, (4, 8, 8))
    image = torch.from_numpy(reader.region(one, box))[None, None]
    with torch.inference_mode():
        expected = pool(encoder(image)[-1]).double().numpy()[0]
    np.testing.assert_allclose(found.features[7], expected, rtol=1e-4, atol=1e-5)


def test_a_map_has_every_case_and_is_the_same_again(tmp_path: Path) -> None:
    write_store(str(tmp_path / "store"))
    model = _save_pretrained(tmp_path / "model")

    def drawn() -> object:
        return embedding_map(
            "HSSL", model, list(GROUPS), store=StoreConfig(url=str(tmp_path / "store")), tracking=TRACKING,
            patch_size=(4, 8, 8), device=CPU, neighbours=2,
        )  # fmt: skip

    found = drawn()
    assert {task: len(points) for task, points in found.points.items()} == dict.fromkeys(GROUPS, 3)
    assert 0.0 <= found.shares[1] <= found.shares[0] <= 1.0
    assert found.chance == pytest.approx(1 / 3)
    assert found == drawn()


def test_a_region_lies_around_the_median_voxel_and_inside_the_volume() -> None:
    tissue = ((4, 10, 9), (5, 12, 9), (6, 11, 9))  # of 10 x 20 x 20 voxels
    around = record(foreground={"any": tissue, "1": ((0, 0, 0),) * 4})
    assert central_region(around, (4, 8, 8)).start == (3, 7, 5)
    corner = record(foreground={"any": ((0, 19, 19),)})
    assert central_region(corner, (4, 8, 8)).start == (0, 12, 12)
    assert central_region(record(), (12, 8, 8)).start == (-1, 6, 6)


def test_a_model_without_an_encoder_of_one_channel_is_refused(tmp_path: Path) -> None:
    card, state = pretrained_model(in_channels=2)
    save_model(tmp_path, state, card)
    with pytest.raises(CheckpointError, match="has no encoder of one channel; give a pretrained model"):
        load_encoder(TRACKING, str(tmp_path))
    assert math.isfinite(sum(float(part.sum()) for part in state.values()))
