"""The benchmark of a step: its clock, its hooks around training, its turns, a whole run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import closing, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks.step_arms import budgets
from benchmarks.step_data import learning
from benchmarks.step_ours import only_stage, operations
from benchmarks.step_phases import BOOKKEEPING, PHASES, Phases, watching
from benchmarks.step_turns import ArmSpec, Stop, Turns, in_turns
from hssl_dist.config.loading import load_config
from hssl_dist.config.pretrain import PretrainConfig
from hssl_dist.training import step
from hssl_dist.training.checkpoint import CheckpointStore
from hssl_dist.training.loop import run_pretraining
from tests.tiny_pretraining import ArrayReader, Recorder, config, manifests

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------------- the clock


def test_a_phase_inside_another_stops_its_clock() -> None:
    phases = Phases(CPU)
    phases.begin()
    start_s = time.perf_counter()
    with phases.phase("forward"):
        time.sleep(0.02)
        with phases.phase("augmentation"):
            time.sleep(0.05)
        phases.turn_to("backward")
        time.sleep(0.03)
    found, wall_s = phases.take(), time.perf_counter() - start_s
    assert set(found) == set(PHASES)
    assert sum(found.values()) == pytest.approx(wall_s, abs=5e-3)
    assert found["forward"] >= 0.02
    assert found["augmentation"] >= 0.05
    assert found["backward"] >= 0.03
    assert found["loss"] == 0.0


def test_nothing_is_counted_between_turns() -> None:
    phases = Phases(CPU)
    with phases.phase("forward"):
        phases.begin()  # a turn begins within a phase
    phases.take()
    with phases.phase("loss"):
        time.sleep(0.01)
    phases.begin()
    assert phases.take()["loss"] == 0.0


class _InPhases(Recorder):
    """Callbacks that begin the phases after the first step, and take them after the last."""

    def __init__(self, phases: Phases, last: int) -> None:
        super().__init__()
        self._phases, self._last = phases, last
        self.found: dict[str, float] = {}
        self.wall_s = 0.0

    def on_step(self, step: int) -> None:
        super().on_step(step)
        if step == 1:
            self._phases.begin()
            self.wall_s = time.perf_counter()
        if step == self._last:
            self.found = self._phases.take()
            self.wall_s = time.perf_counter() - self.wall_s


@pytest.mark.parametrize("stage", ["encoder", "decoder"])
def test_training_is_watched_and_not_changed(stage: str, tmp_path: Path) -> None:
    settings = config(**{name: getattr(config(), name) for name in ("encoder", "decoder")})
    other = "decoder" if stage == "encoder" else "encoder"
    settings = settings.model_copy(update={other: getattr(settings, other).model_copy(update={"steps": 0})})
    last = getattr(settings, stage).steps
    phases = Phases(CPU)
    watched, plain = _InPhases(phases, last), Recorder()
    before = dict(step._STAGES), torch.autograd.backward, step._look
    weights = []
    for name, callbacks in (("watched", watched), ("plain", plain)):
        store = CheckpointStore(str(tmp_path / name))
        if name == "watched":
            with watching(phases):
                result = run_pretraining(settings, manifests(), ArrayReader(), store, callbacks, CPU)
        else:
            result = run_pretraining(settings, manifests(), ArrayReader(), store, callbacks, CPU)
        weights.append(deepcopy(result.network.state_dict()))
    assert (step._STAGES, torch.autograd.backward, step._look) == before
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    found = watched.found
    assert sum(found.values()) == pytest.approx(watched.wall_s, rel=0.05, abs=2e-3)
    assert found["communication"] == 0.0
    for name in ("augmentation", "forward", "loss", "backward", "optimiser", BOOKKEEPING):
        assert found[name] > 0.0, name


def test_a_record_does_not_tell_where_it_was_made() -> None:
    told = learning(PretrainConfig())
    assert told["global_batch"] == PretrainConfig().global_batch
    assert str(Path.cwd()) not in json.dumps(told)


def test_a_run_of_one_stage_does_not_end_by_itself() -> None:
    found = only_stage(PretrainConfig(), "decoder")
    assert (found.encoder.steps, found.decoder.steps > 10**5) == (0, True)


def test_operations_are_counted_by_operator() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        torch.ones(3, 4) @ torch.ones(4, 5)
    assert operations(counter) == {"mm": 2 * 3 * 4 * 5}


# ----------------------------------------------------------------------------------------------------- turns


class _Pipes:
    """Both ends of an arm's pipes, in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, words: int) -> None:
        own, theirs = os.pipe(), os.pipe()
        os.write(own[1], b"go\n" * words)
        os.close(own[1])
        monkeypatch.setenv("ARM_PIPES", f"{own[0]},{theirs[1]}")
        self.answers = os.fdopen(theirs[0])


@pytest.mark.parametrize("lead", [0, 2])
def test_turns_count_their_steps_alone(monkeypatch: pytest.MonkeyPatch, lead: int) -> None:
    pipes = _Pipes(monkeypatch, words=3)
    released = []
    turns = Turns(1e-9, warm_up=3, lead=lead, release=lambda: released.append(True))
    with pipes.answers, closing(turns):
        begun, done, (about, *found) = _all_turns(turns, pipes)
    # Of three words one is for the warm-up, so there are two turns of one step, each after its lead.
    assert done == 3 + 2 * (lead + 1)
    assert begun == [3 + lead, 4 + 2 * lead]
    assert len(released) == 3
    assert about == {"patch": [1], "steps_per_turn": 1}
    assert [turn["steps"] for turn in found] == [1, 1]
    assert all(turn["wall_s"] > 0 and turn["peak_mib"] > 0 for turn in found)


def _all_turns(turns: Turns, pipes: _Pipes) -> tuple[list[int], int, list[dict[str, Any]]]:
    """At which steps turns began, how many steps there were, and the answers."""
    turns.wait_for_start()
    begun, done = [], []
    with suppress(Stop):
        while True:
            done.append(True)
            turns.after_step(
                lambda: {"phases": {}}, lambda: begun.append(len(done)), lambda: {"patch": [1]}, lambda: None
            )
    return begun, len(done), [json.loads(pipes.answers.readline()) for _ in range(3)]


def test_arms_take_turns_and_say_why_they_cannot(tmp_path: Path) -> None:
    products = ArmSpec(
        "products", "matmul", str(tmp_path), options={"precision": "float32", "sides": (64,)}, turn_s=0.1
    )
    broken = ArmSpec("broken", "nobody's", str(tmp_path))
    said: list[str] = []
    found = in_turns([products, broken], 2, said.append)
    assert [turn["steps"] for turn in found["products"]["turns"]] == [1, 1]
    assert all(turn["flops_per_s"] > 0 and turn["cpu_s"] > 0 for turn in found["products"]["turns"])
    assert "KeyError" in found["broken"]["cannot_run"]
    assert in_turns([products], 2, said.append, _Kept(found)) is found  # nothing is left to do
    assert "time" in in_turns([products], 1, said.append, until_s=0.0)["products"]["cannot_run"]


class _Kept:
    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found

    def save(self) -> None:
        raise AssertionError("nothing new is to be saved")


def test_budgets_pit_equal_means_against_each_other(tmp_path: Path) -> None:
    found = budgets(PretrainConfig(), str(tmp_path), "cpu", quick=False, turn_s=1.0)
    one = [specs for name, specs in found.items() if name.startswith("1 core")]
    assert {(len(spec.cores), spec.threads) for specs in one for spec in specs} == {(1, 1)}
    assert [{spec.kind for spec in specs} for specs in one] == [
        {"matmul", "ours", "lightly", "plain"},
        {"matmul", "ours"},
        {"matmul", "ours", "segresnet", "swinunetr"},
    ]
    own = [spec for specs in one for spec in specs if spec.kind == "ours" and not spec.settings]
    assert all(spec.config == PretrainConfig().model_dump(mode="json") for spec in own)
    assert [spec.stage for spec in own] == ["encoder", "encoder", "decoder"]
    (compiled,) = (spec for spec in found["1 core, other settings"] if spec.settings == {"compile": True})
    assert compiled.config["acceleration"]["compile"] is True
    for name, specs in found.items():
        assert len({spec.name for spec in specs}) == len(specs), name


def test_a_gpu_has_the_larger_network_of_the_study() -> None:
    settings = load_config(PretrainConfig, "test", ["--config", str(ROOT / "benchmarks/gpu.yaml")])
    study = yaml.safe_load((ROOT / "configs/study/gpu.yaml").read_text())
    (task,) = (task for task in study["tasks"] if task["dataset"] == "acdc")
    shown = settings.network.model_dump(mode="json")
    assert {key: shown[key] for key in task["network"]} == task["network"]
    assert list(settings.sampling.patch_size) == study["pretrain"]["sampling"]["patch_size"]
    assert settings.precision == study["pretrain"]["precision"]


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_quick_run_fills_the_record(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    command = [sys.executable, "-m", "benchmarks.step", "--quick", "--json", "--keep", str(kept)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=360, check=False)
    assert finished.returncode == 0, finished.stderr[-2000:]
    found = json.loads(finished.stdout)
    (only,) = found["budgets"]
    by_kind = {(each["kind"], each["stage"]): each for each in only["arms"]}
    assert set(by_kind) == {
        ("matmul", "encoder"), ("ours", "encoder"), ("ours", "decoder"), ("lightly", "encoder"),
    }  # fmt: skip
    for each in only["arms"]:
        assert "cannot_run" not in each
        assert len(each["turns"]) == 2
    for stage in ("encoder", "decoder"):
        figures = by_kind["ours", stage]["figures"]
        assert sum(figures["shares"].values()) == pytest.approx(1.0)
        assert 0.0 < figures["of_ceiling"] < 1.0
        assert 0.0 < figures["overhead"] < 1.0
        operators = by_kind["ours", stage]["about"]["flops_per_step"]
        assert {"convolution", "convolution_backward"} <= set(operators)
    assert by_kind["lightly", "encoder"]["figures"]["shares"]["data"] > 0.0
    assert {criterion["passed"] for criterion in found["criteria"]} == {None}
    # All that was measured is kept, so the same again has nothing to measure.
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert json.loads(again.stdout)["budgets"] == found["budgets"]
