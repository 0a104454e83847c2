"""What the pretraining config refuses, and what it says."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from hssl_dist.config.pretrain import PretrainConfig

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"global_batch": 1}, "global_batch 1 leaves the image level no negatives"),
        (
            {"global_batch": 4, "workers": 5},
            "global_batch 4 gives some of 5 workers no region; use at least 5",
        ),
        ({"global_batch": 8, "micro_batch": 9}, "micro_batch 9 is more than global_batch 8; leave it out"),
        ({"micro_batch": 0}, "greater than 0"),
        (
            {"sampling": {"exclude_test_of": ["acdc"]}},
            r"exclude_test_of is \('acdc',\), but there is no exclude_test to say who",
        ),
        ({"objective": {"temperature": 0}}, "greater than 0"),
        ({"objective": {"dense_temperature": -1}}, "greater than 0"),
        ({"objective": {"depths": []}}, r"depths are \(\); give one or more"),
        ({"objective": {"depths": [0, 0]}}, r"depths are \(0, 0\); give one or more, each once"),
        ({"objective": {"depths": [0, 5]}}, r"depths \(0, 5\) go beyond the network's 5 stages"),
        ({"objective": {"exclude_false_negatives": "site"}}, "'none', 'case' or 'patient'"),
        ({"objective": {"mask_fraction": 0}}, "restored_voxels is masked: there is nothing to restore"),
        (
            {"objective": {"mask_fraction": 0, "restored_voxels": "all", "restoration_noise": 0}},
            "mask_fraction and restoration_noise are both 0: there is nothing to restore",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PretrainConfig.model_validate(values)


@pytest.mark.parametrize(
    "values",
    [
        {"global_batch": 1, "objective": {"image_weight": 0}},
        {"global_batch": 5, "workers": 5},
        {"global_batch": 8, "micro_batch": 8, "workers": 4},
        {"objective": {"depths": [4, 0]}},
        {"objective": {"mask_fraction": 0, "restored_voxels": "all"}},
        {"objective": {"mask_fraction": 0, "restoration_weight": 0}},
    ],
    ids=str,
)
def test_what_can_be_is_not(values: dict[str, Any]) -> None:
    PretrainConfig.model_validate(values)


def test_pretrained_models_and_their_fine_tunings_are_registered_under_different_names() -> None:
    """Else `make study-models`, which starts from a name's latest version, would start from a fine-tuning."""
    configs = [
        yaml.safe_load(path.read_text()) for path in sorted((ROOT / "configs/pretrain").glob("*.yaml"))
    ]
    registered = {config.get("register_as", "hssl-unet") for config in configs}
    datasets = yaml.safe_load((ROOT / "configs/preprocess/real.yaml").read_text())["datasets"]
    assert not registered & {f"hssl-{dataset['name']}" for dataset in datasets}
    started_from = re.findall(r"models:/(\S+)@latest", (ROOT / "Makefile").read_text())
    tasks = ("hippocampus", "acdc")
    assert {name.replace("$*", task) for name in started_from for task in tasks} <= registered
    assert started_from
