"""Samples that are not finite are saved as the loader gave them, and are not finite when they are read again.

No store has such voxels (they are refused when it is written), so a case is poisoned on its way out of one.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import torch as safetensors_torch

from hssl_dist import files
from hssl_dist.config.pretrain import ObjectiveConfig, StageConfig
from hssl_dist.errors import NonFiniteError
from hssl_dist.records import CaseRecord, Region
from hssl_dist.sampling.loader import PretrainingLoader, Regions
from hssl_dist.sampling.schedule import Schedule
from hssl_dist.store import StoredForm, open_reader, read_manifests
from hssl_dist.training.checkpoint import CheckpointStore
from hssl_dist.training.loop import run_pretraining
from hssl_dist.training.not_finite import MOST_BYTES, find_samples, first_few
from tests.tiny_pretraining import Recorder, config, write_store

CPU = torch.device("cpu")


class PoisonedReader:
    """A store's reader that reads the factor of a case's numbers as NaN."""

    def __init__(self, url: str) -> None:
        self._reader = open_reader(url)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def fill_numbers(self, pairs: Sequence[tuple[CaseRecord, Region]], out: np.ndarray) -> StoredForm:
        form = self._reader.fill_numbers(pairs, out)
        bad = [(record.dataset, record.id) == ("liver", "case_1") for record, _ in pairs]
        scalings = form.scalings.copy()
        scalings[bad, 0] = np.nan
        return StoredForm(form.dtype, scalings)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("store"))
    write_store(url)
    return url


def refused(store: str, run_folder: str, reader: Any = None, **changes: Any) -> str:
    """What is said of a run on the store."""
    checkpoints = CheckpointStore(files.join(run_folder, "checkpoints"))
    with pytest.raises(NonFiniteError) as caught:
        run_pretraining(
            config(**changes),
            read_manifests(store, ()),
            reader or PoisonedReader(store),
            checkpoints,
            Recorder(),
            CPU,
            run_folder=run_folder,
        )
    return str(caught.value)


def saved(run_folder: str) -> tuple[int, dict[int, tuple[dict[str, Any], dict[str, torch.Tensor]]]]:
    """The step, and by index what is said of each sample and its tensors."""
    (folder,) = files.listing(files.join(run_folder, "not-finite"))
    place, samples = files.join(run_folder, "not-finite", folder), {}
    names = files.listing(place)
    for name in names[::2]:
        stem = name.removesuffix(".json")
        described = json.loads(files.read(files.join(place, name)))
        tensors = safetensors_torch.load(files.read(files.join(place, f"{stem}.safetensors")))
        assert stem == f"sample-{described['index']:05d}"
        samples[described["index"]] = described, tensors
    assert len(names) == 2 * len(samples)
    return int(folder.removeprefix("step-")), samples


def assert_as_loaded(store: str, run_folder: str) -> None:
    """What is saved are all samples of the poisoned case, as the loader gives them, and not finite."""
    step, samples = saved(run_folder)
    settings = config()
    schedule = Schedule(read_manifests(store, ()), settings.sampling, settings.seed, settings.global_batch)
    batch = next(PretrainingLoader(schedule, PoisonedReader(store)).batches(step, step + 1))
    draws = {index: schedule.draw(step, index) for index in batch.indices}
    bad = [
        index for index, draw in draws.items() if (draw.record.dataset, draw.record.id) == ("liver", "case_1")
    ]
    assert sorted(samples) == bad
    for index, (described, tensors) in samples.items():
        regions, again = batch.regions[index : index + 1], Regions(**tensors)
        for name, tensor in regions.tensors().items():
            assert tensor.numpy().tobytes() == tensors[name].numpy().tobytes(), name
        assert not torch.isfinite(again.values()).all()
        assert torch.equal(again.values().isnan(), regions.values().isnan())
        assert described["record"] == draws[index].record.model_dump(mode="json")
        (region,) = described["regions"]
        assert tuple(region["start"]) == draws[index].region.start
        assert tuple(region["shape"]) == schedule.region_shape
        assert (described["step"], described["seed"]) == (step, batch.seeds[index])
        assert (described["reason"], described["values"]["loss"]) == ("region", "nan")


def test_samples_of_a_poisoned_case_are_saved_as_the_loader_gave_them(store: str, tmp_path: Path) -> None:
    said = refused(store, str(tmp_path))
    step, _ = saved(str(tmp_path))
    assert said.startswith(f"step {step}: not finite: loss nan, ")
    assert " with samples of liver/case_1; the weights are as before the step: " in said
    assert said.endswith(f"; samples are saved in {tmp_path}/not-finite/step-{step:08d}")
    assert_as_loaded(store, str(tmp_path))
    latest = CheckpointStore(str(tmp_path / "checkpoints")).latest()
    assert latest is None or latest <= step


def test_a_run_may_be_on_object_storage(store: str) -> None:
    assert "; samples are saved in memory://not-finite/" in refused(store, "memory://not-finite")
    assert_as_loaded(store, "memory://not-finite")


def test_where_the_weights_are_to_blame_a_few_samples_are_saved(store: str, tmp_path: Path) -> None:
    plain = ObjectiveConfig(projection_size=8, dense_points=12, dense_distance=2.0)
    much = StageConfig(steps=4, learning_rate=1e30, warmup_steps=0, clip_norm=1e30)
    said = refused(store, str(tmp_path), open_reader(store), encoder=much, objective=plain, global_batch=12)
    assert "; samples are saved in " in said
    _, samples = saved(str(tmp_path))
    assert sorted(samples) == list(range(8))
    assert {described["reason"] for described, _ in samples.values()} == {"output"}


def test_storage_that_refuses_does_not_hide_the_error(store: str, tmp_path: Path) -> None:
    (tmp_path / "not-finite").touch()
    said = refused(store, str(tmp_path))
    assert "with samples of liver/case_1;" in said
    assert "; not all samples could be saved in " in said


def test_what_is_saved_is_bounded() -> None:
    indices = list(range(20))
    assert first_few(indices, 1) == indices[:8]
    assert first_few(indices, MOST_BYTES // 3) == indices[:3]
    assert first_few(indices, 2 * MOST_BYTES) == indices[:1]


def test_the_first_check_that_finds_any_counts() -> None:
    yes, no, indices = torch.tensor([True, True]), torch.tensor([True, False]), torch.tensor([4, 5])
    assert find_samples({"region": yes, "output": no}, indices) == ("output", [5])
    assert find_samples({"region": no, "output": ~yes}, indices) == ("region", [5])
    assert find_samples({"region": yes, "output": yes}, indices) == ("unknown", [4, 5])
