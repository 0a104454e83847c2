"""The benchmark of a step: its clock, its hooks around training, turns, judgement, page, gpu.sh."""

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

from benchmarks import gpu_summary, trace
from benchmarks.step_arms import budgets
from benchmarks.step_data import learning
from benchmarks.step_ours import only_stage, operations
from benchmarks.step_phases import BOOKKEEPING, OVERHEAD, PHASES, Phases, watching
from benchmarks.step_summary import judge, overhead, shares, speed_over, summarise
from benchmarks.step_table import PAGE, RECORDS, page_with, read, section, tables
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
    assert {(len(spec.cores), spec.threads) for spec in found["1 core"]} == {(1, 1)}
    kinds = {spec.kind for spec in found["1 core"]}
    assert kinds == {"matmul", "ours", "lightly", "plain", "segresnet", "swinunetr"}
    own = [spec for spec in found["1 core"] if spec.kind == "ours" and not spec.settings]
    assert all(spec.config == PretrainConfig().model_dump(mode="json") for spec in own)
    (compiled,) = (spec for spec in found["1 core"] if spec.settings == {"compile": True})
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


# ------------------------------------------------------------------------------------------------- judgement


def turn(wall_s: float, *, cpu_s: float | None = None, **phases: float) -> dict[str, Any]:
    spent = dict.fromkeys(PHASES, 0.0) | phases
    spent["backward"] += wall_s - sum(spent.values())
    return {
        "steps": 2,
        "wall_s": wall_s,
        "thread_s": wall_s,
        "cpu_s": wall_s if cpu_s is None else cpu_s,
        "phases": spent,
        "peak_mib": 100.0,
        "memory_mib": 90.0,
    }


def arm(name: str, kind: str, turns: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    about = {"samples_per_step": 4, "patch": [2, 5, 10], "precision": "float32"}
    about["flops_per_step"] = {"mm": 6 * 10**9} if kind == "ours" else {}
    known = {"stage": "encoder", "threads": 1, "ranks": 1, "workers": 0, "options": {}, "settings": {}}
    return {"name": name, "kind": kind, **known, "about": about, "turns": turns} | changes


def budget(*arms: dict[str, Any]) -> dict[str, Any]:
    ceiling = arm("matrix products", "matmul", [{"flops_per_s": 5e9}, {"flops_per_s": 8e9}])
    return summarise({"budget": "1 core", "arms": [ceiling, *arms]})


def test_overhead_is_what_is_no_network_and_what_other_threads_do() -> None:
    turns = [turn(1.0, data=0.02, augmentation=0.05, loss=0.01, bookkeeping=0.02, cpu_s=1.25)]
    assert sum(shares(turns)[name] for name in OVERHEAD) == pytest.approx(0.1)
    assert overhead(turns) == pytest.approx(1 - 0.9 * 0.8)  # of 1.25 s of processor time 1 s is the thread's


def test_figures_are_medians_over_turns() -> None:
    found = budget(arm("ours", "ours", [turn(1.0), turn(2.0), turn(4.0)]))
    figures = found["arms"][1]["figures"]
    assert found["ceiling_flops_per_s"] == 8e9
    assert figures["samples_per_s"] == 2 * 4 / 2.0
    assert figures["megavoxels_per_s"] == pytest.approx(4.0 * 2 * 100 / 1e6)
    assert figures["flops_per_s"] == 6e9
    assert figures["of_ceiling"] == 0.75


def test_the_ratio_is_of_rounds_and_of_the_fastest_on_the_same_network() -> None:
    found = budget(
        arm("ours", "ours", [turn(1.0), turn(1.0), turn(10.0)]),
        arm("ours, compiled", "ours", [turn(0.8)] * 3, settings={"compile": True}),
        arm("loop", "lightly", [turn(1.4), turn(1.5), turn(15.0)]),
        arm("loop, 1 worker", "lightly", [turn(2.0)] * 3),
        arm("plain modules", "plain", [turn(0.1)] * 3),
    )
    ratio, note = speed_over(found, any_settings=False)
    assert (ratio, note) == (pytest.approx(1.5), "1 core: ours over loop")
    assert speed_over(found, any_settings=True)[1] == "1 core: ours, compiled over loop"
    assert speed_over(budget(arm("ours", "ours", [turn(1.0)])), any_settings=False) is None


def test_cpu_criteria_are_those_of_the_requirements() -> None:
    slow = arm("ours", "ours", [turn(1.0, augmentation=0.2)])
    found = judge([budget(slow, arm("loop", "lightly", [turn(1.2)]))], "cpu", quick=False)
    assert [(c.bound, c.at_least, c.passed) for c in found] == [(0.15, False, False), (1.3, True, False)]
    fast = arm("ours", "ours", [turn(1.0, augmentation=0.1)])
    found = judge([budget(fast, arm("loop", "lightly", [turn(1.31)]))], "cpu", quick=False)
    assert [c.passed for c in found] == [True, True]
    assert {c.passed for c in judge([budget(fast)], "cpu", quick=True)} == {None}


def test_gpu_criteria_are_those_of_the_requirements() -> None:
    arms = [
        arm("ours", "ours", [turn(2.0, data=0.1) | {"gpu_mib": 5.0}]),
        arm("ours, decoder", "ours", [turn(5.0) | {"gpu_mib": 5.0}], stage="decoder"),
        arm("loop", "lightly", [turn(2.9) | {"gpu_mib": 5.0}]),
    ]
    found = {(c.name, c.note): c for c in judge([budget(*arms)], "cuda", quick=False)}
    by_bound = {c.bound: [] for c in found.values()}
    for criterion in found.values():
        by_bound[criterion.bound].append((pytest.approx(criterion.value), criterion.passed))
    assert by_bound[0.45] == [(0.75, True), (0.3, False)]
    assert by_bound[0.02] == [(0.05, False), (0.0, True)]
    assert by_bound[1.5] == [(1.45, False)]


def record() -> dict[str, Any]:
    found = budget(
        arm("ours", "ours", [turn(1.0)]),
        arm("SwinUNETR", "swinunetr", [], cannot_run="No module named 'einops'"),
    )
    return {
        "command": "python -m benchmarks.step --json",
        "started": "2026-01-01T00:00:00+00:00",
        "minutes": 1.0,
        "code": "0",
        "peers": {},
        "machine": {"gpu": "a GPU", "python": "3", "torch": "2"},
        "load_average": {"before": [0, 0, 0], "after": [0, 0, 0]},
        "settings": {"rounds": 1, "turn_s": 1.0},
        "budgets": [found],
        "criteria": [vars(c) for c in judge([found], "cpu", quick=False)],
    }


def test_tables_have_every_arm_also_what_cannot_run() -> None:
    shown = tables(record())
    assert "| ours | 2 x 5 x 10 | 4 | 8 (8-8) |" in shown
    assert "| SwinUNETR | cannot run: No module named 'einops' |" in shown
    assert "matrix products 8 GFLOP/s" in shown


def test_the_page_shows_the_records_and_says_which_are_missing() -> None:
    page = PAGE.read_text()
    assert page == page_with(page, {name: read(path) for name, path in RECORDS.items()})
    assert "there is no record yet. `bash benchmarks/gpu.sh` makes one" in section("GPU", None)
    for path in RECORDS.values():
        found = read(path)
        assert found is None or not found["settings"]["quick"]


# ---------------------------------------------------------------------------------------------------- traces


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("aten::convolution_backward", "convolution"),
        ("sm90_xmma_fprop_implicit_gemm_bf16", "convolution"),
        ("aten::native_batch_norm_backward", "norm"),
        ("triton_poi_fused_leaky_relu_3", "activation"),
        ("nvjet_tst_128x64_NN", "matrix products"),
        ("aten::bmm", "matrix products"),
        ("void cudnn::ops::nchwToNhwcKernel", "copies and layout"),
        ("Memcpy HtoD (Pinned -> Device)", "copies and layout"),
        ("multi_tensor_apply_kernel<FusedAdamMath>", "optimiser"),
        ("ncclDevKernel_AllReduce_Sum_f32", "communication"),
        ("aten::exp", "other"),
    ],
)
def test_kernels_are_grouped_by_name(name: str, group: str) -> None:
    assert trace.group_of(name) == group


def test_a_trace_s_shares_are_of_the_wall_time() -> None:
    kernels = [trace.Kernel("aten::bmm", 6, 0.5), trace.Kernel("aten::exp", 2, 0.25)]
    found = trace.summarise(kernels, wall_s=1.0, steps=2)
    assert found["groups"] == {"matrix products": 0.5, "other": 0.25, "outside torch": 0.25}
    assert (found["step_ms"], found["busy"]) == (500.0, 0.75)
    assert found["kernels"][0] == {"name": "aten::bmm", "calls": 3.0, "ms": 250.0, "share": 0.5}


@pytest.mark.parametrize("job", ["pretrain", "finetune"])
def test_steps_of_a_job_are_traced(job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = tmp_path / "trace.json"
    words = ["--quick", "--job", job, "--warm-up", "1", "--steps", "1", "--json", "--trace", str(whole)]
    trace.main(words)
    found = json.loads(capsys.readouterr().out)
    assert found["groups"]["convolution"] > 0.0
    assert found["busy"] > 0.0
    assert "aten::convolution_backward" in whole.read_text()
    (tmp_path / "trace_encoder.json").write_text(json.dumps(found))
    shown = gpu_summary.summary(tmp_path, ["tests: status 1"])
    assert shown.startswith("# On this GPU, not all of it\n\n- tests: status 1\n")
    assert "| convolution |" in shown


# ---------------------------------------------------------------------------------------------------- gpu.sh


def gpu_sh(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "benchmarks/gpu.sh", *words],
        cwd=ROOT, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


def test_the_script_is_a_script_and_says_what_it_does() -> None:
    subprocess.run(["bash", "-n", ROOT / "benchmarks/gpu.sh"], check=True, timeout=30)
    found = gpu_sh("--help")
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("Everything that needs a GPU, in under eight minutes")
    assert "set -" not in found.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fast"], "unknown argument --fast; see --help\n"),
        (["--out"], "--out needs a value; see --help\n"),
        (["--device", "tpu"], "--device is cuda or cpu, not tpu\n"),
        (["--minutes", "1;ls"], "--minutes is a number, not 1;ls\n"),
    ],
)
def test_the_script_refuses_what_it_does_not_know(words: list[str], said: str) -> None:
    found = gpu_sh(*words)
    assert (found.returncode, found.stderr, found.stdout) == (2, said, "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
def test_the_script_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    found = gpu_sh("--out", str(tmp_path / "out"))
    assert found.returncode == 2
    assert found.stderr == "torch sees no CUDA device; --device cpu --quick is a dry run without one\n"


def test_all_of_it_is_imported_without_ray_and_mlflow() -> None:
    """And without the peers, which are left out where they are not installed."""
    absent = (
        "ray",
        "mlflow",
        "monai",
        "lightly",
        "einops",
        "s3fs",
        "matplotlib",
        "dynamic_network_architectures",
    )
    code = f"import sys; sys.modules |= dict.fromkeys({absent})\n" + "\n".join(
        f"import benchmarks.{name}"
        for name in ("step", "step_ours", "step_peers", "step_ceiling", "step_child", "trace", "checkpoint")
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


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
