"""The demo as a newcomer runs it, twice; and the plan it follows."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hssl_dist.config.demo import DemoConfig
from hssl_dist.errors import ConfigError
from hssl_dist.jobs.case_pictures import chosen_cases
from hssl_dist.jobs.demo_pictures import mean_score
from hssl_dist.jobs.demo_plan import PATIENTS, Plan
from hssl_dist.synthetic import TASKS

ARMS = ("from the registry", "from scratch")


def _run(output: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "hssl_dist.demo", "--output", str(output), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.soak
@pytest.mark.timeout(2500)
def test_demo_runs_the_whole_pipe_and_runs_again(tmp_path: Path) -> None:
    first = _run(tmp_path / "demo")

    assert first["status"] == "done"
    assert first["pretrained"] == "models:/hssl-unet/1"
    assert first["models"] == {
        arm: f"models:/hssl-phantom-heart/{version}" for version, arm in enumerate(ARMS, 1)
    }
    assert all(0.5 < first["dice_mean"][arm] < 1.0 for arm in ARMS)
    page = Path(first["report"]).read_text(encoding="utf-8")
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)([^"']*)""", page) == [
        f"store/phantom-{task}/report.html" for task in TASKS
    ]
    assert all((tmp_path / "demo" / f"store/phantom-{task}/report.html").is_file() for task in TASKS)
    levels = ["image", "task", "group"]
    assert re.findall(r"(\w+) ends at \d", page)[-8:] == [*levels, "dense", "restoration", *levels]
    scores = json.loads((tmp_path / "demo/scores/scratch/scores.json").read_text())
    assert (scores["n_patients"], scores["n_cases"]) == (0.3 * PATIENTS, 0.6 * PATIENTS)
    stored = _files(tmp_path / "demo/store")

    second = _run(tmp_path / "demo")

    assert _files(tmp_path / "demo/store") == stored
    assert second["pretrained"] == first["pretrained"]
    assert second["dice_mean"] == pytest.approx(first["dice_mean"], abs=1e-3)
    assert second["models"] == first["models"]


def test_everything_is_below_the_output(tmp_path: Path) -> None:
    plan = Plan.of(DemoConfig(output=str(tmp_path), workers=3))
    pretrain, finetune = plan.pretrain("p"), plan.finetune("f", "scratch")
    places = [
        str(plan.phantoms),
        pretrain.store.url,
        pretrain.runs,
        pretrain.tracking.uri.removeprefix("sqlite:///"),
        finetune.store.url,
        finetune.runs,
        plan.evaluate("e", "models:/m/1").output,
    ]
    assert all(Path(place).is_relative_to(tmp_path) for place in places)
    assert plan.evaluate("e", "models:/m/2").overwrite, "a changed demo scores other models there"
    assert pretrain.workers == (3, 3)
    assert plan.ray.num_cpus is not None
    assert plan.ray.num_cpus >= 3


def test_pretraining_never_sees_the_test_patients(tmp_path: Path) -> None:
    plan = Plan.of(DemoConfig(output=str(tmp_path)))
    assert plan.pretrain("p").sampling.exclude_test == plan.finetune("f", "scratch").split


def test_an_output_elsewhere_is_refused() -> None:
    with pytest.raises(ConfigError, match="output 's3://bucket/demo' is not a local folder"):
        Plan.of(DemoConfig(output="s3://bucket/demo"))


def test_best_median_and_worst_case_are_chosen_by_their_mean() -> None:
    cases = [
        {"case": "a", "dice": {"LV": 0.5, "RV": None}},
        {"case": "b", "dice": {"LV": 0.9, "RV": 0.7}},
        {"case": "c", "dice": {"LV": None, "RV": None}},
        {"case": "d", "dice": {"LV": 0.6, "RV": 0.6}},
    ]
    assert [mean_score(case) for case in cases] == pytest.approx([0.5, 0.8, 0.0, 0.6])
    chosen = chosen_cases(cases, mean_score)
    assert {name: case["case"] for name, case in chosen.items()} == {"best": "b", "median": "a", "worst": "c"}
    assert [case["case"] for case in chosen_cases(cases[:1], mean_score).values()] == ["a"]
    assert list(chosen_cases(cases[:2], mean_score)) == ["best", "worst"]
    assert chosen_cases(cases[:2], lambda case: math.nan) == {}
