"""A run's curve depends neither on the number of ranks, nor on micro-batches, nor on a stop between."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from hssl_dist.config.network import NetworkConfig
from hssl_dist.config.pretrain import ObjectiveConfig, PretrainConfig, SamplingConfig, StageConfig
from hssl_dist.errors import Interrupted
from hssl_dist.training.checkpoint import CheckpointStore
from hssl_dist.training.loop import run_pretraining
from tests.distributed.ranks import run_ranks
from tests.tiny_pretraining import ArrayReader, Recorder, config, manifests

MEASURES = ("loss", "gradient_norm", "accuracy", "effective_rank", "embedding_std", "alignment", "uniformity")

Curve = dict[int, dict[str, float]]


@dataclass(frozen=True)
class Setting:
    """How a run is carried out: none of it may show in its curve."""

    micro_batch: int | None = None
    stop_at: int | None = None


ALL_OPTIONS = ObjectiveConfig(
    projection_size=8,
    dense_points=12,
    dense_distance=2.0,
    learn_temperature=True,
    depths=(0, 1),
    class_balance=True,
    exclude_false_negatives="patient",
    dense_across_batch=True,
    restored_voxels="all",
)


def small_run() -> PretrainConfig:
    return config(
        objective=ALL_OPTIONS,
        global_batch=9,
        sampling=SamplingConfig(patch_size=(4, 8, 8), block_size=2),
        encoder=StageConfig(steps=4, learning_rate=1e-3, warmup_steps=1),
        decoder=StageConfig(steps=3, learning_rate=1e-3, warmup_steps=1, encoder_rate=0.3),
    )


def long_run() -> PretrainConfig:
    """The default depth, strides, kernels, loss, views and optimiser; narrower, and on smaller patches."""
    defaults = PretrainConfig()
    narrow = defaults.network.model_dump() | {"widths": (4, 8, 16, 32, 32)}
    return config(
        network=NetworkConfig.model_validate(narrow),
        objective=defaults.objective,
        views=defaults.views,
        global_batch=16,
        sampling=SamplingConfig(patch_size=(8, 32, 32), block_size=4),
        encoder=StageConfig(steps=20, warmup_steps=5),
        decoder=defaults.decoder.model_copy(update={"steps": 10, "warmup_steps": 5}),
    )


def curves(folder: Path, run: PretrainConfig, dtype: torch.dtype, settings: Sequence[Setting]) -> list[Curve]:
    """The curve of each setting on this rank, all in the same folder if one of them stops."""
    found = []
    for number, setting in enumerate(settings):
        recorder = Recorder(stop_at=setting.stop_at)
        store = CheckpointStore(str(folder / str(number) if len(settings) > 1 else folder))
        arguments = manifests(), ArrayReader(), store, recorder, torch.device("cpu")
        try:
            run_pretraining(
                run.model_copy(update={"micro_batch": setting.micro_batch}), *arguments, dtype=dtype
            )
        except Interrupted:
            assert setting.stop_at is not None
        found.append(
            {
                step: {key: value for key, value in metrics.items() if any(name in key for name in MEASURES)}
                for step, metrics in recorder.metrics
            }
        )
    return found


def largest_difference(found: Curve, expected: Curve, measure: str = "loss") -> float:
    """The largest relative difference at any step of the measures whose name begins so."""
    assert found.keys() == expected.keys()
    differences = []
    for step, metrics in expected.items():
        assert found[step].keys() == metrics.keys()
        differences += [
            abs(found[step][key] - value) / abs(value)
            for key, value in metrics.items()
            if key.startswith(measure)
        ]
    return max(differences)


def test_ranks_and_micro_batches_do_not_show(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    run, dtype = small_run(), torch.float64
    expected, *alone = curves(tmp_path / "1", run, dtype, [Setting(), Setting(4), Setting(1)])
    assert set(expected) == set(range(1, 8))
    others: dict[Any, Curve] = {(1, 4): alone[0], (1, 1): alone[1]}
    two = run_ranks(curves, 2, tmp_path / "2", run, dtype, [Setting(9), Setting(2)])[0]
    others |= {(2, 9): two[0], (2, 2): two[1]}
    others[4, 2] = run_ranks(curves, 4, tmp_path / "4", run, dtype, [Setting(2), Setting()])[0][0]
    for setting, found in others.items():
        for measure in ("loss", "gradient_norm", "effective_rank", "uniformity", "alignment"):
            assert largest_difference(found, expected, measure) <= 1e-8, (setting, measure)
        for step, metrics in expected.items():
            for key in metrics:
                if "accuracy" in key:
                    assert found[step][key] == pytest.approx(metrics[key], abs=1e-12), (setting, step, key)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-8), (torch.float32, 1e-3)], ids=str)
def test_thirty_steps(tmp_path: Path, dtype: torch.dtype, bound: float) -> None:
    """At (ranks, micro-batch) = (1, all), (1, 4), (2, 8), (2, 2), (4, 2), and stopped at 15 on the way."""
    torch.set_num_threads(1)
    run = long_run()
    expected, others = {}, {}
    expected, others[1, 4] = curves(tmp_path / "1", run, dtype, [Setting(), Setting(4)])
    two = [Setting(8), Setting(2)]
    others[2, 8], others[2, 2] = run_ranks(curves, 2, tmp_path / "2", run, dtype, two, timeout_s=600)[0]
    others[4, 2] = run_ranks(curves, 4, tmp_path / "4", run, dtype, [Setting(2)], timeout_s=600)[0][0]
    first = run_ranks(curves, 4, tmp_path / "moved", run, dtype, [Setting(2, stop_at=15)], timeout_s=600)[0][
        0
    ]
    (rest,) = curves(tmp_path / "moved", run, dtype, [Setting(8)])
    assert (max(first), min(rest)) == (15, 16)
    others["stopped"] = first | rest
    assert set(expected) == set(range(1, 31))
    for measure, slack in (("loss", 1), ("gradient_norm", 10)):
        found = {setting: largest_difference(curve, expected, measure) for setting, curve in others.items()}
        print(f"{dtype}: largest relative difference of {measure}: {found}")  # noqa: T201  (with -rP)
        assert max(found.values()) <= slack * bound, found
