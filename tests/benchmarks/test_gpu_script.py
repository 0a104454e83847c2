"""benchmarks/gpu.sh, and that what it runs needs neither Ray nor MLflow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


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
