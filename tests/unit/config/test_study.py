"""The study's config: arms by name, by changes and written out; what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hssl_dist.config.finetune import AugmentationConfig, SupervisedConfig
from hssl_dist.config.loading import load_config
from hssl_dist.config.network import NetworkConfig
from hssl_dist.config.pretrain import LearningConfig, ObjectiveConfig, StageConfig
from hssl_dist.config.study import DEFAULT_ARMS, StudyConfig
from hssl_dist.errors import ConfigError

TASK = {"dataset": "heart"}
WIDE = {"like": "scratch", "name": "wide", "network": {"widths": [32, 64, 128, 256, 256]}}


def load(folder: Path, *words: str, **values: Any) -> StudyConfig:
    (folder / "study.yaml").write_text(yaml.safe_dump({"tasks": [TASK]} | values))
    return load_config(StudyConfig, "hssl study", ("--config", str(folder / "study.yaml"), *words))


def test_the_defaults_are_the_six_arms_and_the_usual_shares(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert [arm.name for arm in config.arms] == list(DEFAULT_ARMS)
    assert (config.fractions, config.subsets, config.seeds) == ((0.05, 0.1, 1.0), 5, (0, 1))
    assert (config.part, config.unmatched_budgets, config.look_again) == ("validation", False, False)


def test_the_claim_is_multi_domain_pretraining_or_the_last_arm_unless_one_is_named(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert (config.claim, config.contrasts) == ("hssl-multi", (("hssl-multi", "hssl-single"),))
    config = load(tmp_path, arms=["scratch", "image", "restoration"])
    assert (config.claim, config.contrasts) == ("restoration", ())
    config = load(tmp_path, main_arm="hssl-single", compare=[["image", "restoration"]])
    assert (config.claim, config.contrasts) == ("hssl-single", (("image", "restoration"),))
    for odd in ({"main_arm": "none"}, {"compare": [["image", "none"]]}):
        with pytest.raises(ConfigError, match="main_arm or compare names 'none'; the arms are scratch, "):
            load(tmp_path, **odd)


def test_arms_are_named_changed_or_written_out_and_survive_a_file(tmp_path: Path) -> None:
    written = {"name": "mine", "domains": "own", "objective": {"dense_weight": 2.0}}
    changed = {"like": "hssl-multi", "name": "warm", "objective": {"temperature": 0.3}}
    config = load(tmp_path, arms=["scratch", changed, written])
    _, warm, mine = config.arms
    assert (warm.name, warm.objective) == ("warm", {"temperature": 0.3, "restoration_weight": 0.0})
    assert (mine.domains, mine.objective) == ("own", {"dense_weight": 2.0})
    again = load(tmp_path, **config.model_dump(mode="json"))
    assert again == config
    assert again.hash() == config.hash()


def test_arms_are_flags_too(tmp_path: Path) -> None:
    config = load(tmp_path, "--arms", "scratch", "--arms", "restoration", "--pretrain.encoder.steps", "7")
    assert [arm.name for arm in config.arms] == ["scratch", "restoration"]
    assert config.pretrain.encoder == StageConfig(steps=7)


def test_each_default_arm_trains_its_terms_for_the_same_number_of_samples(tmp_path: Path) -> None:
    config = load(tmp_path)
    task = config.tasks[0]
    found = {}
    for arm in config.arms[1:]:
        learning = config.learning(arm, task)
        weights = {
            key.removesuffix("_weight")
            for key in ("image_weight", "task_weight", "group_weight", "dense_weight", "restoration_weight")
            if getattr(learning.objective, key)
        }
        found[arm.name] = (weights, learning.encoder.steps, learning.decoder.steps, learning.samples)
    levels, total = {"image", "task", "group"}, 1500 * 32
    assert found == {
        "image": ({"image"}, 1500, 0, total),
        "hssl-single": (levels | {"dense"}, 1000, 500, total),
        "hssl-multi": (levels | {"dense"}, 1000, 500, total),
        "restoration": ({"restoration"}, 0, 1500, total),
        "hssl-restoration": (levels | {"dense", "restoration"}, 1000, 500, total),
    }
    assert {arm.name for arm in config.arms if arm.domains == "own"} == {"hssl-single"}


def test_a_task_s_network_and_views_are_those_of_its_pretrainings(tmp_path: Path) -> None:
    network = {
        "widths": [4, 8], "strides": [[1, 1, 1], [2, 2, 2]], "kernels": [[3, 3, 3], [3, 3, 3]],
        "encoder_blocks": [1, 1], "decoder_blocks": [1],
    }  # fmt: skip
    config = load(tmp_path, tasks=[TASK | {"network": network, "pretrain_patch_size": [8, 10, 12]}])
    learning = config.learning(config.arms[1], config.tasks[0])
    assert learning.network.widths == (4, 8)
    assert learning.sampling.patch_size == (8, 10, 12)
    assert learning.sampling.margin == config.pretrain.sampling.margin


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"arms": ["scratch", "hsl"]}, "arms.1: no arm 'hsl' is defined; write it out, or name one of scra"),
        ({"arms": ["image"]}, "there is no arm called scratch that starts so"),
        ({"arms": ["scratch", "image", "image"]}, "arms must differ; 'image' stands twice"),
        ({"seeds": [1, 1]}, "seeds must differ; 1 stands twice"),
        ({"fractions": [0.0]}, "fractions.0: input should be greater than 0, found 0.0"),
        ({"tasks": [TASK, TASK]}, "tasks must differ; 'heart' stands twice"),
        (
            {"arms": ["scratch", {"name": "x", "objectiv": {}}]},
            "arms.1.objectiv: unknown key; did you mean objective?",
        ),
        (
            {"arms": ["scratch", {"name": "x", "objective": {"temperatur": 3}}]},
            "arm 'x' for task 'heart': objective.temperatur: unknown key; did you mean temperature?",
        ),
        (
            {"arms": ["scratch", {"name": "x", "decoder": {"steps": "many"}}]},
            "arm 'x' for task 'heart': decoder.steps: input should be a valid integer",
        ),
        (
            {"arms": ["scratch", {"name": "x", "transfer": {"encoder_rate": -1}}]},
            "arm 'x': transfer.encoder_rate: input should be greater than or equal to 0, found -1",
        ),
        (
            {"arms": ["scratch", {"like": "scratch", "name": "x", "domains": "own"}]},
            "arms.1: arm 'x' starts from scratch, where 'domains' means nothing; leave it out",
        ),
        (
            {"arms": ["scratch", {"like": "hssl-single", "name": "x", "own_weight": 2}]},
            "arms.1: arm 'x' sees its own domain alone: leave out own_weight",
        ),
        (
            {"arms": ["scratch", {"like": "hssl-single", "name": "x", "block_size": 8}]},
            "arms.1: arm 'x' sees its own domain alone: leave out block_size",
        ),
        (
            {"tasks": [TASK | {"pretrain_patch_size": [3, 16, 16]}]},
            "arm 'image' for task 'heart': sampling.patch_size (3, 16, 16) is not a multiple of",
        ),
        (
            {"tasks": [TASK | {"training": {"patch_size": [5, 48, 48]}}]},
            "task 'heart': training.patch_size (5, 48, 48) is not a multiple of the network's reduction",
        ),
        (
            {"pretrain": {"sampling": {"exclude_test": {"test": 0.3}}}},
            "pretrain.sampling.exclude_test is the study's split, always; set `split` instead",
        ),
        (
            {
                "arms": [
                    "scratch",
                    "hssl-multi",
                    {"like": "image", "name": "long", "encoder": {"steps": 2000}},
                ]
            },
            "arm 'long' for task 'heart' pretrains on 80000 samples, arm 'hssl-multi' for task 'heart' on "
            "48000: steps times global_batch must agree, or set unmatched_budgets",
        ),
        (
            {"arms": [{"like": "scratch", "name": "scratch", "transfer": {"steps": 9}}]},
            "arm 'scratch' has a transfer.steps of its own; all arms of a task are fine-tuned alike: leave "
            "it out, or set unmatched_budgets",
        ),
        (
            {"arms": ["scratch", WIDE]},
            "arm 'wide' has a network.widths of its own; all arms of a task are fine-tuned alike: leave",
        ),
        (
            {"arms": ["scratch", WIDE | {"network": {"widths": [4]}}], "unmatched_budgets": True},
            "arm 'wide': network.strides has 5 entries, widths has 1; give as many",
        ),
    ],
)
def test_what_is_refused_is_told_in_one_line(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, **values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unmatched_budgets_have_to_be_asked_for(tmp_path: Path) -> None:
    long = {"like": "image", "name": "long", "encoder": {"steps": 2000}, "transfer": {"steps": 9}}
    config = load(tmp_path, arms=["scratch", "hssl-multi", long], unmatched_budgets=True)
    assert [config.learning(arm, config.tasks[0]).samples for arm in config.arms[1:]] == [48000, 80000]
    with pytest.raises(ConfigError, match=r"arm 'long' for task 'heart': objective\.depths"):
        load(
            tmp_path,
            arms=["scratch", long | {"objective": {"depths": [9]}}],
            unmatched_budgets=True,
        )


def test_steps_and_batch_may_be_traded_for_each_other(tmp_path: Path) -> None:
    large = {
        "like": "hssl-multi", "name": "large", "global_batch": 64, "encoder": {"steps": 500},
        "decoder": {"steps": 250},
    }  # fmt: skip
    config = load(tmp_path, arms=["scratch", "hssl-multi", large])
    assert {config.learning(arm, config.tasks[0]).samples for arm in config.arms[1:]} == {48000}


def test_changes_may_be_of_any_key_and_of_parts_of_parts(tmp_path: Path) -> None:
    mine = {
        "name": "mine", "objective": {"projection_size": 3, "depths": [0, 1]},
        "transfer": {"augmentation": {"flip": 0.0}},
    }  # fmt: skip
    config = load(tmp_path, arms=["scratch", mine], unmatched_budgets=True)
    objective = config.learning(config.arms[1], config.tasks[0]).objective
    assert objective == ObjectiveConfig(projection_size=3, depths=(0, 1))
    training = config.arms[1].training(config.tasks[0])
    assert training == SupervisedConfig(augmentation=AugmentationConfig(flip=0.0))


def test_an_arm_may_have_a_network_of_its_own_also_in_its_pretraining(tmp_path: Path) -> None:
    pretrained = WIDE | {"like": "hssl-multi", "name": "wide-multi"}
    config = load(tmp_path, arms=["scratch", WIDE, pretrained], unmatched_budgets=True)
    task = config.tasks[0]
    wide = NetworkConfig(widths=tuple(WIDE["network"]["widths"]))
    assert [config.network(arm, task) for arm in config.arms] == [NetworkConfig(), wide, wide]
    assert config.learning(config.arms[2], task).network == wide
    coarse = WIDE | {"network": {"strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [7, 2, 2]]}}
    with pytest.raises(ConfigError, match=r"not a multiple of the network's reduction \(56, 16, 16\)"):
        load(tmp_path, arms=["scratch", coarse], unmatched_budgets=True)


def test_samples_are_those_of_both_stages() -> None:
    config = LearningConfig(global_batch=8, encoder={"steps": 3}, decoder={"steps": 2})
    assert config.samples == 40
