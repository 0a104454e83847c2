"""What a study runs: cells, their pairing, and each pretraining once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hssl_dist.config.evaluate import EvaluateConfig
from hssl_dist.config.loading import load_config
from hssl_dist.config.pretrain import SamplingConfig
from hssl_dist.config.study import DEFAULT_ARMS, StudyConfig
from hssl_dist.jobs.looks import read_looks
from hssl_dist.jobs.study_ledger import Ledger, identifying_hash
from hssl_dist.jobs.study_plan import Plan, evaluate_config, finetune_config, identity
from hssl_dist.jobs.study_results import TITLES, about_arm
from hssl_dist.store import read_manifests
from tests.tiny_network import NETWORK
from tests.tiny_study import TASKS, TRAINING, config, write_store

ROOT = Path("/nowhere")
CONFIGS = Path(__file__).parents[3] / "configs" / "study"
RESULTS = Path(__file__).parents[3] / "benchmarks" / "results" / "study"


def test_cells_have_readable_ids_in_an_order_that_keeps_pairs_together() -> None:
    study = config(ROOT, fractions=(0.05, 1.0), subsets=2, seeds=(0, 1))
    plan = Plan.of(study)
    ids = [cell.id for cell in plan.cells]
    assert ids[:6] == [
        "blobs-f0.05-s0-r0-scratch",
        "blobs-f0.05-s0-r0-hssl-multi",
        "spots-f0.05-s0-r0-scratch",
        "spots-f0.05-s0-r0-hssl-multi",
        "blobs-f1-s0-r0-scratch",
        "blobs-f1-s0-r0-hssl-multi",
    ]
    assert (
        len(ids) == len(set(ids)) == 2 * 2 * 2 * 3
    )  # tasks x arms x seeds x (two subsets of 5 %, one of all)
    assert not [name for name in ids if "-f1-s1-" in name]
    assert ids == [cell.id for cell in Plan.of(study).cells]


def test_a_pretraining_on_all_domains_serves_both_tasks_one_on_its_own_domain_one() -> None:
    plan = Plan.of(config(ROOT, arms=list(DEFAULT_ARMS), seeds=(3, 4)))
    served = [(p.config.seed, p.arms, p.tasks, p.config.sampling.datasets) for p in plan.pretrainings]
    both = ("blobs", "spots")
    assert sorted(served) == sorted(
        (seed, *rest)
        for seed in (3, 4)
        for rest in (
            (("image",), both, ()),
            (("hssl-single",), ("blobs",), ("blobs",)),
            (("hssl-single",), ("spots",), ("spots",)),
            (("hssl-multi",), both, ()),
            (("restoration",), both, ()),
            (("hssl-restoration",), both, ()),
        )
    )
    names = {pretraining.name for pretraining in plan.pretrainings}
    assert len(names) == 12
    assert {cell.pretraining for cell in plan.cells} == names | {None}
    assert all((cell.pretraining is None) == (cell.arm.name == "scratch") for cell in plan.cells)


def test_what_is_asked_for_are_cells_and_the_pretrainings_they_start_from() -> None:
    arms = ["scratch", "hssl-single", "hssl-multi"]

    def asked(**only: Any) -> tuple[list[str], set[str]]:
        study = config(ROOT, arms=arms, fractions=(0.5, 1.0), subsets=2, seeds=(0, 1), only=only)
        plan = Plan.of(study).asked(study)
        return [cell.id for cell in plan.cells], {item.name.rsplit("-", 1)[0] for item in plan.pretrainings}

    cells, pretrainings = asked()
    assert (len(cells), len(pretrainings)) == (36, 4), "names but for their hashes"
    cells, pretrainings = asked(tasks=["spots"], seeds=[1], subsets=[1])
    assert cells == [f"spots-f0.5-s1-r1-{arm}" for arm in arms], "all labels are subset 0"
    assert pretrainings == {"tiny-r1-hssl-single", "tiny-r1-hssl-multi"}
    cells, pretrainings = asked(tasks=["blobs"], arms=["scratch", "hssl-multi"], fractions=[1.0])
    assert cells == [f"blobs-f1-s0-r{seed}-{arm}" for seed in (0, 1) for arm in ("scratch", "hssl-multi")]
    assert pretrainings == {"tiny-r0-hssl-multi", "tiny-r1-hssl-multi"}
    assert asked(arms=["scratch"])[1] == set()
    with pytest.raises(ValueError, match=r"only.arms has 'image'; arms are scratch, hssl-single, hssl-multi"):
        asked(arms=["image"])
    with pytest.raises(ValueError, match=r"only.subsets has 2; subsets are 0, 1"):
        asked(subsets=[2])
    with pytest.raises(ValueError, match="only asks for no cell"):
        asked(fractions=[1.0], subsets=[1])


def test_arms_that_differ_only_in_their_transfer_share_their_pretraining() -> None:
    slow = {"like": "hssl-multi", "name": "slow", "transfer": {"encoder_rate": 0.1}}
    plan = Plan.of(config(ROOT, arms=["scratch", "hssl-multi", slow]))
    (only,) = plan.pretrainings
    assert only.arms == ("hssl-multi", "slow")
    assert only.name.startswith("tiny-r0-hssl-multi-")


def test_a_task_s_own_network_has_its_own_pretraining() -> None:
    wide = NETWORK.model_copy(update={"widths": (4, 12)})
    tasks = [
        {"dataset": "blobs", "training": TRAINING},
        {"dataset": "spots", "training": TRAINING, "network": wide},
    ]
    study = config(ROOT, tasks=tasks)
    plan = Plan.of(study)
    assert [p.tasks for p in plan.pretrainings] == [("blobs",), ("spots",)]
    networks = {cell.task.dataset: finetune_config(study, cell, "scratch").network for cell in plan.cells}
    assert networks == {"blobs": NETWORK, "spots": wide}


def test_an_arm_s_own_network_is_that_of_its_pretraining_and_its_cells() -> None:
    wide = {"like": "hssl-multi", "name": "wide", "network": {"widths": [4, 12]}}
    study = config(ROOT, arms=["scratch", "hssl-multi", wide], unmatched_budgets=True)
    plan = Plan.of(study)
    widths = {arm: p.config.network.widths for p in plan.pretrainings for arm in p.arms}
    assert widths == {"hssl-multi": NETWORK.widths, "wide": (4, 12)}
    tuned = {cell.arm.name: finetune_config(study, cell, "scratch").network.widths for cell in plan.cells}
    assert tuned == widths | {"scratch": NETWORK.widths}


def test_pretraining_never_sees_test_patients_and_its_name_follows_its_content() -> None:
    study = config(ROOT)
    (pretraining,) = Plan.of(study).pretrainings
    assert pretraining.config.sampling.exclude_test == study.split
    assert (pretraining.config.runner, pretraining.config.register_as) == ("inline", "tiny-hssl-multi")
    (elsewhere,) = Plan.of(config(ROOT, runs="/other", threads=2)).pretrainings
    (other,) = Plan.of(config(ROOT, split={"test": 0.3, "validation": 0.25})).pretrainings
    assert elsewhere.name == pretraining.name != other.name


def test_a_task_that_is_not_drawn_from_keeps_its_test_patients_out_of_pretraining() -> None:
    def sampling(datasets: tuple[str, ...], **changes: Any) -> dict[str, SamplingConfig]:
        pretrain = config(ROOT).pretrain
        only = pretrain.sampling.model_copy(update={"datasets": datasets})
        study = config(
            ROOT,
            arms=["scratch", "hssl-single", "hssl-multi"],
            pretrain=pretrain.model_copy(update={"sampling": only}),
            **changes,
        )
        return {name: p.config.sampling for p in Plan.of(study).pretrainings for name in p.arms}

    multi = sampling(("spots", "more"))["hssl-multi"]
    assert (multi.datasets, multi.exclude_test_of) == (("spots", "more"), ("blobs",))
    for drawn in ((), ("blobs", "spots"), ("spots", "more", "blobs")):
        assert sampling(drawn)["hssl-multi"].exclude_test_of == ()
    assert sampling(("spots",))["hssl-single"].exclude_test_of == ()


def test_an_arm_may_see_more_of_the_task_s_own_images_than_of_the_others() -> None:
    pretrain = config(ROOT).pretrain
    weighted = pretrain.sampling.model_copy(update={"task_weights": {"spots": 0.5}})
    study = config(
        ROOT,
        arms=["scratch", "hssl-single", "hssl-multi", {"like": "hssl-multi", "name": "own", "own_weight": 7}],
        pretrain=pretrain.model_copy(update={"sampling": weighted}),
    )

    weights = {(p.arms[0], p.tasks): p.config.sampling.task_weights for p in Plan.of(study).pretrainings}

    assert weights[("own", ("blobs",))] == {"spots": 0.5, "blobs": 7.0}
    assert weights[("own", ("spots",))] == {"spots": 7.0}
    assert weights[("hssl-multi", ("blobs", "spots"))] == {"spots": 0.5}
    assert weights[("hssl-single", ("spots",))] == weights[("hssl-single", ("blobs",))] == {}


def test_what_is_left_out_of_a_pretraining_is_part_of_the_study_s_identity(tmp_path: Path) -> None:
    write_store(tmp_path)
    manifests = read_manifests(str(tmp_path / "store"))
    pretrain = config(ROOT).pretrain
    only = pretrain.sampling.model_copy(update={"datasets": ("spots",)})
    study = config(ROOT, pretrain=pretrain.model_copy(update={"sampling": only}))

    seen = identity(study, Plan.of(study), manifests)["blobs/hssl-multi"]["pretrain"]
    assert seen["sampling"]["exclude_test_of"] == ["blobs"]
    assert seen["manifests"] == {name: manifests[name].sha256 for name in ("blobs", "spots")}


def test_how_fast_its_steps_are_is_no_part_of_it(tmp_path: Path) -> None:
    write_store(tmp_path)
    manifests = read_manifests(str(tmp_path / "store"))
    plain = config(tmp_path)
    faster = {"acceleration": {"compile": True, "recompute_stages": 1}}
    tasks = [{"dataset": task, "training": TRAINING | faster} for task in TASKS]
    other = config(tmp_path, tasks=tasks, pretrain=plain.pretrain.model_dump() | faster)

    assert identity(other, Plan.of(other), manifests) == identity(plain, Plan.of(plain), manifests)
    assert Ledger(other, manifests).config_hash == Ledger(plain, manifests).config_hash
    longer = config(
        tmp_path, tasks=[{"dataset": task, "training": TRAINING | {"steps": 5}} for task in TASKS]
    )
    assert Ledger(longer, manifests).config_hash != Ledger(plain, manifests).config_hash


def test_paired_cells_differ_in_their_start_alone() -> None:
    study = config(ROOT, arms=["scratch", "hssl-multi"], subsets=2, seeds=(5,))
    scratch, pretrained = Plan.of(study).cells[:2]
    first, other = (
        finetune_config(study, scratch, "scratch"),
        finetune_config(study, pretrained, "models:/m/1"),
    )
    assert first.model_dump(exclude={"name", "model"}) == other.model_dump(exclude={"name", "model"})
    assert (first.seed, first.labels.seed, first.labels.fraction) == (5, 0, 0.5)
    second = Plan.of(study).cells[4]
    assert finetune_config(study, second, "scratch").labels.seed == 1


def test_each_label_subset_has_chances_of_its_own_unless_they_are_shared() -> None:
    def seeds(**changed: Any) -> dict[tuple[int, int], set[int]]:
        study = config(ROOT, subsets=3, seeds=(0, 1), fractions=(0.5,), **changed)
        found: dict[tuple[int, int], set[int]] = {}
        for cell in Plan.of(study).cells:
            seed = finetune_config(study, cell, "scratch").seed
            found.setdefault((cell.subset, cell.seed), set()).add(seed)
        return found

    own = seeds()
    assert {len(of_a_pair) for of_a_pair in own.values()} == {1}, "arms and tasks share it"
    assert len(set.union(*own.values())) == len(own) == 6
    assert [own[0, seed] for seed in (0, 1)] == [{0}, {1}]
    assert {run: {run[1]} for run in own} == seeds(cell_seeds="shared")


def test_a_study_of_before_cell_seeds_is_still_the_same(tmp_path: Path) -> None:
    write_store(tmp_path)
    manifests = read_manifests(str(tmp_path / "store"), ("blobs", "spots"))
    shared, own = (config(tmp_path, cell_seeds=way) for way in ("shared", "own"))
    found = [identity(study, Plan.of(study), manifests) for study in (shared, own)]
    assert all("cell_seeds" not in entry for entry in found[0].values())
    assert all(entry["cell_seeds"] == "own" for entry in found[1].values())
    assert identifying_hash(shared) != identifying_hash(own)


@pytest.mark.parametrize(
    ("name", "task"),
    [("real", "hippocampus"), ("real", "acdc"), ("few", "hippocampus"), ("few", "acdc"), ("claim", "acdc")],
)
def test_the_configs_are_those_that_have_looked_at_test_patients(name: str, task: str) -> None:
    """Else another key, or an edit, would make a study that goes on a new one, which is refused."""
    flags = ["--config", str(CONFIGS / f"{name}.yaml"), "--part", "test"]
    study = load_config(StudyConfig, "hssl study", flags)
    alone = study.model_copy(update={"tasks": tuple(entry for entry in study.tasks if entry.dataset == task)})
    looks = read_looks(str(RESULTS), task)
    assert (name, "test", identifying_hash(alone)) in {(look.study, look.part, look.config) for look in looks}


def test_another_study_s_pretrainings_are_taken_under_its_name() -> None:
    study = config(ROOT, arms=["scratch", "hssl-single", "hssl-multi"], seeds=(0, 1))
    other = study.model_copy(update={"name": "few", "pretrained_by": study.name})
    assert Plan.of(other).pretrainings == Plan.of(study).pretrainings
    cell = Plan.of(other).cells[0]
    assert finetune_config(other, cell, "scratch").name == f"few-{cell.id}", "its cells are its own"


def test_an_arm_s_rates_are_laid_over_the_task_s_training() -> None:
    study = config(ROOT, arms=["scratch", "restoration"])
    scratch, restoration = (finetune_config(study, cell, "scratch") for cell in Plan.of(study).cells[:2])
    assert restoration.training.encoder_rate == 0.2
    assert restoration.training == scratch.training.model_copy(update={"encoder_rate": 0.2})


def test_the_arms_of_the_study_on_real_data_have_titles_and_say_what_they_are() -> None:
    study = load_config(StudyConfig, "hssl study", ["--config", str(CONFIGS / "real.yaml")])
    assert [(TITLES[arm.name], about_arm(arm)) for arm in study.arms] == [
        ("Scratch", "new weights"),
        (
            "Single-domain HSSL",
            "pretrained without labels on the task's own images; taken over: encoder and decoder",
        ),
        (
            "Weighted multi-domain HSSL",
            "pretrained without labels on images of all datasets, the task's own 7 times as often; taken "
            "over: encoder and decoder",
        ),
        (
            "Mixed multi-domain HSSL",
            "pretrained without labels on images of all datasets, the task's own 7 times as often, in blocks "
            "of 8 of a task; taken over: encoder and decoder",
        ),
    ]


def test_the_study_of_few_labels_is_that_on_real_data_with_more_subsets() -> None:
    real, few = (
        load_config(StudyConfig, "hssl study", ["--config", str(CONFIGS / name)])
        for name in ("real.yaml", "few.yaml")
    )
    hippocampus, acdc = real.tasks
    longer = acdc.training.model_copy(update={"steps": 1200, "validate_every": 300})
    assert few.tasks == (hippocampus, acdc.model_copy(update={"training": longer}))
    for key in ("split", "pretrain", "overlap", "intervals", "seeds", "main_arm"):
        assert getattr(few, key) == getattr(real, key), key
    assert [arm for arm in real.arms if arm in few.arms] == list(few.arms)
    pretrainings = {item.name: item.config for item in Plan.of(real).pretrainings}
    assert all(item.config == pretrainings[item.name] for item in Plan.of(few).pretrainings)


def test_the_study_of_the_claim_is_that_of_few_labels_at_other_rates_and_seeds() -> None:
    few, claim = (
        load_config(StudyConfig, "hssl study", ["--config", str(CONFIGS / name)])
        for name in ("few.yaml", "claim.yaml")
    )
    for key in ("tasks", "split", "pretrain", "overlap", "intervals", "fractions", "cell_seeds"):
        assert getattr(claim, key) == getattr(few, key), key
    assert not set(claim.seeds) & set(few.seeds)
    (scratch, mixed), (also_scratch, fast) = few.arms, claim.arms
    assert also_scratch == scratch
    rates = {"encoder": {"learning_rate": 4e-3}, "decoder": {"learning_rate": 6e-3}}
    assert fast == mixed.model_copy(update={"name": claim.main_arm, **rates})
    assert about_arm(fast).endswith(
        "in blocks of 8 of a task; encoder's stage at a learning rate of 0.004; decoder's stage at a "
        "learning rate of 0.006; taken over: encoder and decoder"
    )
    assert TITLES[fast.name] == "Fast multi-domain HSSL"


def test_an_arm_s_blocks_are_those_of_its_pretraining_and_are_told() -> None:
    mixed = {"like": "hssl-multi", "name": "mixed", "block_size": 4}
    study = config(ROOT, arms=["scratch", "hssl-multi", mixed])
    scratch, multi, arm = study.arms
    task = study.tasks[0]
    assert study.learning(multi, task).sampling == study.learning(scratch, task).sampling
    assert study.learning(multi, task).sampling.block_size == study.pretrain.sampling.block_size != 4
    assert study.learning(arm, task).sampling.block_size == 4
    dumped = study.model_dump(mode="json")
    assert ["block_size" in entry for entry in dumped["arms"]] == [False, False, True]
    assert StudyConfig.model_validate(dumped) == study
    assert about_arm(arm) == (
        "pretrained without labels on images of all datasets, in blocks of 4 of a task; taken over: encoder "
        "and decoder"
    )


def test_cells_are_scored_on_the_study_s_part() -> None:
    study = config(ROOT, part="test", overlap=0.25)
    settings = evaluate_config(study, Plan.of(study).cells[0], "models:/tiny-blobs/1")
    assert isinstance(settings, EvaluateConfig)
    assert (settings.part, settings.overlap) == ("test", 0.25)
    assert settings.output == "/nowhere/studies/tiny/test/scores/blobs-f0.5-s0-r0-scratch"
    assert settings.overwrite, "a model that was registered anew is scored into the same folder"
