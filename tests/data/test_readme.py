"""Every command of the README runs as written; only budgets and places come from the environment."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from hssl_dist.config.parts import TrackingConfig
from hssl_dist.tracking.client import connect

ROOT = Path(__file__).parents[2]
REAL_DATA = ROOT.parent / "shared" / "data"

# The documented precedence (environment over file) shortens the runs without touching the commands.
SHORT = {
    "HSSL_ENCODER__STEPS": "2",
    "HSSL_DECODER__STEPS": "2",
    "HSSL_GLOBAL_BATCH": "8",
    "HSSL_TRAINING__STEPS": "4",
    "HSSL_TRAINING__VALIDATE_EVERY": "4",
    "HSSL_SPLIT__VALIDATION": "0.03",
    "FEW_STEPS": "4",
}


def commands(name: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.soak
@pytest.mark.real
@pytest.mark.timeout(3000)
def test_the_readmes_commands_run_as_written(tmp_path: Path) -> None:
    if not REAL_DATA.is_dir():
        pytest.skip(f"the challenge data is not at {REAL_DATA}")
    environment = {
        **os.environ,
        **SHORT,
        "HSSL_STORE__URL": str(tmp_path / "store"),
        "HSSL_RUNS": str(tmp_path / "runs"),
        "HSSL_TRACKING__URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    ran = []
    for number, command in enumerate(commands("README.md")):
        environment["HSSL_OUTPUT"] = str(tmp_path / "outputs" / str(number))
        line = command.replace("sqlite:///hssl/mlflow.db", f"sqlite:///{tmp_path}/mlflow.db")
        finished = subprocess.run(
            ["bash", "-euc", line], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200
        )
        assert finished.returncode == 0, f"{command}\n{finished.stdout}\n{finished.stderr}"
        ran.append(command)
    assert {word for command in ran for word in command.split()} >= {
        "demo",
        "preprocess",
        "pretrain",
        "finetune",
        "evaluate",
        "predict",
        "promote",
    }
    assert [path.name for path in tmp_path.glob("outputs/*/scores.csv")] == ["scores.csv"]
    registry = connect(TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db"))
    for name in ("hippocampus-unet", "acdc-unet"):
        assert registry.get_registered_model(name).aliases.keys() >= {"champion", "hssl-5", "scratch-5"}


def test_contributing_names_targets_that_exist() -> None:
    for command in commands("CONTRIBUTING.md"):
        words = command.partition("#")[0].split()
        if words[0] == "make":
            subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        else:
            assert words == ["bash", ".ci/run"]
            assert os.access(ROOT / ".ci" / "run", os.X_OK)
