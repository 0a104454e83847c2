"""What a study's pieces ask for: more for larger patches, batches, networks and volumes, and enough."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil
import torch

from hssl_dist.config.acceleration import AccelerationConfig
from hssl_dist.config.study import StudyConfig
from hssl_dist.jobs.study_memory import PROCESS_BYTES, cell_bytes, pretraining_bytes, volume_bytes
from hssl_dist.jobs.study_plan import Plan
from hssl_dist.memory import freed_memory_kept
from hssl_dist.networks.pretraining import build_segmentation_network
from hssl_dist.store import read_manifest
from tests import tiny_study

BATCH, PATCH = 2, (16, 64, 64)
NETWORK = {
    "widths": [16, 32],
    "strides": [[1, 1, 1], [2, 2, 2]],
    "kernels": [[3, 3, 3], [3, 3, 3]],
    "encoder_blocks": [1, 1],
    "decoder_blocks": [1],
}


def _of_cell(folder: Path, volume: int = 0, **training: object) -> int:
    task = {"dataset": "blobs", "training": tiny_study.TRAINING | training, "network": NETWORK}
    config: StudyConfig = tiny_study.config(folder, tasks=[task])
    return cell_bytes(config, {"blobs": volume}, Plan.of(config).cells[0])


def test_what_is_asked_for_grows_with_what_is_trained(tmp_path: Path) -> None:
    small = _of_cell(tmp_path, batch_size=1, patch_size=PATCH) - PROCESS_BYTES
    assert _of_cell(tmp_path, batch_size=BATCH, patch_size=PATCH) - PROCESS_BYTES == BATCH * small
    assert _of_cell(tmp_path, volume=10 * small, batch_size=1, patch_size=PATCH) == PROCESS_BYTES + 10 * small
    (first,) = Plan.of(tiny_study.config(tmp_path)).pretrainings
    halved = first.config.model_copy(update={"micro_batch": first.config.global_batch // 2})
    part = type(first)(halved, first.arms, first.tasks)
    assert pretraining_bytes(first) - PROCESS_BYTES == 2 * (pretraining_bytes(part) - PROCESS_BYTES) > 0


def test_what_is_freed_and_kept_is_asked_for_too(tmp_path: Path) -> None:
    given_back = {"keep_freed_memory": False}
    kept = _of_cell(tmp_path, batch_size=1, patch_size=PATCH) - PROCESS_BYTES
    plain = _of_cell(tmp_path, batch_size=1, patch_size=PATCH, acceleration=given_back) - PROCESS_BYTES
    assert kept == 1.5 * plain
    (first,) = Plan.of(tiny_study.config(tmp_path)).pretrainings
    other = first.config.model_copy(update={"acceleration": AccelerationConfig.model_validate(given_back)})
    less = pretraining_bytes(type(first)(other, first.arms, first.tasks)) - PROCESS_BYTES
    assert pretraining_bytes(first) - PROCESS_BYTES == 1.5 * less


def test_a_volume_takes_its_image_its_labels_and_every_class(tmp_path: Path) -> None:
    tiny_study.write_store(tmp_path)
    manifest = read_manifest(str(tmp_path / "store"), "blobs")
    voxels = max(case.shape[0] * case.shape[1] * case.shape[2] for case in manifest.cases)
    assert volume_bytes(manifest) == (4 * (len(manifest.header.classes) + 1) + 6 + 8) * voxels


def test_a_step_of_training_takes_no_more_than_is_asked_for(tmp_path: Path) -> None:
    """Forward and backward of a network whose activations are most of it, as this process grows by them."""
    config = tiny_study.config(
        tmp_path, tasks=[{"dataset": "blobs", "training": tiny_study.TRAINING, "network": NETWORK}]
    )
    network = build_segmentation_network(config.network(config.arms[0], config.tasks[0]), 1, 3)

    def step(image: torch.Tensor) -> None:
        sum(logits.float().square().mean() for logits in network(image)).backward()

    with freed_memory_kept():  # whose end gives back what earlier tests freed: growth needs it gone
        step(torch.zeros(1, 1, 4, 8, 8))  # what libraries take for themselves when they are first used
    image = torch.zeros(BATCH, 1, *PATCH)
    process, most, done = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            most.append(process.memory_info().rss)

    before = process.memory_info().rss
    watching = threading.Thread(target=watch)
    watching.start()
    step(image)
    done.set()
    watching.join()
    given_back = {"keep_freed_memory": False}  # as here
    asked = _of_cell(tmp_path, batch_size=BATCH, patch_size=PATCH, acceleration=given_back) - PROCESS_BYTES
    assert asked / 4 < max(most) - before < asked
